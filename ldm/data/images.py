"""Image files as arrays: every kind of pixel is treated on purpose, and every failure is a BadImage."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from ldm.errors import DataError

Channels = Literal[1, 2, 3, 4]
Color = tuple[int, int, int]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm")

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


class BadImage(Exception):
    """A file that is not a readable image; `reason` is one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(file: str | Path | IO[bytes], *, channels: Channels, background: Color, pixel_limit: int) -> np.ndarray:
    """The image in a file as uint8 [channels, height, width], upright as its EXIF orientation says.

    Only the first frame of an animation or page of a document is read, and color profiles are ignored. The size is
    checked before anything is decoded; Pillow's own limit of 178,956,970 pixels holds above `pixel_limit`. Truncated
    files are bad, and so is whatever makes Pillow raise. An unreadable EXIF block only costs the orientation.
    `to_array` says what becomes of each mode.
    """
    try:
        with _quiet():
            image = Image.open(file, formats=FORMATS)
        with image:
            width, height = image.size
            if not 0 < width * height <= pixel_limit:
                raise ValueError(f"{width} x {height} pixels; from 1 to {pixel_limit} are allowed")
            _match_key_to_samples(image)
            with _quiet() if image.format == "TIFF" else nullcontext():  # loading a TIFF reads its headers once more
                image.load()
            return _upright(to_array(image, channels=channels, background=background), _orientation(image))
    except Exception as error:
        path = file if isinstance(file, str | Path) else getattr(file, "name", "image")
        raise BadImage(str(path), _reason(error)) from error


def to_array(image: Image.Image, *, channels: Channels, background: Color) -> np.ndarray:
    """A Pillow image of any mode as uint8 [channels, height, width].

    - 1, L, P, RGB, RGBX, YCbCr, CMYK, LAB, HSV: as Pillow converts them to RGB.
    - I;16 in either byte order, and I: 0 to 65535 is scaled to 0 to 255 and rounded; I beyond that range is refused.
    - F: black is 0; white is 1 if no pixel is above 1, else 255. Negative, larger and non-finite values are refused.
    - RGB and RGBA of 16 bits: Pillow keeps the upper eight, at most one level away from rounding.
    - Transparency is an alpha channel (LA, PA, RGBA; divided out of La, RGBa), a palette's, or one transparent color.

    One and three channels are laid on `background`, two and four keep their alpha, opaque where there is none. Gray is
    the luma of ITU-R 601, taken after that.
    """
    color, alpha = _color_and_alpha(image)
    if channels in (1, 3) and alpha is not None:
        color = _laid_on(background, color, alpha)
    if channels in (1, 2):
        color = _luma(color)
    if channels in (1, 3):
        return np.ascontiguousarray(color)
    return np.concatenate([color, np.full_like(color[:1], 255) if alpha is None else alpha])


def fit(image: np.ndarray, size: int, *, resize: bool) -> np.ndarray:
    """The image with its shorter side brought to `size`; unless `resize`, only if that is shorter than `size`.

    Antialiased and bicubic, each channel for itself, keeping the proportions.
    """
    _, height, width = image.shape
    shorter = min(height, width)
    if shorter == size or (shorter > size and not resize):
        return image
    new_size = (round(width * size / shorter), round(height * size / shorter))
    resized = [Image.fromarray(channel).resize(new_size, Image.Resampling.BICUBIC) for channel in image]
    return np.stack([np.asarray(channel) for channel in resized])


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The square of `size` pixels in the middle."""
    top, left = ((side - size) // 2 for side in image.shape[1:])
    return image[:, top : top + size, left : left + size]


def image_names(folder: Path) -> list[str]:
    """The image files in a folder and its sub-folders, by extension: sorted paths from it on, with forward slashes.

    Hidden files and folders are passed over. Links to folders are followed, but no folder is entered twice.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    def enters(path: str) -> bool:
        real = os.path.realpath(path)
        known = real in entered
        entered.add(real)
        return not known

    names, entered = [], {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in sorted(folders) if name[0] != "." and enters(os.path.join(parent, name))]
        found = [name for name in files if name[0] != "." and name.lower().endswith(EXTENSIONS)]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in found]
    return sorted(names)


def _color_and_alpha(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """RGB [3, height, width] and alpha [1, height, width], or None where nothing is transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        key = image.info.get("transparency")
        alpha = np.where(values == key, 0, 255).astype(np.uint8)[None] if isinstance(key, int) else None
        return np.repeat(_eight_bits(values)[None], 3, axis=0), alpha
    if image.mode == "La":
        image = image.convert("LA")
    pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")).transpose(2, 0, 1)
    return pixels[:3], pixels[3:] if len(pixels) == 4 else None


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Integers of 16 bits, or floats on either of their two scales, as uint8."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 255):
            raise ValueError(f"float pixels from {low:g} to {high:g}; they must lie in 0 to 1 or in 0 to 255")
        return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"integer pixels from {low} to {high}; they must lie in 0 to 65535")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _laid_on(background: Color, color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Straight alpha, α color + (1 - α) background, rounded exactly; the sums fit into 16 bits."""
    opacity = alpha.astype(np.uint16)
    behind = np.array(background, dtype=np.uint16)[:, None, None]
    return ((color * opacity + behind * (255 - opacity) + 127) // 255).astype(np.uint8)


def _luma(color: np.ndarray) -> np.ndarray:
    """ITU-R 601: Y = 0.299 R + 0.587 G + 0.114 B, rounded, as [1, height, width]."""
    red, green, blue = color.astype(np.uint32)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)[None]


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
        return f"not an image of a known format ({', '.join(FORMATS)})"
    return " ".join(str(error).split()) or type(error).__name__
