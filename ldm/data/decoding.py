"""Decodes image files: every kind of pixel is treated on purpose, and every failure is an UnreadableImage."""

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError, features

from ldm.data.bit_depth import to_bit_depth, with_channels
from ldm.data.color_profile import jpeg2000_profile, to_srgb
from ldm.data.config import DataConfig
from ldm.data.image_formats import FORMATS
from ldm.data.npy_tiff import NPY_START, TIFF_STARTS, Stored, check_width, read_npy, read_tiff

# What is to be done before files of a format can be read, where something is missing on this machine.
ADVICE = {
    name: advice
    for name, has_it, advice in (
        ("HEIF", find_spec("pillow_heif") is not None, "pip install 'latent-diffusion-trainer[heic]'"),
        ("AVIF", features.check("avif"), "install a Pillow that is built with AVIF"),
        ("JPEG2000", features.check("jpg_2000"), "install a Pillow that is built with OpenJPEG"),
    )
    if not has_it
}
NEEDS = {f".{ending}": advice for name, advice in ADVICE.items() for ending in FORMATS[name]}
EXTENSIONS = tuple(
    [f".{ending}" for name, endings in FORMATS.items() if name not in ADVICE for ending in endings] + [".npy"]
)

# Text and color profiles in a PNG, unpacked: of a file, and of one chunk of it. Pillow's limits are 64 and 1 MiB.
PngImagePlugin.MAX_TEXT_MEMORY, PngImagePlugin.MAX_TEXT_CHUNK = 2**27, 2**24

# How an image with this EXIF orientation is brought upright: transposed first, then mirrored (rows, columns).
ORIENTATIONS = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}


class UnreadableImage(Exception):
    """A file that is not a readable image; `reason` is one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(file: str | Path | IO[bytes], config: DataConfig, *, pixel_limit: int) -> np.ndarray:
    """The image in a file as [channels, height, width] of the depth of `config`, upright as its EXIF says.

    Only the first frame of an animation or page of a document is read (of five channels and more: all pages). Colors of
    8 bits are converted to sRGB from what the file's color profile says. The size is checked before anything is
    decoded; Pillow's own limit of 178,956,970 pixels holds above `pixel_limit`. Truncated files are unreadable, and so
    is whatever makes a decoder raise. An unreadable EXIF block only costs the orientation. `to_array` and
    `to_bit_depth` say what becomes of each kind of pixel.
    """
    for library in ("PIL", "tifffile"):  # what is wrong with a file is raised; it would also be logged, line by line
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    try:
        with open(file, "rb") if isinstance(file, str | Path) else nullcontext(file) as stream:
            return _decoded(stream, config, pixel_limit)
    except Exception as error:
        path = file if isinstance(file, str | Path) else getattr(file, "name", "image")
        raise UnreadableImage(str(path), _reason(error)) from error


def decode_bytes(content: bytes, path: str, config: DataConfig, *, pixel_limit: int) -> np.ndarray:
    """The same of the content of a file, which errors call `path`."""
    try:
        return decode(io.BytesIO(content), config, pixel_limit=pixel_limit)
    except UnreadableImage as error:
        raise UnreadableImage(path, error.reason) from error


def to_array(image: Image.Image, config: DataConfig) -> np.ndarray:
    """A Pillow image of any mode as [channels, height, width] of the depth of `config`, for up to four channels.

    - 1, L, P, RGB, RGBX, YCbCr, CMYK: as their color profile says or, without one, as Pillow converts them to RGB.
    - LAB, HSV: as Pillow converts them to RGB.
    - I;16 in either byte order, and I: 16 bits, 0 to 65535; I beyond that range is refused.
    - F: as `to_bit_depth` has floats.
    - PNG of 16 bits with alpha or color: Pillow keeps the upper eight, at most one level of 256 away from rounding.
    - Transparency is an alpha channel (LA, PA, RGBA; divided out of La, RGBa), a palette's, or one transparent color.
    """
    if config.channels > 4:
        raise ValueError(f"{len(image.getbands())} channels where data.channels is {config.channels}")
    color, alpha = _color_and_alpha(image)
    if alpha is not None:
        alpha = to_bit_depth(alpha, config)
    return with_channels(to_bit_depth(color, config, bytes_too=True), alpha, config)


def fit(image: np.ndarray, sides: tuple[int, int], *, resize: bool) -> np.ndarray:
    """The image scaled until it just covers height and width `sides`; unless `resize`, only if it is too small to.

    Antialiased and bicubic, each channel for itself, keeping the proportions.
    """
    height, width = fitted(*image.shape[1:], sides=sides, resize=resize)
    if (height, width) == image.shape[1:]:
        return image
    return np.stack([_resized(channel, (width, height)) for channel in image])


def fitted(height: int, width: int, *, sides: tuple[int, int], resize: bool) -> tuple[int, int]:
    """Height and width that `fit` scales an image to."""
    new, old = covering(height, width, sides)
    if new == old or (new < old and not resize):
        return height, width
    return round(height * new / old), round(width * new / old)


def covering(height: int, width: int, sides: tuple[int, int]) -> tuple[int, int]:
    """The factor by which an image just covers `sides`, as a fraction: the new and the old length of one side."""
    return (sides[0], height) if sides[0] * width >= sides[1] * height else (sides[1], width)


def center_crop(image: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """The rectangle of height and width `sides` in the middle."""
    top, left = ((whole - side) // 2 for whole, side in zip(image.shape[1:], sides, strict=True))
    return image[:, top : top + sides[0], left : left + sides[1]]


def _decoded(stream: IO[bytes], config: DataConfig, pixel_limit: int) -> np.ndarray:
    start, asked = stream.read(12), {"channels": config.channels, "pixel_limit": pixel_limit}
    stream.seek(0)
    if start.startswith(NPY_START):
        with _quiet():
            stored = read_npy(stream, **asked)
        return to_bit_depth(stored.values, config)
    if start.startswith(TIFF_STARTS) and not _pillow_keeps_all(stream, config):
        stream.seek(0)
        return _upright_levels(read_tiff(stream, **asked), config)
    stream.seek(0)
    with _quiet():
        image = Image.open(stream, formats=_formats(start))
    with image:
        width, height = image.size
        if not 0 < width * height <= pixel_limit:
            raise ValueError(f"{width} x {height} pixels; from 1 to {pixel_limit} are allowed")
        if config.decode == "draft" and config.resize:
            _draft(image, config.sides)
        _match_key_to_samples(image)
        with _quiet() if image.format == "TIFF" else nullcontext():  # loading a TIFF reads its headers once more
            image.load()
        if image.format == "TIFF" and image.mode == "I" and max(_bits_per_sample(image)) == 32:  # Pillow widens 16
            check_width(np.asarray(image))
        if image.format == "JPEG2000":
            image.info["icc_profile"] = jpeg2000_profile(stream)
        return _upright(to_array(image, config), _orientation(image))


def _draft(image: ImageFile.ImageFile, sides: tuple[int, int]) -> None:
    """Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, where that still covers `sides`; others stay as they are.

    Its blocks are then transformed back to fewer pixels, which is a good antialiased reduction.
    """
    transposed, *_ = ORIENTATIONS.get(_orientation(image), (False,))
    height, width = fitted(image.height, image.width, sides=sides[::-1] if transposed else sides, resize=True)
    image.draft(None, (width, height))  # does nothing in other formats


def _formats(start: bytes) -> tuple[str, ...]:
    """The formats of Pillow that a file which starts so may be of: only those in a container of MPEG, or all others."""
    if start[4:8] != b"ftyp":
        return tuple(name for name in FORMATS if name not in ("AVIF", "HEIF"))
    if "HEIF" not in ADVICE:
        _register_heif()
        return ("AVIF", "HEIF")
    if start[8:11] in (b"hei", b"hev"):
        raise ValueError(f"a HEIC image: {ADVICE['HEIF']}")
    return ("AVIF",)


@cache
def _register_heif() -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)


def _pillow_keeps_all(stream: IO[bytes], config: DataConfig) -> bool:
    """Whether Pillow reads this TIFF, with all the bits and channels that the data set keeps."""
    if config.channels > 4:
        return False
    try:
        with _quiet(), Image.open(stream, formats=["TIFF"]) as image:
            tags: Any = image.tag_v2  # type: ignore[attr-defined]
            codec, is_deep = image.tile[0][0], max(_bits_per_sample(image)) > 8
            in_planes = tags.get(ExifTags.Base.PlanarConfiguration) == 2
            if in_planes and (image.mode == "LA" or (is_deep and codec == "raw")):
                return False  # channel after channel: Pillow takes the bytes of one for its values, or one for another
            if codec == "libtiff" and image.mode in ("I", "F") and tags.prefix == b"MM":
                return False  # what libtiff has brought to the order of this machine, Pillow swaps once more
            if not is_deep:
                return True
            white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0  # ignored by Pillow above 8 bits
            return not white_is_zero and (config.depth == "uint8" or len(image.getbands()) == 1)
    except UnidentifiedImageError:
        return False


def _bits_per_sample(tiff: Any) -> tuple[int, ...]:
    return tiff.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))


def _upright_levels(stored: Stored, config: DataConfig) -> np.ndarray:
    """As many channels as the data set has as they are; others as gray or color, perhaps with alpha."""
    values = to_bit_depth(stored.values, config, bytes_too=True)
    if len(values) != config.channels:
        color = values[:3] if len(values) > 2 else np.repeat(values[:1], 3, axis=0)
        values = with_channels(color, values[-1:] if stored.has_alpha else None, config)
    return _upright(values, stored.orientation)


def _resized(channel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One channel at (width, height) `size`; what overshoots is clipped."""
    if channel.dtype == np.uint8:
        return np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC))
    resized = np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    if channel.dtype.kind == "f":
        return resized.clip(-1, 1)
    return np.rint(resized).clip(0, np.iinfo(channel.dtype).max).astype(channel.dtype)


def _color_and_alpha(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """RGB [3, height, width] with all bits that Pillow has, and alpha [1, height, width], uint8; None for opaque."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        key = image.info.get("transparency")
        alpha = np.where(values == key, 0, 255).astype(np.uint8)[None] if isinstance(key, int) else None
        return np.repeat(values[None], 3, axis=0), alpha
    if image.mode == "La":
        image = image.convert("LA")
    image = to_srgb(image)
    pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")).transpose(2, 0, 1)
    return pixels[:3], pixels[3:] if len(pixels) == 4 else None


def _match_key_to_samples(image: ImageFile.ImageFile) -> None:
    """Brings a PNG's transparent color to eight bits where Pillow does so with the pixels but not with the color."""
    key = image.info.get("transparency")
    if image.format != "PNG" or not image.tile:
        return
    samples = image.tile[0].args
    if isinstance(key, int) and samples in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if samples == "L;2" else 17)
    if isinstance(key, tuple) and samples == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, of a loaded image; 1, upright, where there is none or it cannot be read."""
    try:
        with _quiet():
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    transposed, rows, columns = ORIENTATIONS.get(orientation, (False, 1, 1))
    if transposed:
        pixels = pixels.swapaxes(1, 2)
    return np.ascontiguousarray(pixels[:, ::rows, ::columns])


_filters = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Pillow's warnings about odd headers; one thread at a time, as the filters belong to the process."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of a known format ({', '.join(name for name in FORMATS if name not in ADVICE)})"
    return " ".join(str(error).split()) or type(error).__name__
