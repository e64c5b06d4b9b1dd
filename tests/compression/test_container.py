"""The compressed file: every header comes back, and every other string of bytes is refused at once."""

import time

import pytest

from ldm.compression.container import (
    CHECKSUM,
    LONGEST_NUMBER,
    MAGIC,
    PIXEL_LIMIT,
    VERSION,
    Header,
    header_size,
    number_at,
    number_bytes,
    pack,
    unpack,
)
from ldm.entropy.tables import LARGEST_STEP
from ldm.errors import CodecError, DataError
from tests.support.mutations import crafted, sealed

HEADER = Header(b"abcd", 480, 640, 96, True)


@pytest.mark.parametrize("payload", [b"", b"\0", b"symbols"])
@pytest.mark.parametrize(
    "header", [HEADER, Header(b"\0\0\0\0", 1, 1, 1, False), Header(b"xxxx", 1, PIXEL_LIMIT, 9, True)]
)
def test_a_header_comes_back(header: Header, payload: bytes) -> None:
    file = pack(header, payload)
    assert unpack(file) == (header, payload)
    assert header_size(file) == len(file) - len(payload)


def test_a_header_is_short() -> None:
    assert header_size(pack(Header(b"abcd", 32, 32, 60, True), b"")) == 16


def test_numbers_have_one_way_to_be_written() -> None:
    for number in (0, 1, 127, 128, 300, 2**20, 2**34):
        assert number_at(number_bytes(number) + b"rest") == (number, b"rest")
    for wrong in (b"", b"\x80", b"\x80\x00", b"\xff" * LONGEST_NUMBER, b"\xff" * 9 + b"\1"):
        with pytest.raises(CodecError, match="does not end"):
            number_at(wrong)


def test_no_flipped_bit_is_overlooked() -> None:
    file = pack(HEADER, b"symbols")
    for place in range(8 * len(file)):
        flipped = bytearray(file)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(CodecError):
            unpack(bytes(flipped))


REFUSED = [
    (b"", "not a file of ldm compress"),
    (b"\x89PNG\r\n\x1a\n" + bytes(40), "not a file of ldm compress"),
    (pack(HEADER, b"symbols")[:-1], "cut short or damaged"),
    (sealed(MAGIC + bytes([VERSION + 1]) + pack(HEADER, b"")[len(MAGIC) + 1 :]), "version 2 .* update"),
    (crafted(pack(HEADER, b""), [2**34, 2**34, 100], b""), "claims"),
    (crafted(pack(HEADER, b""), [0, 9, 100], b""), "out of range"),
    (crafted(pack(HEADER, b""), [9, 9, 0], b""), "out of range"),
    (crafted(pack(HEADER, b""), [9, 9, 2 * LARGEST_STEP + 2], b""), "out of range"),
    (sealed(pack(HEADER, b"")[: CHECKSUM.stop]), "does not end"),
]


@pytest.mark.parametrize(("file", "words"), REFUSED)
def test_what_is_no_file_of_ours_is_refused_at_once_in_one_line(file: bytes, words: str) -> None:
    begun = time.process_time()
    with pytest.raises(CodecError, match=words) as refusal:
        unpack(file)
    assert time.process_time() - begun < 0.1
    assert "\n" not in str(refusal.value) and isinstance(refusal.value, DataError)
