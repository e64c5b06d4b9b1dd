"""Colors of another space than sRGB arrive as the sRGB colors that they are; all others as the bytes in the file."""

import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from pillow_heif import register_heif_opener

from ldm.data.color_profile import jpeg2000_profile, srgb_transform
from ldm.data.config import FolderConfig
from ldm.data.decoding import decode

register_heif_opener()  # so that Pillow writes HEIC here

# Columns of XYZ under D50 for red, green and blue, and the curve of sRGB as ICC's parameters g, a, b, c, d.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
DISPLAY_P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
LINEAR = (1.0,)
WHITE = (0.9642, 1.0, 0.8249)


def numbers(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc(
    space: bytes,
    columns: dict[bytes, Sequence[float]],
    curves: dict[bytes, Sequence[float]],
    others: dict[bytes, bytes] | None = None,
    *,
    kind: bytes = b"mntr",
    connection: bytes = b"XYZ ",
) -> bytes:
    """A profile of ICC version 4.3, with the tags that a conversion needs."""
    tags = (others or {}) | {b"wtpt": b"XYZ \0\0\0\0" + numbers(*WHITE)}
    tags |= {name: b"XYZ \0\0\0\0" + numbers(*values) for name, values in columns.items()}
    kinds = {1: 0, 5: 3}  # parameters to ICC's type of the function
    tags |= {
        name: b"para\0\0\0\0" + struct.pack(">HH", kinds[len(curve)], 0) + numbers(*curve)
        for name, curve in curves.items()
    }
    start, table, data = 132 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(data), len(tag))
        data += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I4xI4s4s4s", start + len(data), 0x04300000, kind, space, connection)
    head += struct.pack(">6H4s28x", 2026, 1, 1, 0, 0, 0, b"acsp") + numbers(*WHITE)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def rgb(primaries: Sequence[Sequence[float]], curve: Sequence[float] = CURVE) -> bytes:
    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True))
    return icc(b"RGB ", columns, dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


P3, GRAY = rgb(DISPLAY_P3), icc(b"GRAY", {}, {b"kTRC": LINEAR})


def linear(levels: np.ndarray) -> np.ndarray:
    values = levels / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(values: np.ndarray) -> np.ndarray:
    values = values.clip(0, 1)
    return 255 * np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def in_srgb(colors: np.ndarray) -> np.ndarray:
    """Display P3 in sRGB by the formulas, [..., 3] in levels."""
    return encoded(linear(colors) @ (np.linalg.inv(np.array(SRGB).T) @ np.array(DISPLAY_P3).T).T)


def decoded(image: Image.Image, file_format: str = "PNG", channels: int = 3, **options: Any) -> np.ndarray:
    """[height, width, channels] of the image when it was saved so."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    file.seek(0)
    return decode(file, FolderConfig(path="x", channels=channels), pixel_limit=10**6).transpose(1, 2, 0)


COLORS = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
LOSSY = {"JPEG": {"subsampling": 0}, "AVIF": {"subsampling": "4:4:4"}, "HEIF": {"chroma": 444}}


@pytest.mark.parametrize("name", LOSSLESS)
def test_display_p3_is_no_longer_read_as_if_it_were_srgb(name: str) -> None:
    found = decoded(Image.fromarray(COLORS), name, icc_profile=P3, **LOSSLESS[name])
    assert np.abs(found - in_srgb(COLORS)).max() < 1.01 and np.abs(in_srgb(COLORS) - COLORS).max() > 20


@pytest.mark.parametrize("name", LOSSY)
def test_the_profile_of_every_format_counts(name: str) -> None:
    color = np.full((16, 16, 3), (230, 60, 40), dtype=np.uint8)
    found = decoded(Image.fromarray(color), name, icc_profile=P3, quality=95, **LOSSY[name])
    assert np.abs(found - in_srgb(color)).max() < 6


def test_the_profile_of_a_jpeg_2000_counts() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (230, 60, 40)).save(file, "JPEG2000")
    data = file.getvalue()
    header, color = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    (size,), box = struct.unpack(">I", data[header : header + 4]), struct.pack(">I4s3B", 11 + len(P3), b"colr", 2, 0, 0)
    data = (
        data[:header]
        + struct.pack(">I", size - 15 + 11 + len(P3))
        + data[header + 4 : color]
        + box
        + P3
        + data[color + 15 :]
    )
    pixels = decode(io.BytesIO(data), FolderConfig(path="x"), pixel_limit=10**6)[:, 0, 0]
    assert np.abs(pixels - in_srgb(np.array((230, 60, 40)))).max() < 1.01
    for length in range(len(data) - 1, 0, -7):  # whatever is cut off
        jpeg2000_profile(io.BytesIO(data[:length]))


def test_cmyk_is_what_its_profile_says() -> None:
    """A printer whose cyan is L* 50, a* -20, b* -30, and all of whose other inks are black."""
    corners = [(255, 128, 128), *[(0, 128, 128)] * 15]  # of the table, the last ink fastest; cyan alone is the ninth
    corners[8] = (128, 108, 98)
    straight, unit = bytes(range(256)), numbers(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + unit + straight * 4 + b"".join(map(bytes, corners)) + straight * 3
    profile = icc(b"CMYK", {}, {}, {b"A2B0": table}, kind=b"prtr", connection=b"Lab ")
    white, cyan, black = (
        decoded(Image.new("CMYK", (4, 4), ink), "TIFF", icc_profile=profile)[0, 0].astype(int)
        for ink in ((0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255))
    )
    assert white.min() >= 254 and black.max() <= 1
    y = (128 / 2.55 + 16) / 116
    xyz = np.array([(y - 20 / 500) ** 3, y**3, (y + 30 / 200) ** 3]) * WHITE
    assert np.abs(cyan - encoded(np.linalg.inv(np.array(SRGB).T) @ xyz)).max() <= 2


def test_linear_colors_and_grays_are_no_longer_too_dark() -> None:
    assert set(decoded(Image.new("RGB", (4, 4), (55,) * 3), icc_profile=rgb(SRGB, LINEAR)).flat) == {128}
    for channels, gray in ((1, [128]), (3, [128] * 3), (2, [128, 255])):
        assert decoded(Image.new("L", (4, 4), 55), channels=channels, icc_profile=GRAY)[0, 0].tolist() == gray


def test_alpha_survives_the_conversion() -> None:
    color, (red, green, blue) = (230, 60, 40), np.rint(in_srgb(np.array((230, 60, 40))))
    image = Image.new("RGBA", (4, 4), (*color, 77))
    assert decoded(image, channels=4, icc_profile=P3)[0, 0].tolist() == [red, green, blue, 77]
    keyed = decoded(Image.new("RGB", (4, 4), color), channels=4, icc_profile=P3, transparency=color)
    assert keyed[0, 0].tolist() == [red, green, blue, 0]
    assert decoded(Image.new("LA", (4, 4), (55, 77)), channels=2, icc_profile=GRAY)[0, 0].tolist() == [128, 77]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *color])
    assert decoded(palette, channels=4, icc_profile=P3, transparency=0)[0, 0].tolist() == [red, green, blue, 255]


def test_an_srgb_profile_changes_no_byte() -> None:
    by_pillow = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (by_pillow, rgb(SRGB)):
        assert srgb_transform(profile, "RGB") is None
        assert np.array_equal(decoded(Image.fromarray(COLORS), icc_profile=profile), COLORS)


def test_a_broken_profile_or_one_of_other_pixels_is_ignored() -> None:
    for profile in (b"no profile", bytes(500), P3[:200], P3[:-40], GRAY):
        assert np.array_equal(decoded(Image.fromarray(COLORS), icc_profile=profile), COLORS)
    assert set(decoded(Image.new("L", (4, 4), 55), icc_profile=P3).flat) == {55}
    assert decoded(Image.new("CMYK", (4, 4)), "TIFF", icc_profile=P3).min() == 255


def test_sixteen_bits_are_left_as_they_are() -> None:
    image = Image.fromarray(np.full((4, 4), 55 * 257, dtype=np.uint16))
    assert set(decoded(image, "TIFF", icc_profile=GRAY).flat) == {55}


def test_one_profile_is_prepared_once_for_a_whole_folder() -> None:
    srgb_transform.cache_clear()
    for level in range(20):
        decoded(Image.new("RGB", (4, 4), (level,) * 3), icc_profile=P3)
    assert srgb_transform.cache_info().misses == 1
