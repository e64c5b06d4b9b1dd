"""The classical image codecs that Pillow has, to be measured beside: files of each, and what of them is no header."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from ldm.pictures import picture


@dataclass(frozen=True)
class ClassicalCodec:
    """A format of Pillow's: the option that sets its rate, and the values of it, from the coarsest to the finest."""

    format: str
    feature: str  # by which Pillow says whether it was built with it
    option: str
    values: tuple[float, ...]
    payload: Callable[[bytes], int]  # bytes that are neither container nor tables
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_there(self) -> bool:
        """Whether this Pillow can write it."""
        return bool(features.check(self.feature))

    def file(self, image: Tensor, value: float) -> bytes:
        """A uint8 image, channels x height x width, as a file."""
        buffer = io.BytesIO()
        setting = [value] if self.option == "quality_layers" else value
        picture(image).save(buffer, self.format, **{self.option: setting}, **self.options)
        return buffer.getvalue()

    @staticmethod
    def image(file: bytes, channels: int) -> Tensor:
        """What a file shows, as uint8, channels x height x width."""
        with Image.open(io.BytesIO(file)) as opened:
            pixels = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1).copy())


def jpeg_payload(file: bytes) -> int:
    """Bytes of the scans of a baseline file: not those of its tables, which every file brings along."""
    return len(file) - jpeg_scan(file) - 2


def jpeg_scan(file: bytes) -> int:
    """Where the entropy-coded bytes of a file's only scan begin."""
    place = 2
    while file[place + 1] != 0xDA:
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    return place + 2 + int.from_bytes(file[place + 2 : place + 4], "big")


def jpeg_2000_payload(file: bytes) -> int:
    """Bytes of the packets of a codestream of one tile, between its start of data and its end."""
    return len(file) - file.index(b"\xff\x93") - 4


def webp_payload(file: bytes) -> int:
    """Bytes of the image chunks, without RIFF's frame."""
    return sum(size for name, size in chunks(file[12:], "little", size_first=False) if name in (b"VP8 ", b"VP8L"))


def avif_payload(file: bytes) -> int:
    """Bytes of the media data box."""
    return sum(size - 8 for name, size in chunks(file, "big", size_first=True) if name == b"mdat")


def chunks(rest: bytes, order: Any, *, size_first: bool) -> Iterator[tuple[bytes, int]]:
    """Name and stated size of what stands one behind the other: of RIFF's chunks, or of ISO's boxes."""
    while len(rest) >= 8:
        first, second = rest[:4], rest[4:8]
        name, size = (second, first) if size_first else (first, second)
        count = int.from_bytes(size, order)
        yield name, count
        rest = rest[max(count, 8) if size_first else 8 + count + count % 2 :]


QUALITIES = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
CLASSICAL_CODECS = {
    "JPEG": ClassicalCodec("JPEG", "jpg", "quality", QUALITIES, jpeg_payload, {"optimize": True}),
    "WebP": ClassicalCodec("WEBP", "webp", "quality", (0, *QUALITIES), webp_payload, {"method": 6}),
    "WebP lossless": ClassicalCodec("WEBP", "webp", "quality", (100,), webp_payload, {"method": 6, "lossless": True}),
    "JPEG 2000": ClassicalCodec(
        "JPEG2000",
        "jpg_2000",
        "quality_layers",
        (16, 20, 23, 25, 27, 29, 31, 34, 38, 42),  # dB
        jpeg_2000_payload,
        {"quality_mode": "dB", "irreversible": True, "no_jp2": True},
    ),
    "AVIF": ClassicalCodec("AVIF", "avif", "quality", (0, *QUALITIES), avif_payload, {"speed": 4}),
}
