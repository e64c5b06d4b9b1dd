"""Mutated compressed files: bit flips, truncation, splices, crafted headers with a checksum that fits."""

import random
import zlib
from collections.abc import Iterator, Sequence

from ldm.compression.container import CHECKSUM, number_bytes


def sealed(file: bytes) -> bytes:
    """The file with the checksum that its other bytes have."""
    start, rest = file[: CHECKSUM.start], file[CHECKSUM.stop :]
    return start + zlib.crc32(start + rest).to_bytes(4, "big") + rest


def crafted(file: bytes, numbers: Sequence[int], payload: bytes) -> bytes:
    """A file whose header claims these numbers, with these symbols and a checksum that fits."""
    return sealed(file[: CHECKSUM.stop] + b"".join(map(number_bytes, numbers)) + payload)


def mutated(files: Sequence[bytes], count: int, *, seed: int = 0) -> Iterator[bytes]:
    """So many files that are not quite these."""
    rng = random.Random(seed)
    sizes = [0, 1, 2, 7, 12, 13, 64, 1000, 4096, 65535, 2**20, 2**31, 2**34]
    for _ in range(count):
        file, other = rng.choice(files), rng.choice(files)
        kind = rng.randrange(6)
        if kind == 0:
            place = rng.randrange(len(file))
            file = file[:place] + bytes([file[place] ^ 1 << rng.randrange(8)]) + file[place + 1 :]
        elif kind == 1:
            file = file[: rng.randrange(len(file))]
        elif kind == 2:
            file = file[: rng.randrange(len(file))] + other[rng.randrange(len(other)) :]
        elif kind == 3:
            file = file + rng.randbytes(rng.randrange(1, 40))
        elif kind == 4:
            payload = rng.choice([file[CHECKSUM.stop + 4 :], b"", rng.randbytes(rng.randrange(200)), bytes(100)])
            file = crafted(file, [rng.choice(sizes), rng.choice(sizes), rng.choice(sizes)], payload)
        else:
            place = rng.randrange(CHECKSUM.stop, len(file))
            file = file[:place] + rng.randbytes(rng.randrange(1, 9)) + file[place + rng.randrange(9) :]
        # Half of them with a checksum that fits, so that what lies behind it is tried too.
        yield sealed(file) if rng.random() < 0.5 else file
