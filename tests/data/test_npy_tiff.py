"""Files of any number of channels are read as they are, or refused with both numbers."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from ldm.data.config import FolderConfig
from ldm.data.decoding import UnreadableImage, decode

VALUES = np.random.default_rng(0).integers(0, 256, (7, 5, 6)).astype(np.uint8)  # channels, height, width


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **{"photometric": "minisblack", **options})
    return file.getvalue()


def decoded(data: bytes, channels: int, limit: int = 1000, **config: Any) -> np.ndarray:
    return decode(io.BytesIO(data), FolderConfig(path="x", channels=channels, **config), pixel_limit=limit)


LAYOUTS = {
    "pages": tiff(VALUES),
    "planes": tiff(VALUES, planarconfig="separate"),
    "samples": tiff(VALUES.transpose(1, 2, 0), planarconfig="contig"),
    "deflated samples": tiff(VALUES.transpose(1, 2, 0), planarconfig="contig", compression="zlib"),
    "tiles": tiff(VALUES, tile=(16, 16)),
    "pages of an ImageJ stack": tiff(VALUES, imagej=True, photometric=None),
    "big-endian BigTIFF": tiff(VALUES, byteorder=">", bigtiff=True),
    "channels first .npy": npy(VALUES),
    "channels last .npy": npy(VALUES.transpose(1, 2, 0)),
    "Fortran order .npy": npy(np.asfortranarray(VALUES)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_many_channels_are_read_as_they_are_from_every_layout(name: str) -> None:
    assert np.array_equal(decoded(LAYOUTS[name], 7), VALUES)
    for channels in (9, 13):
        with pytest.raises(UnreadableImage, match=rf"channels where data\.channels is {channels}"):
            decoded(LAYOUTS[name], channels)


def test_the_last_axis_is_meant_where_both_could_be_the_channels() -> None:
    values = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(decoded(npy(values), 3), values.transpose(2, 0, 1))


def test_an_array_is_never_converted() -> None:
    for channels in (1, 2, 3, 4):
        values = VALUES[:channels]
        assert np.array_equal(decoded(npy(values), channels), values)
        with pytest.raises(UnreadableImage, match=rf"channels where data\.channels is {channels + 1}"):
            decoded(npy(values), channels + 1)
    with pytest.raises(UnreadableImage, match=r"^image: 7 channels where"):
        decoded(npy(np.zeros((7, 20, 30), np.uint8)), 13)
    with pytest.raises(UnreadableImage, match=r"1 channels where data\.channels is 3"):
        decoded(npy(VALUES[0]), 3)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF"])
def test_a_picture_is_not_stretched_to_many_channels(file_format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, file_format)
    with pytest.raises(UnreadableImage, match=r"3 channels where data\.channels is 13"):
        decoded(file.getvalue(), 13)


@pytest.mark.parametrize("depth", ["uint8", "uint16"])
@pytest.mark.parametrize(("channels", "byteorder"), [(3, "<"), (3, ">"), (4, "<")])
def test_planes_of_16_bits_were_read_as_bytes(channels: int, byteorder: str, depth: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (channels, 5, 6)).astype(np.uint16)
    alpha = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    data = tiff(values, photometric="rgb", planarconfig="separate", byteorder=byteorder, **alpha)
    expected = values if depth == "uint16" else (values.astype(int) + 128) // 257
    assert np.array_equal(decoded(data, channels, depth=depth), expected)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_gray_and_alpha_in_planes_were_unreadable_or_wrong(compression: str | None) -> None:
    options = {"planarconfig": "separate", "extrasamples": ["unassalpha"], "compression": compression}
    assert np.array_equal(decoded(tiff(VALUES[:2], **options), 2), VALUES[:2])


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_big_endian_values_in_a_deflated_tiff_were_swapped_twice(dtype: str) -> None:
    levels = 1000 * np.arange(30, dtype=np.uint16).reshape(1, 5, 6)
    values = levels / 65535 if dtype == "float32" else levels
    data = tiff(values[0].astype(dtype), byteorder=">", compression="zlib")
    assert np.array_equal(decoded(data, 1, depth="uint16"), levels)


def test_up_to_four_channels_take_the_first_page() -> None:
    assert np.array_equal(decoded(LAYOUTS["pages"], 1), VALUES[:1])
    assert np.array_equal(decoded(tiff(VALUES.astype(np.uint16)), 1, depth="uint16"), VALUES[:1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_tiff_is_as_upright_as_a_shallow_one(orientation: int) -> None:
    values = VALUES[:3].transpose(1, 2, 0)
    options = {"photometric": "rgb", "extratags": [("Orientation", 3, 1, orientation, True)]}
    shallow, deep = tiff(values, **options), tiff(values.astype(np.uint16) * 257, **options)
    assert np.array_equal(decoded(deep, 3, depth="uint16"), decoded(shallow, 3).astype(np.uint16) * 257)


def test_a_deep_tiff_that_would_be_misread_is_unreadable() -> None:
    deep = VALUES[:4].transpose(1, 2, 0).astype(np.uint16)
    with pytest.raises(UnreadableImage, match="multiplied by their alpha"):
        decoded(tiff(deep, photometric="rgb", extrasamples=["assocalpha"]), 4, depth="uint16")
    with pytest.raises(UnreadableImage, match="neither RGB nor gray"):
        decoded(tiff(deep, photometric="separated"), 3, depth="uint16")
    for depth in ("uint8", "uint16"):
        with pytest.raises(UnreadableImage, match="neither RGB nor gray with black at 0"):
            decoded(tiff(deep[..., 0], photometric="miniswhite"), 1, depth=depth)
    with pytest.raises(UnreadableImage, match=r"6 channels where data\.channels is 3"):
        decoded(tiff(VALUES[:6].transpose(1, 2, 0).astype(np.uint16), planarconfig="contig"), 3, depth="uint16")


@pytest.mark.parametrize("shape", [(), (4,), (1, 2, 3, 4), (0, 4), (4, 0, 3)])
def test_arrays_that_are_no_image_are_unreadable(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnreadableImage):
        decoded(npy(np.zeros(shape, dtype=np.uint8)), 3 if len(shape) == 3 else 1)


def test_a_header_is_checked_before_any_data_are_read_and_nothing_is_unpickled() -> None:
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (1_000_000, 1_000_000, 13)}
    np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UnreadableImage, match="1000000 x 1000000 pixels"):
        decoded(file.getvalue(), 13)
    with pytest.raises(UnreadableImage, match="type object"):
        decoded(npy(np.array([[None]], dtype=object)), 1)
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((50, 60, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnreadableImage, match="60 x 50 pixels"):
        decoded(file.getvalue(), 5)


MUTATED = {
    "pages": (LAYOUTS["pages"], {"channels": 7}),
    "deflated samples": (LAYOUTS["deflated samples"], {"channels": 7, "depth": "uint16"}),
    "channels first .npy": (LAYOUTS["channels first .npy"], {"channels": 7}),
    "float .npy": (npy(VALUES.astype(np.float32) / 255), {"channels": 7, "depth": "float32"}),
    "16-bit RGB": (tiff(VALUES[:3].transpose(1, 2, 0).astype(np.uint16), photometric="rgb"), {"depth": "uint16"}),
    "float RGB": (tiff(VALUES[:3].transpose(1, 2, 0) / np.float32(255), photometric="rgb"), {}),
}


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_bytes_give_an_image_or_are_unreadable_and_nothing_else(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, config = MUTATED[name]
    rng, outcomes = np.random.default_rng(0), set()
    asked = {"channels": 3, **config}
    for attempt in range(80):
        data = np.frombuffer(whole, dtype=np.uint8).copy()
        reach = len(data) if attempt % 2 else min(len(data), 250)  # half of them in the header
        places = rng.integers(0, reach, size=rng.integers(1, 12))
        data[places] = rng.integers(0, 256, size=len(places))
        kept = data.tobytes() if attempt % 4 else data.tobytes()[: rng.integers(len(data))]
        try:
            assert len(decoded(kept, **asked)) == asked["channels"]
            outcomes.add("image")
        except UnreadableImage as error:
            assert error.reason and "\n" not in str(error)
            outcomes.add("unreadable")
    assert outcomes == {"image", "unreadable"}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_file_on_disk_is_closed_again(tmp_path: Path) -> None:
    """An open file would be a ResourceWarning, and those are errors here."""
    for name in ("pages", "channels first .npy"):
        (tmp_path / name).write_bytes(LAYOUTS[name])
        for channels in (7, 8, 1):
            try:
                decode(tmp_path / name, FolderConfig(path="x", channels=channels), pixel_limit=1000)
            except UnreadableImage as error:
                assert error.path == str(tmp_path / name)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "uint64", ">i8"])
def test_bytes_in_wide_integers_are_no_longer_read_as_nearly_black(dtype: str) -> None:
    """As `np.array` makes int64 of lists."""
    for values in (VALUES[:3], np.full((3, 4, 5), 1)):
        with pytest.raises(UnreadableImage, match=rf"values up to {values.max()} .* \.astype\(np\.uint8\)"):
            decoded(npy(values.astype(dtype)), 3)
    sixteen_bits = VALUES[:3].astype(np.uint16) * 257
    read = decoded(npy(sixteen_bits.astype(dtype)), 3, depth="uint16")
    assert np.array_equal(read, sixteen_bits) and np.array_equal(
        decoded(npy(sixteen_bits.astype(dtype)), 3), VALUES[:3]
    )
    assert not decoded(npy(np.zeros((3, 4, 5), dtype)), 3).any()  # black is black on either scale
    assert np.array_equal(decoded(npy(VALUES[:3].astype(np.uint16)), 3, depth="uint16"), VALUES[:3])


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64"])
def test_bytes_in_a_wide_tiff_are_no_longer_read_as_nearly_black(dtype: str) -> None:
    for channels, values in ((1, VALUES[0]), (7, VALUES)):
        with pytest.raises(UnreadableImage, match=rf"values up to {values.max()} .* \.astype\(np\.uint8\)"):
            decoded(tiff(values.astype(dtype)), channels)
        assert np.array_equal(decoded(tiff(values.astype(dtype) * 257), channels), values.reshape(channels, 5, 6))
    dark = tiff(VALUES[0].astype(np.int16))  # 16 bits are what they say
    assert np.array_equal(decoded(dark, 1, depth="uint16"), VALUES[:1])
