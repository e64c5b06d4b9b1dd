"""Exports as their hosts read them: CompVis' and ComfyUI's fixed networks, the scale each applies, half precision."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file

from ldm.autoencoder.model import Autoencoder
from ldm.cli import export
from ldm.errors import ConfigError
from ldm.export import compvis_network
from ldm.export.autoencoder import HOSTS, ExportRequest, resolved_scale
from ldm.export.compvis_network import CompVisAutoencoder
from ldm.export.round_trip import TOLERANCES
from tests.autoencoder.formats.test_taesd import tiny
from tests.export.test_autoencoder import compvis_kl, exported, images, kl, refusal
from tests.support.scripts import Stage


def compvis_of(folder: Path) -> CompVisAutoencoder:
    """As a program of CompVis' would: from the YAML as PyYAML reads it, and strictly."""
    (described,) = folder.glob("*.yaml")
    params = yaml.safe_load(described.read_text())["model"]["params"]["first_stage_config"]["params"]
    ddconfig = params["ddconfig"]
    assert ddconfig.keys() == {
        *("double_z", "z_channels", "resolution", "in_channels", "out_ch"),
        *("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout"),
    }
    assert params["embed_dim"] == ddconfig["z_channels"] and params["lossconfig"] == {"target": "torch.nn.Identity"}
    found = CompVisAutoencoder(ddconfig, params["embed_dim"])
    found.load_state_dict(load_file(described.with_suffix(".safetensors")))
    return found.requires_grad_(False)


# ---- CompVis


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"widths": (16, 32), "norm_num_groups": 16}, ("16 norm groups", "widths 16, 32")),
        ({"widths": (32, 64), "norm_num_groups": 16}, ("16 norm groups",)),
        ({"widths": (64, 96), "norm_num_groups": 32}, ("widths 64, 96",)),
    ],
)
def test_what_compvis_cannot_hold_is_not_said_to_be_read_again_and_compared(shape, words, tmp_path, capsys):
    kl(**shape).save_pretrained(tmp_path / "given")
    outcome = exported(capsys, tmp_path / "given", "--format", "compvis", "--out", tmp_path / "out")
    refusal(outcome, 2, "32 norm groups", "autoencoder.network.norm_groups 32", "--format diffusers", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "shape",
    [
        {"mid_block_add_attention": False},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {
            **{"widths": (32, 64, 64), "layers_per_block": 2, "sample_size": 64},
            "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
            "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        },
    ],
    ids=["no attention", "no quant convolutions", "attention at a level"],
)
def test_layers_that_compvis_always_has_are_not_left_random_there(shape: dict[str, Any], tmp_path, capsys):
    theirs = compvis_kl(**{"latent_channels": 3, **shape})
    theirs.save_pretrained(tmp_path / "given")
    arguments = ("--format", "compvis", "--latent-scale", "source", "--out", tmp_path / "out")
    outcome = exported(capsys, tmp_path / "given", *arguments)
    assert outcome.code == 0, outcome.err
    host, given = compvis_of(tmp_path / "out"), images()
    with torch.no_grad():
        latents = theirs.encode(given).latent_dist.mean
        torch.testing.assert_close(host.encode(given), latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(host.decode(latents), theirs.decode(latents).sample, rtol=1e-4, atol=1e-4)


def test_the_comparison_is_not_made_with_our_own_reader(tmp_path, capsys, monkeypatch):
    """With another number of groups than the file was made for, the host's images are others, and it is noticed."""
    compvis_kl().save_pretrained(tmp_path / "given")
    monkeypatch.setattr(compvis_network, "NORM_GROUPS", 16)
    outcome = exported(capsys, tmp_path / "given", "--format", "compvis", "--out", tmp_path / "out")
    refusal(outcome, 4, "read again, the export differs")


# ---- scale and shift


@pytest.mark.parametrize("host", HOSTS)
def test_latents_are_not_left_with_a_mean_where_the_host_subtracts_a_shift(host, tmp_path, capsys):
    expected, levels = HOSTS[host], HOSTS[host].downsampling.bit_length()
    given = kl((8,) * levels, latent_channels=expected.channels)
    given.register_to_config(scaling_factor=0.7, shift_factor=0.2)
    given.save_pretrained(tmp_path / "given")
    arguments = ("--format", "diffusers", "--host", host, "--out", tmp_path / "out")
    outcome = exported(capsys, tmp_path / "given", *arguments)
    assert outcome.code == 0, outcome.err
    standardized = Autoencoder.load(tmp_path / "given").encode(images(side=32)).mean
    stock = AutoencoderKL.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        raw = stock.encode(images(side=32)).latent_dist.mean
    assert (stock.config.scaling_factor, stock.config.shift_factor or 0.0) == (expected.scale, expected.shift)
    seen = (raw - expected.shift) * expected.scale  # by the host's diffusion model
    torch.testing.assert_close(seen, standardized, rtol=1e-4, atol=1e-4)


def test_comfyui_at_f4_is_not_scaled_like_stable_diffusion_at_f8():
    """It takes such a shape for the upscaler's, and multiplies by that one's factor."""
    request = ExportRequest("x", Path("out"), "comfyui")
    for widths, factor in (((128, 256, 512), 0.08333), ((128, 256, 512, 512), 0.18215)):
        scale = resolved_scale(request, {"latent_channels": 4, "block_out_channels": widths})
        assert scale is not None and (scale.scale, scale.shift) == (factor, 0)
    with pytest.raises(ConfigError, match=r"16 latent channels.*--host"):
        resolved_scale(request, {"latent_channels": 16, "block_out_channels": widths})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "diffusers", "--host", "flux"), ("flux has 16 latent channels at f8", "4 at f2")),
        (("--format", "diffusers", "--host", "sd15", "--latent-scale", 2), ("leave out --latent-scale",)),
        (("--format", "diffusers", "--latent-scale", "source", "--latent-shift", 1), ("--latent-shift",)),
        (("--format", "diffusers", "--latent-shift", "nan"), ("--latent-shift", "finite")),
        (("--format", "compvis", "--latent-shift", 0.1), ("CompVis' program has no shift", "--format comfyui")),
    ],
)
def test_a_scale_that_cannot_be_is_one_line(arguments, words, tmp_path, capsys):
    compvis_kl().save_pretrained(tmp_path / "given")
    refusal(exported(capsys, tmp_path / "given", *arguments, "--out", tmp_path / "out"), 2, *words)


# ---- half precision


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_is_a_variant_as_diffusers_asks_for_it(dtype, kind, tmp_path, capsys):
    kl().save_pretrained(tmp_path / "given")
    outcome = exported(capsys, tmp_path / "given", "--format", "diffusers", "--dtype", dtype, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    stock = AutoencoderKL.from_pretrained(tmp_path / "out", variant=dtype, torch_dtype=kind)
    assert {
        value.dtype for value in load_file(tmp_path / "out" / f"diffusion_pytorch_model.{dtype}.safetensors").values()
    } == {kind}
    assert stock.dtype == kind
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (facts["dtype"], facts["tolerance"]) == (dtype, TOLERANCES[dtype])
    assert 1e-5 < facts["reconstruction_difference"] < TOLERANCES[dtype]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f'variant="{dtype}"' in card and f"weights are in {dtype}" in card
    given, again = (Autoencoder.load(tmp_path / name) for name in ("given", "out"))
    difference = (given.reconstruct(images()) - again.reconstruct(images())).abs().max()
    assert difference < TOLERANCES[dtype] * given.reconstruct(images()).abs().max()


def test_numbers_too_large_for_fp16_do_not_become_infinite_there(tmp_path, capsys):
    weights, inside = kl(), kl()
    with torch.no_grad():
        weights.encoder.conv_in.weight[0, 0, 0, 0] = 1e5
        inside.decoder.conv_in.weight *= 1e4  # as in SDXL's VAE: weights that fp16 holds, and sums that it does not
        inside.post_quant_conv.weight *= 100
    for name, model, word in (("weights", weights, "conv_in.weight"), ("inside", inside, "inside the network")):
        model.save_pretrained(tmp_path / name)
        command = (tmp_path / name, "--format", "diffusers", "--out", tmp_path / "out")
        refusal(exported(capsys, *command, "--dtype", "fp16"), 2, "--dtype fp16", word, "bf16")
        assert not (tmp_path / "out").exists()


# ---- TAESD's network


def test_a_taesd_of_ours_is_exported_as_the_class_that_diffusers_has(stage_one: Stage, tmp_path, capsys):
    shape = ("--autoencoder.network.kind", "taesd", "--autoencoder.network.width", 16)
    blocks = ("--autoencoder.network.blocks", "[1,1]")
    more = ("--autoencoder.bottleneck.kind", "identity", "--run.steps", 2, "--objective.perceptual", "null")
    outcome = stage_one.run(tmp_path / "run", *shape, *blocks, *more)
    assert outcome.code == 0, outcome.err
    outcome = exported(capsys, tmp_path / "run", "--format", "diffusers", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    stock, run = AutoencoderTiny.from_pretrained(tmp_path / "out").eval(), Autoencoder.load(tmp_path / "run")
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    mean, std = (torch.tensor(facts[name]).view(-1, 1, 1) for name in ("latent_mean", "latent_std"))
    with torch.no_grad():
        latents = stock.encode(images()).latents
        torch.testing.assert_close((latents - mean) / std, run.encode(images()).mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stock.decode(latents).sample, run.reconstruct(images()), rtol=1e-4, atol=1e-4)
    assert "AutoencoderTiny.from_pretrained" in (tmp_path / "out" / "README.md").read_text()
    for flags, words in (
        (("--format", "compvis"), ("TAESD's network", "compvis")),
        (("--format", "diffusers", "--latent-scale", 2), ("tanh",)),
    ):
        refusal(exported(capsys, tmp_path / "run", *flags, "--out", tmp_path / "other"), 2, *words)


def test_a_taesd_that_is_loaded_keeps_its_scale_in_an_export(tmp_path, capsys):
    tiny(scaling_factor=0.5, shift_factor=0.25).save_pretrained(tmp_path / "given")
    assert exported(capsys, tmp_path / "given", "--format", "diffusers", "--out", tmp_path / "out").code == 0
    stock = AutoencoderTiny.from_pretrained(tmp_path / "out")
    assert (stock.config.scaling_factor, stock.config.shift_factor) == (0.5, 0.25)


def test_help_names_the_hosts_and_the_formats_of_numbers_there_are():
    assert tuple(HOSTS) == export.HOSTS and tuple(TOLERANCES) == export.DTYPES
