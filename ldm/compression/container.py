"""The compressed file: magic, version, codec, checksum, size and step of one image or several, then coded symbols.

    LDMC | version, 1 byte | codec, 4 bytes | checksum, 4 bytes | height | width | 2 step + centroids | symbols
    LDMS | the same | 2 step + centroids | names | runs, and for each run: images, height, width | symbols

Numbers are of variable length, 7 bits to a byte. Names are one to a line, deflated, behind the number of these bytes; a
run is of images of one size, one behind the other. The checksum (CRC-32) is that of all before and after it. Whatever
a header claims is checked before anything is made of that size.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ldm.entropy.tables import LARGEST_STEP, LEAST_BITS
from ldm.errors import CodecError

MAGIC, SOLID_MAGIC = b"LDMC", b"LDMS"  # of one image, and of several
VERSION = 1
CODEC_BYTES = 4
CHECKSUM = slice(len(MAGIC) + 1 + CODEC_BYTES, len(MAGIC) + 1 + CODEC_BYTES + 4)
PIXEL_LIMIT = 100_000_000
LONGEST_NUMBER = 5  # bytes
MOST_NAMES = 2**22  # bytes of names, once they are no longer deflated
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
    numbers = (header.height, header.width, 2 * header.step + header.has_centroids)
    return seal(MAGIC, header.codec, b"".join(map(number_bytes, numbers)) + payload)


def unpack(file: bytes) -> tuple[Header, bytes]:
    """Header and symbols of a file that is whole, or CodecError."""
    codec, rest = unseal(MAGIC, file)
    height, rest = number_at(rest)
    width, rest = number_at(rest)
    last, rest = number_at(rest)
    header = Header(codec, height, width, last >> 1, bool(last & 1))
    check_range(header)
    return header, rest


def pack_solid(headers: Sequence[Header], names: Sequence[str], payload: bytes) -> bytes:
    """The file of several images, which share codec, step and whether there are centroids."""
    first, runs = headers[0], [(list(group), sides) for sides, group in groupby(headers, key=lambda each: each.sides)]
    deflated = zlib.compress("\n".join(names).encode(), 9)
    numbers = [2 * first.step + first.has_centroids, len(deflated)]
    sizes = [len(runs), *(number for group, sides in runs for number in (len(group), *sides))]
    found = [b"".join(map(number_bytes, part)) for part in (numbers, sizes)]
    return seal(SOLID_MAGIC, first.codec, found[0] + deflated + found[1] + payload)


def unpack_solid(file: bytes) -> tuple[list[Header], list[str], bytes]:
    """Headers, names and symbols of a file of several images that is whole, or CodecError."""
    codec, rest = unseal(SOLID_MAGIC, file)
    last, rest = number_at(rest)
    size, rest = number_at(rest)
    names, rest = inflated(rest[:size]), rest[size:]
    runs, rest = number_at(rest)
    headers: list[Header] = []
    for _ in range(runs):
        count, rest = number_at(rest)
        height, rest = number_at(rest)
        width, rest = number_at(rest)
        header = Header(codec, height, width, last >> 1, bool(last & 1))
        check_range(header)
        if len(headers) + count > len(names):
            break
        headers += [header] * count
    if not headers or len(headers) != len(names):
        raise CodecError("it is damaged: it has not as many names as images")
    return headers, names, rest


def inflated(deflated: bytes) -> list[str]:
    """The names, or CodecError."""
    try:
        inflater = zlib.decompressobj()
        names = inflater.decompress(deflated, MOST_NAMES).decode().split("\n")
        whole = inflater.eof and not inflater.unused_data
    except (zlib.error, UnicodeDecodeError) as error:
        raise CodecError("it is damaged: its names cannot be read") from error
    if not whole or not are_names(names):
        raise CodecError("it is damaged: its names are not those of different files inside a folder")
    return names


def are_names(names: Sequence[str]) -> bool:
    """Whether each is a relative path that stays in its folder, and no two are the same."""
    forbidden = any({"", ".", ".."} & set(name.split("/")) or set("\\\0\n") & set(name) for name in names)
    return not forbidden and len(set(names)) == len(names)


def seal(magic: bytes, codec: bytes, rest: bytes) -> bytes:
    """A whole file of what stands behind the checksum."""
    start = magic + bytes([VERSION]) + codec
    return start + zlib.crc32(start + rest).to_bytes(4, "big") + rest


def unseal(magic: bytes, file: bytes) -> tuple[bytes, bytes]:
    """The codec of a file, and what stands behind the checksum; CodecError unless all is whole."""
    if len(file) < CHECKSUM.stop or not file.startswith((MAGIC, SOLID_MAGIC)):
        raise CodecError("it is not a file of ldm compress")
    if not file.startswith(magic):
        several, one = "several images: ldm decompress reads it", "one image"
        raise CodecError(f"it holds {several if magic == MAGIC else one}")
    if file[len(magic)] != VERSION:
        raise CodecError(
            f"it is of version {file[len(magic)]} of the format, and this program reads version {VERSION}: update it"
        )
    start, rest = file[: CHECKSUM.start], file[CHECKSUM.stop :]
    if zlib.crc32(start + rest).to_bytes(4, "big") != file[CHECKSUM]:
        raise CodecError("it is cut short or damaged: its checksum does not fit")
    return start[len(magic) + 1 :], rest


def check_range(header: Header) -> None:
    """Raise CodecError for a size or a step that no file has."""
    if not 0 < header.height * header.width <= PIXEL_LIMIT or not 1 <= header.step <= LARGEST_STEP:
        claimed = f"{header.height} x {header.width} pixels at step {header.step}"
        raise CodecError(f"its header claims {claimed}, which is out of range")


def check_plausible(headers: Sequence[Header], symbols: int, payload: bytes) -> None:
    """Raise CodecError for headers whose latents have more symbols than these bytes can hold."""
    if symbols * LEAST_BITS * (1 - 1e-9) > 8 * len(payload) + SLACK:
        first, rest = headers[0], f" and {len(headers) - 1} more" if len(headers) > 1 else ""
        claimed = f"{first.height} x {first.width} pixels{rest}"
        raise CodecError(f"its header claims {claimed}, more than its {len(payload)} bytes can hold")


def header_size(file: bytes) -> int:
    """Bytes of a whole file that are not symbols."""
    return len(file) - len(unpack_solid(file)[2] if file.startswith(SOLID_MAGIC) else unpack(file)[1])


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
