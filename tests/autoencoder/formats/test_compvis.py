"""CompVis' names and diffusers' are two names of the same numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.autoencoder.formats import compvis, diffusers
from ldm.autoencoder.model import Autoencoder
from ldm.errors import CheckpointError

ELSEWHERE = """
import sys
sys.modules["ldm"] = None  # importing it is an ImportError now
import numpy as np, torch
from diffusers import AutoencoderKL

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    kl = AutoencoderKL.from_single_file(f"{folder}/one.safetensors", config=folder, local_files_only=True).eval()
    with torch.no_grad():
        posterior = kl.encode(torch.from_numpy(np.load(f"{folder}/given.npy"))).latent_dist
        images = kl.decode(posterior.mean).sample
    np.savez(f"{folder}/found.npz", mean=posterior.mean, logvar=posterior.logvar, images=images)
"""


def foreign(levels: int = 3, attention: bool = False, **more: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    block = "Attn" if attention else ""
    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * (levels - 1) + (f"{block}DownEncoderBlock2D",),
        "up_block_types": (f"{block}UpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
        "block_out_channels": (8, 16, 24, 32, 32, 32)[:levels],
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "latent_channels": 3,
    }
    return AutoencoderKL(**shape | more).eval().requires_grad_(False)


def pictures(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def saved(kl: AutoencoderKL, file: Path, prefix: str = "", **others: Tensor) -> Path:
    named = compvis.from_diffusers(kl.state_dict(), kl.config)
    save_file({prefix + name: value.contiguous() for name, value in named.items()} | others, file)
    return file


@pytest.mark.parametrize(
    "more", [{}, {"attention": True}, {"mid_block_add_attention": False}, {"use_quant_conv": False}]
)
@pytest.mark.parametrize("levels", [1, 2, 4, 6])
def test_there_and_back_is_bit_equal(levels: int, more: dict[str, Any]):
    kl = foreign(levels, **more)
    there = compvis.from_diffusers(kl.state_dict(), kl.config)
    back = compvis.to_diffusers(there, kl.config)
    assert back.keys() == kl.state_dict().keys() and len(there) == len(back)
    assert all(torch.equal(back[name], value) for name, value in kl.state_dict().items())


def test_the_names_are_those_of_stable_diffusion():
    """Its released files are lists of names and shapes; a few of either end, as anyone may look up."""
    with torch.device("meta"):
        kl = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    shapes = {name: tuple(v.shape) for name, v in compvis.from_diffusers(kl.state_dict(), kl.config).items()}
    assert len(shapes) == 248
    expected = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.mid.attn_1.proj_out.bias": (512,),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "decoder.mid.block_2.norm2.bias": (512,),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.3.block.2.conv2.weight": (512, 512, 3, 3),
        "decoder.up.1.upsample.conv.bias": (256,),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
    }
    assert expected.items() <= shapes.items()
    inferred = compvis.inferred(shapes)
    assert {name: value for name, value in kl.config.items() if name in inferred} == {
        **inferred,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "scaling_factor": kl.config["scaling_factor"],
        "force_upcast": True,
    }


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize(
    "more", [{}, {"attention": True}, {"mid_block_add_attention": False}, {"in_channels": 1, "out_channels": 1}]
)
def test_a_file_loads_as_the_autoencoder_it_holds(prefix: str, more: dict[str, Any], tmp_path: Path):
    kl = foreign(**more)
    others = {"model.diffusion_model.out.2.weight": torch.ones(2), "loss.logvar": torch.zeros(())}
    found, given = (
        diffusers.read(saved(kl, tmp_path / "sd.safetensors", prefix, **others)),
        pictures(kl.config["in_channels"]),
    )
    assert torch.equal(found.encode(given).latent_dist.mean, kl.encode(given).latent_dist.mean)
    autoencoder = Autoencoder.load(tmp_path / "sd.safetensors")
    assert autoencoder.latent_mean.eq(0).all() and autoencoder.latent_std.eq(1).all()
    assert autoencoder.network.downsampling == (4, 4) and autoencoder.network.image_channels == kl.config["in_channels"]


def test_half_precision_and_attention_as_matrices_are_read(tmp_path: Path):
    kl = foreign()
    named = compvis.from_diffusers(kl.half().state_dict(), kl.config)
    flat = {
        name: value[:, :, 0, 0] if ".attn_1." in name and value.dim() == 4 else value for name, value in named.items()
    }
    save_file({name: value.contiguous() for name, value in flat.items()}, tmp_path / "half.safetensors")
    found = diffusers.read(tmp_path / "half.safetensors").state_dict()
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], value.float()) for name, value in kl.state_dict().items())


def test_what_no_shape_tells_is_in_the_header_of_our_files(tmp_path: Path):
    kl = foreign(norm_num_groups=2, scaling_factor=0.7, shift_factor=0.1)
    compvis.write(tmp_path / "ours.safetensors", kl.state_dict(), kl.config)
    found = diffusers.read(tmp_path / "ours.safetensors")
    assert (found.config.norm_num_groups, found.config.scaling_factor, found.config.shift_factor) == (2, 0.7, 0.1)
    assert torch.equal(found.encode(pictures()).latent_dist.mean, kl.encode(pictures()).latent_dist.mean)


def test_diffusers_own_single_file_loader_reads_ours_offline_and_without_us(tmp_path: Path):
    shapes: list[dict[str, Any]] = [{}, {"mid_block_add_attention": False}, {"in_channels": 1, "out_channels": 1}]
    made = {tmp_path / str(number): foreign(norm_num_groups=4, **more) for number, more in enumerate(shapes)}
    for folder, kl in made.items():
        kl.save_config(folder)
        compvis.write(folder / "one.safetensors", kl.state_dict(), kl.config)
        np.save(folder / "given.npy", pictures(kl.config["in_channels"]).numpy())
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", ELSEWHERE, *map(str, made)]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    for folder, kl in made.items():
        found, posterior = np.load(folder / "found.npz"), kl.encode(pictures(kl.config["in_channels"])).latent_dist
        torch.testing.assert_close(torch.from_numpy(found["mean"]), posterior.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(found["logvar"]), posterior.logvar, rtol=1e-5, atol=1e-5)
        expected = kl.decode(posterior.mean).sample
        torch.testing.assert_close(torch.from_numpy(found["images"]), expected, rtol=1e-5, atol=1e-5)


# ---- what is not one


def refusal(source: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Autoencoder.load(source)
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def without(file: Path, *names: str) -> Path:
    kept = {name: value for name, value in load_file(file).items() if name not in names}
    save_file(kept, file)
    return file


def test_a_missing_tensor_is_named(tmp_path: Path):
    file = without(saved(foreign(), tmp_path / "sd.safetensors"), "decoder.up.1.block.2.conv1.bias")
    assert "decoder.up_blocks.1.resnets.2.conv1.bias" in refusal(file)
    assert "encoder.conv_in.weight" in refusal(without(file, "encoder.conv_in.weight"))


def test_files_that_hold_something_else_are_refused(tmp_path: Path):
    other = tmp_path / "lora.safetensors"
    save_file({"lora_unet.weight": torch.zeros(2, 2)}, other)
    assert "does not hold a CompVis autoencoder" in refusal(other)
    save_file({**load_file(saved(foreign(), other)), "decoder.time_mix.weight": torch.zeros(1)}, other)
    assert "decoder.time_mix" in refusal(other)
    other.write_bytes(b"not safetensors")
    refusal(other)


def test_weights_under_diffusers_names_send_the_user_to_their_folder(tmp_path: Path):
    foreign().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    Autoencoder.load(file)  # its config.json lies beside it
    assert "give the folder" in refusal(file.rename(tmp_path / "vae.safetensors"))


@pytest.mark.parametrize("ending", diffusers.PICKLES)
def test_a_pickle_is_refused_with_what_to_do(ending: str, tmp_path: Path):
    file = tmp_path / f"sd{ending}"
    torch.save({"state_dict": foreign().state_dict()}, file)
    assert re.search(r"pickle.*convert it to \.safetensors", refusal(file))


def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path: Path):
    assert refusal(tmp_path / "sd.safetensors").endswith("does not exist, and is not a hub id")
