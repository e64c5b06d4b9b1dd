"""Reads NumPy and TIFF files as they are stored: any number of channels, all of their bits."""

import math
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_START = np.lib.format.MAGIC_PREFIX

MINISBLACK, RGB, PREMULTIPLIED, STRAIGHT = 1, 2, 1, 2  # TIFF 6.0, PhotometricInterpretation and ExtraSamples


@dataclass(frozen=True)
class Stored:
    """The pixels of a file before anything is made of them."""

    values: np.ndarray  # [channels, height, width]
    orientation: int = 1  # as in EXIF, 1 to 8
    has_alpha: bool = False  # the last channel says how opaque the others are


def read_npy(file: IO[bytes], *, channels: int, pixel_limit: int) -> Stored:
    """An array of height x width, or with its channels last or first; last if both axes are `channels` long.

    The header is checked before any data are read, and nothing is unpickled. Raises ValueError, or what NumPy raises.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a .npy file of version {version}; 1.0 and 2.0 are read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in "uif":
        raise ValueError(f"an array of type {dtype}; uint8, uint16 and floats are read")
    if len(shape) not in (2, 3):
        raise ValueError(f"an array of {len(shape)} axes; height, width and perhaps channels are expected")
    last = len(shape) == 2 or shape[2] == channels or (shape[0] != channels and shape[2] <= shape[0])
    found, height, width = (1, *shape) if len(shape) == 2 else (shape[2], *shape[:2]) if last else shape
    _check(found, height, width, channels=channels, pixel_limit=pixel_limit)
    file.seek(0)
    values = np.load(file, allow_pickle=False).astype(dtype.newbyteorder("="), copy=False)
    check_width(values)
    return Stored(values[None] if values.ndim == 2 else values.transpose(2, 0, 1) if last else values)


def read_tiff(file: IO[bytes], *, channels: int, pixel_limit: int) -> Stored:
    """The first page of a TIFF; for five channels and more, pages or planes of one image or its interleaved samples.

    Up to four channels the samples are gray or RGB, perhaps with alpha, and as many as the file has; otherwise they
    are as many as `channels`. Raises ValueError, or what tifffile raises, which is of many types.
    """
    from tifffile import TiffFile

    with TiffFile(file) as tiff:
        page: Any = tiff.pages[0]
        part = page if channels <= 4 else tiff.series[0]
        axes, shape = part.axes, part.shape
        height, width = (shape[axes.index(axis)] for axis in "YX")
        found = math.prod(shape) // max(height * width, 1)
        _check(found, height, width, channels=channels, pixel_limit=pixel_limit, converts=channels <= 4)
        extra = tuple(page.extrasamples)[-1:] if channels <= 4 else ()
        if channels <= 4 and page.photometric not in (MINISBLACK, RGB):
            raise ValueError(f"a TIFF of {page.bitspersample} bits that is neither RGB nor gray with black at 0")
        if extra == (PREMULTIPLIED,):
            raise ValueError(f"a TIFF of {page.bitspersample} bits whose colors are multiplied by their alpha")
        if len(page.dataoffsets) != math.prod(page.chunked):  # tifffile would fill the rest with zeros, one by one
            raise ValueError(f"{len(page.dataoffsets)} strips or tiles of {math.prod(page.chunked)}")
        values = np.moveaxis(part.asarray(maxworkers=1), [axes.index("Y"), axes.index("X")], [-2, -1])
        check_width(values)
        orientation = page.tags.valueof("Orientation", 1)
        return Stored(values.reshape(found, height, width), int(orientation), extra == (STRAIGHT,))


def check_width(values: np.ndarray) -> None:
    """Refuses integers of 32 and 64 bits that never exceed 255: bytes that were stored too wide, as of a list."""
    if values.dtype.kind in "ui" and values.dtype.itemsize > 2 and 0 < (most := values.max()) <= 255:
        raise ValueError(
            f"{values.dtype} values up to {most} would be nearly black, as 65535 is white: save them with"
            " .astype(np.uint8), or with .astype(np.uint16) if they are that dark"
        )


def _check(found: int, height: int, width: int, *, channels: int, pixel_limit: int, converts: bool = False) -> None:
    """Refuses too many pixels, and another number of channels; 1 to 4 of them can be converted into each other."""
    if not (height > 0 and width > 0 and height * width <= pixel_limit):
        raise ValueError(f"{width} x {height} pixels; from 1 to {pixel_limit} are allowed")
    if found != channels and not (converts and 1 <= found <= 4):
        raise ValueError(f"{found} channels where data.channels is {channels}")
