"""The compressed file: magic, version, codec, checksum, size and step of one image, then the coded symbols.

    LDMC | version, 1 byte | codec, 4 bytes | checksum, 4 bytes | height | width | 2 step + centroids | symbols

Height, width and what follows are of variable length, 7 bits to a byte. The checksum (CRC-32) is that of all before and
after it. Whatever a header claims is checked before anything is made of that size.
"""

import zlib
from dataclasses import dataclass

from ldm.entropy.tables import LARGEST_STEP, LEAST_BITS
from ldm.errors import CodecError

MAGIC = b"LDMC"
VERSION = 1
CODEC_BYTES = 4
CHECKSUM = slice(len(MAGIC) + 1 + CODEC_BYTES, len(MAGIC) + 1 + CODEC_BYTES + 4)
PIXEL_LIMIT = 100_000_000
LONGEST_NUMBER = 5  # bytes
SLACK = 64  # bits by which the coder may stay below what the symbols cost


@dataclass(frozen=True)
class Header:
    """What a compressed file says of its image, beside the symbols."""

    codec: bytes  # the first bytes of the codec's hash
    height: int
    width: int
    step: int  # in positions, where the channel's ratio is 1
    has_centroids: bool  # whether a symbol is decoded to the centroid of its cell, not the center

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.height, self.width


def pack(header: Header, payload: bytes) -> bytes:
    """The file."""
    start = MAGIC + bytes([VERSION]) + header.codec
    rest = b"".join(map(number_bytes, (header.height, header.width, 2 * header.step + header.has_centroids))) + payload
    return start + zlib.crc32(start + rest).to_bytes(4, "big") + rest


def unpack(file: bytes) -> tuple[Header, bytes]:
    """Header and symbols of a file that is whole, or CodecError."""
    if len(file) < CHECKSUM.stop or not file.startswith(MAGIC):
        raise CodecError("it is not a file of ldm compress")
    if file[len(MAGIC)] != VERSION:
        raise CodecError(
            f"it is of version {file[len(MAGIC)]} of the format, and this program reads version {VERSION}: update it"
        )
    start, rest = file[: CHECKSUM.start], file[CHECKSUM.stop :]
    if zlib.crc32(start + rest).to_bytes(4, "big") != file[CHECKSUM]:
        raise CodecError("it is cut short or damaged: its checksum does not fit")
    height, rest = number_at(rest)
    width, rest = number_at(rest)
    last, rest = number_at(rest)
    header = Header(start[len(MAGIC) + 1 :], height, width, last >> 1, bool(last & 1))
    if not 0 < height * width <= PIXEL_LIMIT or not 1 <= header.step <= LARGEST_STEP:
        raise CodecError(f"its header claims {height} x {width} pixels at step {header.step}, which is out of range")
    return header, rest


def check_plausible(header: Header, latent: tuple[int, int, int], payload: bytes) -> None:
    """Raise CodecError for a header whose latent has more symbols than these bytes can hold."""
    symbols = latent[0] * latent[1] * latent[2]
    if symbols * LEAST_BITS * (1 - 1e-9) > 8 * len(payload) + SLACK:
        raise CodecError(
            f"its header claims {header.height} x {header.width} pixels, more than its {len(payload)} bytes can hold"
        )


def header_size(file: bytes) -> int:
    """Bytes of a whole file that are not symbols."""
    return len(file) - len(unpack(file)[1])


def number_bytes(number: int) -> bytes:
    """A number from 0, 7 bits to a byte, the lowest first; the last byte is below 128."""
    found = b""
    while number >= 128:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def number_at(rest: bytes) -> tuple[int, bytes]:
    """The number at the beginning, written as `number_bytes` does, and what follows it; or CodecError."""
    for length in range(1, LONGEST_NUMBER + 1):
        if length <= len(rest) and rest[length - 1] < 128:
            number = sum((byte & 127) << 7 * place for place, byte in enumerate(rest[:length]))
            if number_bytes(number) == rest[:length]:
                return number, rest[length:]
    raise CodecError("it is damaged: a number of its header does not end")
