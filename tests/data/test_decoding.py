"""Every kind of pixel arrives with its documented value, and a damaged file is an UnreadableImage and nothing else."""

import io
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pillow_heif import register_heif_opener

from ldm.data.config import FolderConfig
from ldm.data.decoding import EXTENSIONS, NEEDS, UnreadableImage, center_crop, decode, fit, to_array
from ldm.data.image_formats import FORMATS
from ldm.data.layouts.folder import FolderTree
from tests.support.scripts import ROOT

register_heif_opener()  # so that Pillow writes HEIC here

WHITE = (255, 255, 255)
RAMP = np.arange(0, 65536, 257, dtype=np.uint16)[None]
HOW = ("exact", "draft")
SMOOTH = np.add.outer(np.arange(40) * 3, np.arange(48) * 2).astype(np.uint8)


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def flat(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (6, 4), color)


def palette(*, alpha: bool = False) -> Image.Image:
    """Every pixel shows the second color of the palette, (200, 100, 50)."""
    image = flat("P", 1)
    image.putpalette(
        [9, 9, 9, 255, 200, 100, 50, 102] if alpha else [9, 9, 9, 200, 100, 50], "RGBA" if alpha else "RGB"
    )
    return image


def png(depth: int, color_type: int, pixels: bytes, **chunks: bytes) -> bytes:
    """A PNG of two pixels in one row, written by hand for what Pillow cannot write."""
    return png_of_size(2, 1, depth, color_type, b"\0" + pixels, **chunks)


def png_of_size(width: int, height: int, depth: int, color_type: int, rows: bytes, **chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), *((name.encode(), data) for name, data in chunks.items())]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def config(channels: int = 3, **more: Any) -> FolderConfig:
    return FolderConfig(path="images", channels=channels, **more)


def decoded(data: bytes, channels: int = 3, background: tuple[int, int, int] = WHITE, limit: int = 10**6) -> np.ndarray:
    return decode(io.BytesIO(data), config(channels, background=background), pixel_limit=limit)


def floats(*values: float) -> bytes:
    return saved(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")


HALF_RED = (255, 0, 0, 102)  # 40 % opaque: on white 0.4 red + 0.6 white
FLAT_FILES = {
    "1-bit black PNG": (saved(flat("1", 0), "PNG"), (0, 0, 0)),
    "1-bit white PNG": (saved(flat("1", 1), "PNG"), WHITE),
    "1-bit white TIFF": (saved(flat("1", 1), "TIFF"), WHITE),
    "1-bit white BMP": (saved(flat("1", 1), "BMP"), WHITE),
    "1-bit white PBM": (saved(flat("1", 1), "PPM"), WHITE),
    "gray PNG": (saved(flat("L", 77), "PNG"), (77, 77, 77)),
    "gray JPEG": (saved(flat("L", 77), "JPEG"), (77, 77, 77)),
    "gray GIF": (saved(flat("L", 77), "GIF"), (77, 77, 77)),
    "gray BMP": (saved(flat("L", 77), "BMP"), (77, 77, 77)),
    "gray PGM": (saved(flat("L", 77), "PPM"), (77, 77, 77)),
    "gray and alpha PNG": (saved(flat("LA", (0, 102)), "PNG"), (153, 153, 153)),
    "gray and alpha TIFF": (saved(flat("LA", (0, 102)), "TIFF"), (153, 153, 153)),
    "palette PNG": (saved(palette(), "PNG"), (200, 100, 50)),
    "palette GIF": (saved(palette(), "GIF"), (200, 100, 50)),
    "palette BMP": (saved(palette(), "BMP"), (200, 100, 50)),
    "palette TIFF": (saved(palette(), "TIFF"), (200, 100, 50)),
    "palette PNG, one color transparent": (saved(palette(), "PNG", transparency=1), WHITE),
    "palette PNG, another color transparent": (saved(palette(), "PNG", transparency=0), (200, 100, 50)),
    "palette PNG, tRNS alpha": (saved(palette(), "PNG", transparency=b"\xff\x66"), (233, 193, 173)),
    "palette PNG, alpha palette": (saved(palette(alpha=True), "PNG"), (233, 193, 173)),
    "palette GIF, one color transparent": (saved(palette(), "GIF", transparency=1), WHITE),
    "RGB PNG": (saved(flat("RGB", (10, 20, 30)), "PNG"), (10, 20, 30)),
    "RGB JPEG": (saved(flat("RGB", (10, 20, 30)), "JPEG", quality=100), (10, 20, 30)),
    "RGB WEBP": (saved(flat("RGB", (10, 20, 30)), "WEBP", lossless=True), (10, 20, 30)),
    "RGB BMP": (saved(flat("RGB", (10, 20, 30)), "BMP"), (10, 20, 30)),
    "RGB TIFF": (saved(flat("RGB", (10, 20, 30)), "TIFF"), (10, 20, 30)),
    "RGB TIFF, LZW": (saved(flat("RGB", (10, 20, 30)), "TIFF", compression="tiff_lzw"), (10, 20, 30)),
    "RGB PPM": (saved(flat("RGB", (10, 20, 30)), "PPM"), (10, 20, 30)),
    "RGB PNG, one color transparent": (saved(flat("RGB", (255, 0, 0)), "PNG", transparency=(255, 0, 0)), WHITE),
    "RGBA PNG, transparent red": (saved(flat("RGBA", (255, 0, 0, 0)), "PNG"), WHITE),
    "RGBA PNG, opaque red": (saved(flat("RGBA", (255, 0, 0, 255)), "PNG"), (255, 0, 0)),
    "RGBA PNG": (saved(flat("RGBA", HALF_RED), "PNG"), (255, 153, 153)),
    "RGBA WEBP": (saved(flat("RGBA", HALF_RED), "WEBP", lossless=True), (255, 153, 153)),
    "RGBA TIFF": (saved(flat("RGBA", HALF_RED), "TIFF"), (255, 153, 153)),
    "RGB JPEG 2000": (saved(flat("RGB", (10, 20, 30)), "JPEG2000"), (10, 20, 30)),
    "RGBA JPEG 2000": (saved(flat("RGBA", HALF_RED), "JPEG2000"), (255, 153, 153)),
    "JPEG 2000 without a container": (saved(flat("RGB", (10, 20, 30)), "JPEG2000", no_jp2=True), (10, 20, 30)),
    "16-bit gray JPEG 2000": (saved(Image.fromarray(np.full((4, 6), 0x8080, np.uint16)), "JPEG2000"), (128,) * 3),
    "RGB AVIF": (saved(flat("RGB", (10, 20, 30)), "AVIF", quality=100), (10, 20, 30)),
    "RGBA AVIF": (saved(flat("RGBA", HALF_RED), "AVIF", quality=100), (255, 153, 153)),
    "RGB HEIC": (saved(flat("RGB", (10, 20, 30)), "HEIF", quality=100, chroma=444), (10, 20, 30)),
    "RGBA HEIC": (saved(flat("RGBA", HALF_RED), "HEIF", quality=100, chroma=444), (255, 153, 153)),
    "RGBX TIFF": (saved(flat("RGBX", (10, 20, 30, 0)), "TIFF"), (10, 20, 30)),
    "CMYK TIFF": (saved(flat("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "CMYK TIFF, half black": (saved(flat("CMYK", (0, 0, 0, 128)), "TIFF"), (127, 127, 127)),
    "CMYK JPEG": (saved(flat("CMYK", (255, 0, 0, 0)), "JPEG", quality=100), (0, 255, 255)),
    "YCbCr TIFF": (saved(flat("YCbCr", (76, 85, 255)), "TIFF"), (254, 0, 0)),
    "YCbCr JPEG": (saved(flat("YCbCr", (76, 85, 255)), "JPEG", quality=100), (254, 0, 0)),
    "LAB TIFF, white": (saved(flat("LAB", (255, 128, 128)), "TIFF"), WHITE),
    "LAB TIFF, L* of 50": (saved(flat("LAB", (128, 128, 128)), "TIFF"), (119, 119, 119)),
    "float TIFF, 0 to 1": (floats(0.5), (128, 128, 128)),
    "float TIFF, 0 to 255": (floats(77.4), (77, 77, 77)),
    "16-bit RGB PNG": (png(16, 2, b"\x80\x80\x40\x40\x20\x20" * 2), (128, 64, 32)),
    "16-bit RGBA PNG": (png(16, 6, b"\xff\xff\0\0\0\0\x66\x66" * 2), (255, 153, 153)),
    "16-bit gray and alpha PNG": (png(16, 4, b"\0\0\x66\x66" * 2), (153, 153, 153)),
}
FLAT_IMAGES = {
    "RGBa": (flat("RGBA", HALF_RED).convert("RGBa"), (255, 153, 153)),
    "La": (flat("LA", (0, 102)).convert("La"), (153, 153, 153)),
    "PA": (palette(alpha=True).convert("PA"), (233, 193, 173)),
    "RGBX": (flat("RGBX", (10, 20, 30, 7)), (10, 20, 30)),
    "HSV": (flat("HSV", (85, 255, 255)), (0, 255, 0)),
    "I;16L": (Image.frombytes("I;16L", (1, 1), b"\x34\x12"), (18, 18, 18)),
    "I;16B": (Image.frombytes("I;16B", (1, 1), b"\x12\x34"), (18, 18, 18)),
    "I;16N": (Image.frombytes("I;16N", (1, 1), struct.pack("=H", 0x1234)), (18, 18, 18)),
}
RAMPS = {
    "PNG": saved(Image.fromarray(RAMP), "PNG"),
    "little-endian TIFF": saved(Image.frombytes("I;16", (256, 1), RAMP.astype("<u2").tobytes()), "TIFF"),
    "big-endian TIFF": saved(Image.frombytes("I;16B", (256, 1), RAMP.astype(">u2").tobytes()), "TIFF"),
    "32-bit TIFF": saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "PGM": saved(Image.fromarray(RAMP), "PPM"),
}


@pytest.mark.parametrize(("data", "expected"), FLAT_FILES.values(), ids=FLAT_FILES)
def test_a_file_of_each_kind_has_its_documented_color(data: bytes, expected: tuple[int, int, int]) -> None:
    difference = decoded(data).astype(int) - np.array(expected)[:, None, None]
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(("image", "expected"), FLAT_IMAGES.values(), ids=FLAT_IMAGES)
def test_an_image_of_each_mode_has_its_documented_color(image: Image.Image, expected: tuple[int, int, int]) -> None:
    difference = to_array(image, config()).astype(int) - np.array(expected)[:, None, None]
    assert np.abs(difference).max() <= 1


def test_every_mode_of_pillow_is_decoded_to_the_asked_channels() -> None:
    for mode in Image.MODES:
        for channels in (1, 2, 3, 4):
            assert to_array(Image.new(mode, (3, 2)), config(channels)).shape == (channels, 2, 3)


@pytest.mark.parametrize("data", RAMPS.values(), ids=RAMPS)
def test_a_16_bit_ramp_keeps_its_whole_range(data: bytes) -> None:
    assert decoded(data, channels=1)[0, 0].tolist() == list(range(256))


def test_16_bits_are_rounded_to_the_nearest_level() -> None:
    values = np.array([[128, 129, 385, 386, 65406, 65407]], dtype=np.uint16)
    assert decoded(saved(Image.fromarray(values), "PNG"), channels=1)[0, 0].tolist() == [0, 1, 1, 2, 254, 255]


def test_a_float_image_up_to_1_is_not_black() -> None:
    assert decoded(floats(0, 0.25, 1), channels=1)[0, 0].tolist() == [0, 64, 255]
    assert decoded(floats(0, 1, 255), channels=1)[0, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("values", [(-0.1, 0.5), (0, 256), (0, np.nan), (0, np.inf)])
def test_floats_on_no_known_scale_are_unreadable(values: tuple[float, ...]) -> None:
    with pytest.raises(UnreadableImage, match="float pixels"):
        decoded(floats(*values))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_beyond_16_bits_are_unreadable(value: int) -> None:
    with pytest.raises(UnreadableImage, match="integer pixels"):
        decoded(saved(Image.fromarray(np.array([[0, value]], dtype=np.int32)), "TIFF"))


KEYED = {
    "1-bit gray": (png(1, 0, b"\x40", tRNS=b"\0\1"), 1, [255, 0]),
    "2-bit gray": (png(2, 0, b"\x60", tRNS=b"\0\1"), 0, [0, 255]),
    "4-bit gray": (png(4, 0, b"\x35", tRNS=b"\0\3"), 0, [0, 255]),
    "8-bit gray": (png(8, 0, b"\x07\x09", tRNS=b"\0\7"), 0, [0, 255]),
    "16-bit gray": (png(16, 0, b"\x12\x34\x12\x35", tRNS=b"\x12\x34"), 0, [0, 255]),
    "8-bit RGB": (png(8, 2, b"\1\2\3\4\5\6", tRNS=b"\0\1\0\2\0\3"), 0, [0, 255]),
    "16-bit RGB": (png(16, 2, b"\x12\x34" * 3 + b"\x77\x77" * 3, tRNS=b"\x12\x34" * 3), 0, [0, 255]),
}


@pytest.mark.parametrize(("data", "transparent", "alpha"), KEYED.values(), ids=KEYED)
def test_a_transparent_color_is_transparent_at_every_depth(data: bytes, transparent: int, alpha: list[int]) -> None:
    assert decoded(data, channels=4)[3, 0].tolist() == alpha
    assert decoded(data, background=(1, 2, 3))[:, 0, transparent].tolist() == [1, 2, 3]


def test_two_and_four_channels_keep_the_alpha_and_the_color_below_it() -> None:
    data = saved(flat("RGBA", (200, 100, 50, 102)), "PNG")
    assert decoded(data, channels=4)[:, 0, 0].tolist() == [200, 100, 50, 102]
    assert decoded(data, channels=2)[:, 0, 0].tolist() == [124, 102]
    assert decoded(saved(flat("RGB", (200, 100, 50)), "PNG"), channels=2)[:, 0, 0].tolist() == [124, 255]


def test_gray_is_the_luma_of_the_color_laid_on_the_background() -> None:
    data = saved(flat("LA", (0, 102)), "PNG")
    assert decoded(data, channels=1, background=(255, 0, 0))[:, 0, 0].tolist() == [round(0.299 * 153)]
    assert decoded(saved(flat("L", 77), "PNG"), channels=1)[:, 0, 0].tolist() == [77]


# For each orientation, where the file's first row and first column belong in the picture (EXIF 2.3, 4.6.4).
SIDES = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left"}
SIDES |= {5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom"}


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", SIDES)
def test_an_image_is_upright_for_each_exif_orientation(orientation: int, file_format: str) -> None:
    seen = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    first_row, first_column = SIDES[orientation].split()
    rows_run_down = first_row in ("top", "bottom")
    height, width = (4, 6) if rows_run_down else (6, 4)
    stored = np.empty((height, width), dtype=np.uint8)
    for row in range(height):
        for column in range(width):
            down, right = (row, column) if rows_run_down else (column, row)
            down = down if "top" in (first_row, first_column) else 3 - down
            right = right if "left" in (first_row, first_column) else 5 - right
            stored[row, column] = seen[down, right]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(
        Image.fromarray(stored), file_format, exif=exif, **({"lossless": True} if file_format == "WEBP" else {})
    )
    assert decoded(data, channels=1)[0].tolist() == seen.tolist()


QUARTERS = np.kron(np.array([[0, 80], [160, 240]], dtype=np.uint8), np.ones((16, 24), dtype=np.uint8))
FROM_UPRIGHT = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that stores a picture so


@pytest.mark.parametrize("orientation", FROM_UPRIGHT)
def test_an_avif_is_turned_exactly_once(orientation: int) -> None:
    upright, how = Image.fromarray(QUARTERS), FROM_UPRIGHT[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation  # written as the container's own rotation and mirroring
    data = saved(upright if how is None else upright.transpose(how), "AVIF", exif=exif, quality=95)
    assert np.abs(decoded(data, channels=1)[0].astype(int) - QUARTERS)[::4, ::4].max() < 12


def test_a_heic_is_turned_exactly_once() -> None:
    """As phones write it: the container says how to turn the picture, and EXIF says it again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(QUARTERS), "HEIF", exif=exif, quality=95)
    crop = data.index(b"clap") - 4  # of the block of 64 x 64 that was encoded
    (size,) = struct.unpack(">I", data[crop : crop + 4])
    turn = struct.pack(">I4sB", size, b"irot", 3).ljust(size, b"\0")  # by three quarters to the left
    pixels = decoded(data[:crop] + turn + data[crop + size :], channels=1)[0, :48, 32:].astype(int)
    assert np.abs(pixels - np.rot90(QUARTERS, -1))[2::4, 2::4].max() < 12


DAMAGED_EXIF = saved(flat("L", 77), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(200)))


def test_damaged_exif_costs_nothing_but_the_orientation() -> None:
    assert decoded(DAMAGED_EXIF, channels=1)[0, 0, 0] == 77


def test_a_warning_of_pillow_about_a_file_reaches_nobody() -> None:
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        Image.open(io.BytesIO(DAMAGED_EXIF)).getexif()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoded(DAMAGED_EXIF)
    assert caught == []


def test_only_the_first_frame_of_an_animation_is_read() -> None:
    for name in ("GIF", "PNG", "WEBP", "AVIF", "HEIF"):
        data = saved(flat("RGB", (10,) * 3), name, save_all=True, append_images=[flat("RGB", (200,) * 3)])
        assert abs(int(decoded(data, channels=1)[0, 0, 0]) - 10) <= 1, name


def test_a_sound_png_with_a_large_profile_or_text_is_no_longer_unreadable() -> None:
    assert decoded(saved(flat("L", 77), "PNG", icc_profile=bytes(2_000_000)), channels=1)[0, 0, 0] == 77
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 5_000_000, zip=True)
    assert decoded(saved(flat("L", 77), "PNG", pnginfo=text), channels=1)[0, 0, 0] == 77


def test_a_bomb_of_text_is_refused_all_the_same() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 20_000_000, zip=True)
    with pytest.raises(UnreadableImage, match="MAX_TEXT_CHUNK"):
        decoded(saved(flat("L", 77), "PNG", pnginfo=text))


def test_files_of_every_common_ending_are_images() -> None:
    for ending in ["jfif", "jpe", "jif", "pjpeg", "apng", "jp2", "j2k", "jpx", "jpf", "avif", "heic", "heif"]:
        assert f".{ending}" in EXTENSIONS, ending
    assert len(set(EXTENSIONS)) == len(EXTENSIONS) and NEEDS == {}


def test_the_documents_name_every_ending() -> None:
    page = (ROOT / "docs" / "images.md").read_text()
    assert [ending for ending in EXTENSIONS if f"`{ending}`" not in page] == []


WITHOUT_HEIF = """
import io, sys
sys.modules["pillow_heif"] = None
from ldm.data.config import FolderConfig
from ldm.data.decoding import EXTENSIONS, NEEDS, UnreadableImage, decode
print(".heic" in EXTENSIONS, ".avif" in EXTENSIONS, NEEDS[".heic"])
try:
    decode(io.BytesIO(sys.stdin.buffer.read()), FolderConfig(path="x"), pixel_limit=100)
except UnreadableImage as error:
    print(error.reason)
"""


def test_without_its_package_heic_is_passed_over_with_the_advice_to_install_it() -> None:
    heic = saved(flat("RGB", 0), "HEIF")
    found = subprocess.run([sys.executable, "-c", WITHOUT_HEIF], input=heic, capture_output=True, check=True)
    advice = "pip install 'latent-diffusion-trainer[heic]'"
    assert found.stdout.decode().splitlines() == [f"False True {advice}", f"a HEIC image: {advice}"]


WHOLE = {name: saved(Image.fromarray(SMOOTH), name) for name in ("JPEG", "GIF", "BMP", "PPM")}
WITH_ALPHA = ("PNG", "TIFF", "WEBP", "JPEG2000", "AVIF", "HEIF")
WHOLE |= {name: saved(Image.merge("RGBA", [Image.fromarray(SMOOTH)] * 4), name) for name in WITH_ALPHA}


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_unreadable(name: str) -> None:
    assert decoded(WHOLE[name]).shape == (3, 40, 48)
    for length in (0, 1, 8, len(WHOLE[name]) // 2):
        with pytest.raises(UnreadableImage):
            decoded(WHOLE[name][:length])


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "JPEG2000", "AVIF", "HEIF"])
def test_mutated_bytes_give_an_image_or_are_unreadable_and_nothing_else(name: str) -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        data = np.frombuffer(WHOLE[name], dtype=np.uint8).copy()
        reach = len(data) if rng.random() < 0.5 else min(len(data), 200)  # half of them in the header
        places = rng.integers(0, reach, size=rng.integers(1, 12))
        data[places] = rng.integers(0, 256, size=len(places))
        try:
            image = decoded(data.tobytes(), channels=4)
            assert image.dtype == np.uint8 and image.shape[0] == 4
            outcomes.add("image")
        except UnreadableImage as error:
            assert error.reason and "\n" not in str(error)
            outcomes.add("unreadable")
    assert outcomes == {"image", "unreadable"}


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    data = png_of_size(side, side, 8, 6, bytes(1000))
    start = time.perf_counter()
    with pytest.raises(UnreadableImage, match="pixels"):
        decoded(data, limit=100_000_000)
    assert time.perf_counter() - start < 1


def test_an_image_at_the_pixel_limit_is_read_and_one_above_it_is_not() -> None:
    data = saved(flat("L", 0), "PNG")
    assert decoded(data, limit=24).shape == (3, 4, 6)
    with pytest.raises(UnreadableImage, match="6 x 4 pixels"):
        decoded(data, limit=23)


def test_formats_outside_the_list_are_not_opened() -> None:
    for name in ("EPS", "TGA", "ICO", "PDF"):
        with pytest.raises(UnreadableImage, match="known format"):
            decoded(saved(flat("RGB", 0), name))


def test_a_missing_file_is_unreadable_with_its_path(tmp_path) -> None:
    with pytest.raises(UnreadableImage, match=r"gone\.png: .*No such file") as caught:
        decode(tmp_path / "gone.png", config(), pixel_limit=100)
    assert caught.value.path == str(tmp_path / "gone.png")


def test_decoding_in_threads_leaves_the_warning_filters_as_they_were() -> None:
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(decoded, [WHOLE["PNG"], WHOLE["JPEG"]] * 200))
        after = list(warnings.filters)
    finally:
        sys.setswitchinterval(interval)
        warnings.filters[:] = before
    assert len(images) == 400 and after == before


def test_fit_brings_the_shorter_side_to_size_and_keeps_the_proportions() -> None:
    image = np.zeros((3, 40, 60), dtype=np.uint8)
    assert fit(image, (20, 20), resize=True).shape == (3, 20, 30)
    assert fit(image, (80, 80), resize=False).shape == (3, 80, 120)
    assert fit(image, (20, 20), resize=False) is image
    assert fit(image, (40, 40), resize=True) is image


def test_fit_is_antialiased() -> None:
    checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None]
    assert np.abs(fit(checkerboard, (16, 16), resize=True)[:, 2:-2, 2:-2].astype(int) - 128).max() <= 2


def at_each_depth(image: np.ndarray) -> list[np.ndarray]:
    """uint8, uint16 and float32 of what `fit` makes of the same image."""
    images = image, image.astype(np.uint16) * 257, (image / 127.5 - 1).astype(np.float32)
    return [fit(one, (30, 44), resize=True) for one in images]


def test_fit_is_the_same_at_every_depth() -> None:
    coarse, fine, real = at_each_depth(SMOOTH[None])
    assert (coarse.shape, fine.dtype, real.dtype) == ((1, 37, 44), np.uint16, np.float32)
    assert np.abs(fine / 257 - coarse).max() <= 1 and np.abs((real + 1) * 127.5 - fine / 257).max() < 0.01


def test_fit_clips_what_overshoots_at_every_depth() -> None:
    edges = np.zeros((1, 40, 48), dtype=np.uint8)
    edges[:, 9:23, 5:31] = 255
    assert [(one.min(), one.max()) for one in at_each_depth(edges)] == [(0, 255), (0, 65535), (-1, 1)]


def test_center_crop_cuts_the_middle() -> None:
    image = np.arange(5 * 7).reshape(1, 5, 7)
    assert center_crop(image, (3, 3)).tolist() == [[[9, 10, 11], [16, 17, 18], [23, 24, 25]]]
    assert center_crop(image, (1, 5)).tolist() == [[[15, 16, 17, 18, 19]]]


def test_a_folder_is_listed_in_order_without_hidden_files_or_loops(tmp_path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a/x/1.webp", ".hidden/1.png", "b/.1.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "x")
    assert FolderTree(tmp_path).names == ["a/again/1.webp", "b/1.png", "b/2.JPG", "b/notes.txt"]


# ---- JPEGs, coarsely


@pytest.mark.parametrize(("orientation", "upright"), [(1, (240, 400)), (6, (400, 240))])
def test_a_draft_of_a_large_jpeg_is_nearly_the_same_image_of_fewer_pixels(orientation, upright) -> None:
    waves = np.sin(np.add.outer(np.arange(240) / 9, np.arange(400) / 15))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.stack([127 + 100 * waves] * 3, -1).astype(np.uint8))
    data = saved(picture, "JPEG", quality=95, exif=exif.tobytes())
    exact, draft = (decode(io.BytesIO(data), config(size=(60, 50), decode=how), pixel_limit=10**6) for how in HOW)
    assert exact.shape[1:] == upright and draft.shape[1:] == tuple(side // 4 for side in upright)
    same = [fit(image, (60, 50), resize=True).astype(float) for image in (exact, draft)]
    assert same[0].shape == same[1].shape and 0 < abs(same[0] - same[1]).mean() < 2


@pytest.mark.parametrize(
    ("file_format", "size", "resize"), [("JPEG", 25, True), ("PNG", 10, True), ("JPEG", 10, False)]
)
def test_of_other_files_a_draft_is_the_image_itself(file_format: str, size: int, resize: bool) -> None:
    """Those that are no JPEG, less than twice as large as they have to be, or not scaled at all."""
    data = saved(Image.fromarray(SMOOTH), file_format)
    images = [decode(io.BytesIO(data), config(size=size, resize=resize, decode=how), pixel_limit=10**6) for how in HOW]
    assert np.array_equal(*images) and images[0].shape[1:] == SMOOTH.shape
