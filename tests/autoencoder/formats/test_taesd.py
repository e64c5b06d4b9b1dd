"""TAESD's files: a released one reconstructs photographs, and every layout of some weights is the same autoencoder."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.data.config import FolderConfig
from ldm.data.datasets import open_dataset
from ldm.errors import CheckpointError
from ldm.evaluation.metrics import psnr
from ldm.shapes import rounded
from tests.support.scripts import ROOT

RELEASED = ROOT.parent / "shared" / "data" / "taef2"
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
WEIGHTS = "diffusion_pytorch_model.safetensors"
needs_data = pytest.mark.skipif(not RELEASED.is_dir(), reason=f"{RELEASED}, a released autoencoder, is not here")


def tiny(**more: Any) -> AutoencoderTiny:
    torch.manual_seed(0)
    shape = {"encoder_block_out_channels": (16,) * 3, "decoder_block_out_channels": (16,) * 3, "latent_channels": 2}
    blocks = {"num_encoder_blocks": (1, 2, 1), "num_decoder_blocks": (1, 2, 1)}
    return AutoencoderTiny(**{**shape, **blocks, **more}).eval().requires_grad_(False)


def pictures(side: int = 16) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def as_released(model: AutoencoderTiny) -> dict[str, dict[str, Tensor]]:
    """The weights under the names of the released files: the decoder's clamp is a layer."""
    sides: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, value in model.state_dict().items():
        side, _, number, rest = name.split(".", 3)
        sides[side][f"{int(number) + (side == 'decoder')}.{rest}"] = value
    return sides


def same(autoencoder: Autoencoder, model: AutoencoderTiny) -> None:
    autoencoder.requires_grad_(False)
    expected = model.encode(pictures()).latents
    torch.testing.assert_close(autoencoder.raw_posterior(pictures()).mean, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(autoencoder.reconstruct(pictures()), model.decode(expected).sample, rtol=1e-5, atol=1e-5)


@needs_data
@pytest.mark.parametrize("source", [RELEASED, RELEASED / "decoder.safetensors"], ids=["folder", "file"])
def test_a_released_autoencoder_is_not_refused_and_reconstructs_photographs(source: Path, tmp_path: Path):
    for photo in sorted(PHOTOS.iterdir())[4:8:2]:
        shutil.copy(photo, tmp_path)
    images = open_dataset(FolderConfig(path=str(tmp_path), size=192, held_out=0)).split()[0].images()
    autoencoder = Autoencoder.load(source).requires_grad_(False)
    assert autoencoder.latent_shape((192, 192)) == (32, 24, 24)
    assert psnr(rounded(images), rounded(autoencoder.reconstruct(images))).min() > 25


def test_a_folder_of_autoencoder_tiny_is_not_taken_for_an_autoencoder_kl(tmp_path: Path):
    model = tiny(scaling_factor=0.5, shift_factor=0.25)
    for variant in (None, "fp16"):
        folder = tmp_path / f"{variant}"
        model.save_pretrained(folder, variant=variant)
        autoencoder = Autoencoder.load(folder)
        same(autoencoder, model)
        assert autoencoder.latent_mean.eq(0.25).all() and autoencoder.latent_std.eq(2).all()


@pytest.mark.parametrize("prefix", ["", "taesd_"])
def test_one_file_of_both_sides_and_a_pair_are_the_same_autoencoder(prefix: str, tmp_path: Path):
    model = tiny()
    sides = as_released(model)
    both = {f"{prefix}{side}.{name}": value for side, named in sides.items() for name, value in named.items()}
    save_file(both, tmp_path / "both.safetensors")
    same(Autoencoder.load(tmp_path / "both.safetensors"), model)
    (tmp_path / "pair").mkdir()
    for side, named in sides.items():
        save_file(named, tmp_path / "pair" / f"{prefix}{side}.safetensors")
    same(Autoencoder.load(tmp_path / "pair"), model)
    same(Autoencoder.load(tmp_path / "pair" / f"{prefix}encoder.safetensors"), model)
    model.save_pretrained(tmp_path / "stock")
    same(Autoencoder.load(tmp_path / "stock" / WEIGHTS), model)


def test_a_saved_one_comes_back_with_its_statistics(tmp_path: Path):
    tiny().save_pretrained(tmp_path / "given")
    autoencoder = Autoencoder.load(tmp_path / "given").requires_grad_(False)
    autoencoder.standardize(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.1]))
    autoencoder.save(tmp_path / "saved")
    again = Autoencoder.load(tmp_path / "saved").requires_grad_(False)
    assert torch.equal(again.encode(pictures()).mean, autoencoder.encode(pictures()).mean)
    assert torch.equal(again.reconstruct(pictures()), autoencoder.reconstruct(pictures()))


def refusal(source: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Autoencoder.load(source)
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_one_side_alone_is_not_said_to_be_no_autoencoder(tmp_path: Path):
    save_file(as_released(tiny())["decoder"], tmp_path / "decoder.safetensors")
    assert "decoder alone" in refusal(tmp_path / "decoder.safetensors")


def test_several_pairs_in_a_folder_are_not_chosen_from(tmp_path: Path):
    for name in ("taesd", "taesdxl"):
        for side, named in as_released(tiny()).items():
            save_file(named, tmp_path / f"{name}_{side}.safetensors")
    assert "name the one" in refusal(tmp_path) and "taesdxl_encoder" in refusal(tmp_path)
    Autoencoder.load(tmp_path / "taesdxl_decoder.safetensors")


def test_weights_that_are_missing_or_of_another_activation_are_refused_in_one_line(tmp_path: Path):
    for name, value in (("act_fn", "silu"), ("num_decoder_blocks", (1, 1, 1))):
        tiny(**{name: value}).save_pretrained(tmp_path / name)
        assert {"act_fn": "act_fn", "num_decoder_blocks": "mirror"}[name] in refusal(tmp_path / name)
    tiny().save_pretrained(tmp_path / "given")
    tensors = load_file(tmp_path / "given" / WEIGHTS)
    del tensors["encoder.layers.1.conv.2.bias"]
    save_file(tensors, tmp_path / "given" / WEIGHTS, {"format": "pt"})
    assert "encoder.1.conv.2.bias" in refusal(tmp_path / "given")
