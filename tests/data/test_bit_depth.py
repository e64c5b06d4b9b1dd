"""Bit depths: pixels come back from every depth within the rounding of the coarser of the two."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from ldm.data.bit_depth import to_bit_depth
from ldm.data.config import FolderConfig
from ldm.data.datasets import open_dataset
from ldm.data.decoding import UnreadableImage, decode
from ldm.errors import DataError
from ldm.shapes import to_depth, to_float

RANDOM = np.random.default_rng(0)
DEPTHS = {"uint8": 255, "uint16": 65535, "float32": None}


def drawn(dtype: str, channels: int) -> np.ndarray:
    """Values of the whole range of their type, channels first; floats from -2 to 3."""
    if dtype == "float32":
        values = RANDOM.uniform(-2, 3, (channels, 6, 8)).astype(np.float32)
        values[0, 0, :2] = -2, 3
        return values
    most = np.iinfo(dtype).max
    values = RANDOM.integers(0, most + 1, (channels, 6, 8)).astype(dtype)
    values[0, 0, :2] = 0, most
    return values


def pillow(values: np.ndarray, file: Path) -> None:
    Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)).save(file)


def deflated(values: np.ndarray, file: Path) -> None:
    tifffile.imwrite(file, values.transpose(1, 2, 0), photometric="rgb", compression="zlib")


# name of the file: how it is written, type and channels, and how many levels of 256 Pillow may cut off at depth uint8
FILES: dict[str, tuple[Any, str, int, float]] = {
    "gray.png": (pillow, "uint8", 1, 0.5),
    "gray and alpha.png": (pillow, "uint8", 2, 0.5),
    "color and alpha.png": (pillow, "uint8", 4, 0.5),
    "16-bit gray.png": (pillow, "uint16", 1, 0.5),
    "16-bit gray.tif": (pillow, "uint16", 1, 0.5),
    "16-bit color.tif": (deflated, "uint16", 3, 1.0),
    "float gray.tif": (pillow, "float32", 1, 0.5),
    "float color.tif": (deflated, "float32", 3, 0.5),
    "13 pages.tif": (lambda values, file: tifffile.imwrite(file, values, photometric="minisblack"), "uint16", 13, 0.5),
    "13 floats.npy": (lambda values, file: np.save(file, values), "float32", 13, 0.5),
    "13 channels last.npy": (lambda values, file: np.save(file, values.transpose(1, 2, 0)), "uint8", 13, 0.5),
    "one channel.npy": (lambda values, file: np.save(file, values[0]), "uint16", 1, 0.5),
    "big-endian.npy": (lambda values, file: np.save(file, values.astype(">f8")), "float32", 2, 0.5),
}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_comes_back_within_the_rounding_of_its_bit_depth(name: str, depth: str, tmp_path: Path) -> None:
    write, native, channels, cut = FILES[name]
    values = drawn(native, channels)
    write(values, tmp_path / name)
    config = FolderConfig(path=str(tmp_path), size=(6, 8), channels=channels, depth=depth, value_range=(-2, 3))
    decoded, dataset = decode(tmp_path / name, config, pixel_limit=48), open_dataset(config)
    assert dataset.unreadable == [] and decoded.dtype == depth and np.array_equal(dataset.image(0).numpy(), decoded)

    images = to_float(dataset.image(0)).double()
    most = DEPTHS[native]
    truth = torch.tensor((values + 2) / 5.0 if most is None else values / most) * 2 - 1
    half = 3e-7 if depth == "float32" else (2 * cut if depth == "uint8" else 1) / DEPTHS[depth]
    assert (images - truth).abs().max() <= half * (1 + 1e-4) and images.abs().max() <= 1
    assert torch.equal(to_depth(images, depth), dataset.image(0))
    if native == "uint8" or native == depth == "uint16" or (native, depth) == ("uint16", "float32"):
        assert np.array_equal(to_depth(images, native).numpy(), values)


def test_every_level_of_every_depth_survives_the_way_through_floats() -> None:
    for depth, most in (("uint8", 255), ("uint16", 65535)):
        every = torch.arange(most + 1).to(getattr(torch, depth))
        assert torch.equal(to_depth(to_float(every), depth), every)
        assert to_float(every).aminmax() == (-1, 1)
        assert to_depth(torch.tensor([-9.0, 9.0]), depth).tolist() == [0, most]
        assert np.array_equal(
            to_float(every).numpy(), to_bit_depth(every.numpy(), FolderConfig(path="x", depth="float32"))
        )
    assert to_depth(torch.tensor([-9.0, 0.3, 9.0]), "float32").tolist() == pytest.approx([-1, 0.3, 1])


@pytest.mark.parametrize("depth", DEPTHS)
def test_transparency_and_gray_mean_the_same_at_every_depth(depth: str, tmp_path: Path) -> None:
    """As at depth uint8, which test_decoding.py holds to the documented values, and nearer to the exact mixture."""
    values = drawn("uint8", 4)
    for name, given in (("8.png", values), ("16.tif", values.astype(np.uint16) * 257)):
        if name == "8.png":
            pillow(given, tmp_path / name)
        else:
            tifffile.imwrite(tmp_path / name, given.transpose(1, 2, 0), photometric="rgb", extrasamples=["unassalpha"])
        for channels in (1, 2, 3, 4):
            asked = {"channels": channels, "background": (10, 200, 90)}
            coarse, fine = (
                to_float(
                    torch.tensor(decode(tmp_path / name, FolderConfig(path="x", depth=kind, **asked), pixel_limit=99))
                )
                for kind in ("uint8", depth)
            )
            assert fine.shape == (channels, 6, 8) and (fine - coarse).abs().max() <= 2.1 / 255


@pytest.mark.parametrize("depth", ["uint8", "uint16"])
def test_floats_above_1_in_a_picture_mean_255_unless_the_range_was_set(depth: str, tmp_path: Path) -> None:
    values, asked = np.array([[0, 51, 255]], dtype=np.float32), {"channels": 1, "depth": depth}
    Image.fromarray(values).save(tmp_path / "1.tif")
    np.save(tmp_path / "1.npy", values)
    found = decode(tmp_path / "1.tif", FolderConfig(path="x", **asked), pixel_limit=9)[0, 0]
    assert (found / DEPTHS[depth] * 255).tolist() == [0, 51, 255]
    with pytest.raises(UnreadableImage, match=r"to 255; they must lie in data\.value_range, 0 to 1"):
        decode(tmp_path / "1.npy", FolderConfig(path="x", **asked), pixel_limit=9)
    with pytest.raises(UnreadableImage, match=r"to 255; they must lie in data\.value_range, 0 to 100"):
        decode(tmp_path / "1.tif", FolderConfig(path="x", value_range=(0, 100), **asked), pixel_limit=9)
    with pytest.raises(UnreadableImage, match=r"to 255; they must lie in data\.value_range, 0 to 1"):
        decode(tmp_path / "1.tif", FolderConfig(path="x", channels=1, depth="float32"), pixel_limit=9)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([-0.5, 0.2], "from -0.5 to 0.2;"),
        ([0.1, np.nan, 0.9], "from 0.1 to 0.9, and NaN or infinite ones;"),
        ([0.1, np.inf], "from 0.1 to 0.1, and NaN or infinite ones;"),
        ([np.nan, np.nan], "without a finite one;"),
    ],
)
def test_floats_outside_their_range_are_named_with_their_own(depth: str, values: list[float], found: str) -> None:
    for kind in (np.float16, np.float32, np.float64):
        file = io.BytesIO()
        np.save(file, np.array([values], dtype=kind).round(1))
        file.seek(0)
        with pytest.raises(UnreadableImage) as caught:
            decode(file, FolderConfig(path="x", channels=1, depth=depth), pixel_limit=9)
        assert "\n" not in str(caught.value)
        assert found in str(caught.value).replace("0.0999756", "0.1").replace("0.899902", "0.9").replace(
            "0.199951", "0.2"
        )


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.complex64, "U3"])
def test_pixels_of_other_types_are_unreadable(dtype: Any) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((2, 2), dtype=dtype))
    file.seek(0)
    with pytest.raises(UnreadableImage, match="of type"):
        decode(file, FolderConfig(path="x", channels=1), pixel_limit=9)


def test_wider_integers_are_16_bits() -> None:
    for dtype in (np.int16, np.int32, np.uint64):
        values = np.array([[0, 128, 129, 32767]], dtype=dtype)
        assert to_bit_depth(values, FolderConfig(path="x")).tolist() == [[0, 0, 1, 127]]
        assert to_bit_depth(values, FolderConfig(path="x", depth="uint16")).tolist() == values.tolist()


def test_a_folder_of_nan_images_is_refused_in_one_line(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.full((4, 4), np.nan))
    with pytest.raises(
        DataError, match=r"3 of 3 images cannot be read.*0\.npy: float pixels without a finite"
    ) as caught:
        open_dataset(FolderConfig(path=str(tmp_path), channels=1, size=4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
def test_half_precision_in_a_file_does_not_turn_black(tmp_path: Path, depth: str) -> None:
    values = np.linspace(0, 1, 48, dtype=np.float16).reshape(4, 4, 3)
    np.save(tmp_path / "half.npy", values)
    config = FolderConfig(path=str(tmp_path), size=4, depth=depth)
    image = decode(tmp_path / "half.npy", config, pixel_limit=100)
    found = (to_float(torch.from_numpy(image)) + 1) / 2
    assert (
        np.abs(found.numpy() - values.transpose(2, 0, 1)).max()
        < {"uint8": 1 / 255, "uint16": 1e-4, "float32": 1e-6}[depth]
    )
