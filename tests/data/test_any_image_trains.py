"""Folders of every kind of image train, and what was trained takes such images and gives them back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pillow_heif import register_heif_opener

from ldm.autoencoder.model import Autoencoder
from ldm.config import reader
from ldm.data.config import FolderConfig
from ldm.data.datasets import Subset, open_dataset
from ldm.script_configs import TrainVAEConfig
from tests.support.backbones import random_alexnet
from tests.support.miniatures import STAGE_ONE, STAGE_TWO
from tests.support.scripts import ran


def waves(channels: int, dtype: str, height: int = 20, width: int = 26) -> list[np.ndarray]:
    """Twelve smooth pictures, channels last: of the whole range of integers, of -10 to 30 in floats."""
    rows, columns, bands = np.mgrid[0:height, 0:width, 0:channels]
    fractions = [(np.sin(rows / (2 + k) + bands) * np.cos(columns / 3 + k) + 1) / 2 for k in range(12)]
    if dtype == "float32":
        return [(40 * fraction - 10).astype(dtype) for fraction in fractions]
    return [(fraction * np.iinfo(dtype).max).astype(dtype) for fraction in fractions]


def png(file: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.squeeze()).save(file.with_suffix(".png"))


def npy(file: Path, pixels: np.ndarray) -> None:
    np.save(file.with_suffix(".npy"), pixels)


def tiff(file: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(file.with_suffix(".tif"), pixels, photometric="rgb")


KINDS: dict[str, tuple[Any, int, str, dict[str, object]]] = {
    "gray": (png, 1, "uint8", {"channels": 1}),
    "RGBA": (png, 4, "uint8", {"channels": 4, "size": [24, 16], "augment.rotate90": "true", "augment.brightness": 0.1}),
    "13 channels": (npy, 13, "float32", {"channels": 13, "depth": "float32", "value_range": [-10, 30]}),
    "16 bits": (tiff, 3, "uint16", {"depth": "uint16", "size": [16, 24]}),
}


def trained(kind: str, folder: Path) -> Path:
    """A finished miniature run of train_vae.py."""
    write, channels, dtype, config = KINDS[kind]
    (folder / "images").mkdir()
    for index, pixels in enumerate(waves(channels, dtype)):
        write(folder / "images" / f"{index:02d}", pixels)
    (folder / "vae.yaml").write_text(STAGE_ONE.format(backbone=random_alexnet(), data=folder / "images"))
    flags = [part for name, value in config.items() for part in (f"--data.{name}", value)]
    outcome = ran("train_vae", folder / "vae.yaml", "--out", folder / "run", "--run.steps", 3, *flags)
    assert outcome.code == 0, outcome.err
    return folder / "run"


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_any_images_trains_and_reconstructs_them(kind: str, tmp_path: Path) -> None:
    run = trained(kind, tmp_path)
    data = reader.load(TrainVAEConfig, run / "config.yaml", {}).data
    images = Subset(open_dataset(data), [0, 5]).images()
    assert images.shape[1:] == data.shape and images.aminmax().min < -0.5 and images.aminmax().max > 0.5
    with torch.no_grad():
        assert Autoencoder.load(run).reconstruct(images).shape == images.shape
    report = json.loads((run / "report.json").read_text())
    assert np.isfinite(report["held_out_psnr"]) and np.isfinite(report["patch_pca_psnr"])
    with Image.open(next((run / "samples").iterdir())) as panel:
        assert panel.mode == {1: "L", 4: "RGBA"}.get(data.channels, "RGB")


def test_what_phones_and_browsers_save_is_no_longer_passed_over(tmp_path: Path) -> None:
    register_heif_opener()
    formats = {
        "a.jfif": "JPEG",
        "b.JPE": "JPEG",
        "c.avif": "AVIF",
        "d.HEIC": "HEIF",
        "e.jp2": "JPEG2000",
        "f.apng": "PNG",
    }
    for level, (name, file_format) in enumerate(formats.items()):
        Image.new("RGB", (16, 16), (40 * level,) * 3).save(tmp_path / name, file_format)
    dataset = open_dataset(FolderConfig(path=str(tmp_path), size=16))
    assert dataset.names == sorted(formats) and dataset.unreadable == []
    assert all(abs(int(dataset.image(index)[0, 8, 8]) - 40 * index) <= 2 for index in range(6))


def test_a_rectangle_goes_through_both_stages_and_comes_out_of_sampling(tmp_path: Path) -> None:
    source = trained("16 bits", tmp_path)
    (tmp_path / "diffusion.yaml").write_text(STAGE_TWO)
    out = ("--out", tmp_path / "diffusion", "--run.steps", 2)
    outcome = ran("train_diffusion", tmp_path / "diffusion.yaml", "--autoencoder", source, *out)
    assert outcome.code == 0, outcome.err
    assert np.load(tmp_path / "diffusion" / "latents" / "moments.npy", allow_pickle=False).shape == (2, 12, 4, 8, 12)
    outcome = ran("sample", tmp_path / "diffusion", "--out", tmp_path / "pictures", "--num", 2, "--steps", 2)
    assert outcome.code == 0, outcome.err
    for number in range(2):
        with Image.open(tmp_path / "pictures" / f"{number:05d}.png") as picture:
            assert (picture.mode, picture.size) == ("RGB", (24, 16))


def test_a_dry_run_says_height_and_width_and_a_wrong_size_is_one_line(tmp_path: Path, shapes_folder: Path) -> None:
    (tmp_path / "vae.yaml").write_text(STAGE_ONE.format(backbone=random_alexnet(), data=shapes_folder))
    out = ("--out", tmp_path / "run")
    outcome = ran("train_vae", tmp_path / "vae.yaml", *out, "--dry-run", "--data.size", "[8, 12]")
    assert outcome.code == 0 and "image              3 x 8 x 12 = 288 numbers" in outcome.out
    assert " of 6 held-out images ha" in next(line for line in outcome.out.splitlines() if "near-dup" in line)
    for size, named in (
        ("[8, 13]", "data.size [8, 13] is not divisible by 2"),
        ("[8, 8, 8]", "--data.size is [8, 8, 8]"),
    ):
        outcome = ran("train_vae", tmp_path / "vae.yaml", *out, "--data.size", size)
        assert outcome.code == 2 and named in outcome.err and "Traceback" not in outcome.err
