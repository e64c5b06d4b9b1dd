"""Autoencoders are found in diffusers' folders, and broken ones are refused before anything is made of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from ldm import Autoencoder
from ldm.autoencoder.formats import compvis, diffusers
from ldm.errors import CheckpointError
from tests.support.scripts import Stage

WEIGHTS = "diffusion_pytorch_model.safetensors"
OTHER = {"quant_conv": "post_quant_conv", "post_quant_conv": "quant_conv"}


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A small AutoencoderKL with two latent channels."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    kl = AutoencoderKL(**blocks, block_out_channels=(4, 4), norm_num_groups=2, latent_channels=2)
    kl.save_pretrained(tmp_path / "given")
    return tmp_path / "given"


def refused(source: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Autoencoder.load(source)
    assert "\n" not in str(caught.value)
    for word in (str(source), *words):
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("scaling_factor", value) for value in (None, 0, -1.0, float("nan"), "much", [1.0])),
        *(("latents_mean", value) for value in (3.0, [1.0], ["a", "b"], [], [0.0, float("inf")])),
        *(("latents_std", value) for value in ([1.0, 0.0], [1.0, -1.0], [1.0] * 3, "wide", {})),
        ("shift_factor", "left"),
    ],
)
def test_a_statistic_that_is_no_number_does_not_become_a_traceback_or_a_latent(given, name, value):
    facts = json.loads((given / "config.json").read_text())
    (given / "config.json").write_text(json.dumps(facts | {name: value}))
    refused(given, name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_and_not_used(given, value):
    tensors = load_file(given / WEIGHTS)
    tensors["decoder.conv_out.bias"][1] = value
    save_file(tensors, given / WEIGHTS, {"format": "pt"})
    refused(given, "decoder.conv_out.bias holds NaN or infinity")
    facts = json.loads((given / "config.json").read_text())
    file = given.parent / "file.safetensors"
    compvis.write(file, tensors, facts)
    refused(file, "decoder.conv_out.bias holds NaN or infinity")


@pytest.mark.parametrize("text", ["[]", "3", '"AutoencoderKL"', "null"])
def test_a_config_that_is_no_object_is_not_said_to_be_a_lack_of_network(given, text):
    (given / "config.json").write_text(text)
    refused(given, "config.json is not an object")


def test_the_reason_why_a_file_cannot_be_read_is_not_cut_off(given, tmp_path):
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    shutil.copytree(given, deep)
    (deep / WEIGHTS).write_bytes((deep / WEIGHTS).read_bytes()[:-100])
    refused(deep, WEIGHTS, "header", "incomplete")


def test_a_folder_with_one_compvis_file_is_that_file_and_one_with_two_asks_which(given, tmp_path):
    kl, folder = AutoencoderKL.from_pretrained(given), tmp_path / "mine"
    folder.mkdir()
    kl.save_config(folder)
    compvis.write(folder / "mine.safetensors", kl.state_dict(), kl.config)
    first, second = (Autoencoder.load(place).state_dict() for place in (folder, given))
    assert all(torch.equal(first[name], second[name]) for name in second)
    shutil.copy(folder / "mine.safetensors", folder / "other.safetensors")
    refused(folder, "name the one")


def test_a_run_that_was_extended_and_is_not_finished_does_not_give_its_old_weights(finished_vae: Path, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run, ignore=shutil.ignore_patterns("checkpoints"))
    Autoencoder.load(run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("steps: 6", "steps: 12"))
    refused(run, "not finished", "6 of its 12 steps", "let it go on", "ldm export --checkpoint")
    Autoencoder.load(run / "vae")  # asked for by name
    for note in ("{}", "[]", '{"step": "six"}'):
        (run / "finished.json").write_text(note)
        with pytest.raises(CheckpointError, match=r"finished\.json is damaged: it does not say step"):
            Autoencoder.load(run)


def test_stage_two_and_fine_tuning_refuse_a_run_that_is_not_finished(
    finished_vae: Path, stage_one: Stage, stage_two: Stage, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    (run / "finished.json").write_text('{"step": 3}')
    outcome = Stage(stage_two.name, (*stage_two.arguments[:-1], run)).run(tmp_path / "two")
    assert outcome.code == 4 and "not finished" in outcome.err, outcome
    flags = ("--autoencoder.network.kind", "pretrained", "--autoencoder.network.path", run)
    outcome = stage_one.run(tmp_path / "one", *flags)
    assert outcome.code == 4 and "not finished" in outcome.err, outcome


@pytest.mark.parametrize("there", ["quant_conv", "post_quant_conv"])
def test_a_trained_convolution_is_not_replaced_when_the_other_one_is_missing(there: str) -> None:
    kl = AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=2,
        **{f"use_{there}": True, f"use_{OTHER[there]}": False},
    )
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = kl(images).sample
        folded = diffusers.fold(kl, torch.tensor([0.3, -1.0]), torch.tensor([2.0, 0.5]))
        torch.testing.assert_close(folded(images).sample, expected, rtol=1e-4, atol=1e-4)


def test_a_folder_of_a_variant_alone_is_not_said_to_lack_weights(given, tmp_path):
    kl = AutoencoderKL.from_pretrained(given)
    kl.save_pretrained(tmp_path / "half", variant="fp16")
    assert not (tmp_path / "half" / WEIGHTS).exists()
    first, second = (Autoencoder.load(place).state_dict() for place in (tmp_path / "half", given))
    assert all(torch.equal(first[name], second[name]) for name in second)
    kl.save_pretrained(tmp_path / "half", variant="bf16")
    refused(tmp_path / "half", "several variants", "name the file")
    Autoencoder.load(tmp_path / "half" / "diffusion_pytorch_model.bf16.safetensors")
    shutil.copy(given / WEIGHTS, tmp_path / "half")
    Autoencoder.load(tmp_path / "half")


def test_a_vq_model_is_not_called_a_broken_autoencoder_kl(given, tmp_path):
    facts = json.loads((given / "config.json").read_text())
    (given / "config.json").write_text(json.dumps(facts | {"_class_name": "VQModel"}))
    refused(given, "VQModel", "quantized")
    for prefix in ("", "first_stage_model."):
        names = ("encoder.conv_in.weight", "quantize.embedding.weight")
        save_file({prefix + name: torch.zeros(4, 3, 3, 3) for name in names}, tmp_path / "vq.safetensors")
        refused(tmp_path / "vq.safetensors", "VQ model", "quantized")
