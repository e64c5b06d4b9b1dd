"""Do mutated compressed files ever do anything but decode to an image or raise CodecError?

    python benchmarks/fuzz_codec.py CODEC IMAGE... [--files 10000] [--seed 0]

The images are compressed at several steps, one by one and as a solid file, and the files mutated: flipped bits,
truncation, splices, bytes more or fewer, crafted headers; half of them with a checksum that fits. Each is decoded in
this process under a limit of time and, on Linux, of memory. Whatever is not an image or a CodecError is written to
fuzz-N.ldmc in the current folder, and makes the script fail.
"""

import argparse
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm import Codec
from ldm.compression.container import SOLID_MAGIC
from ldm.compression.files import read_image
from ldm.compression.solid import compress_solid, decompress_solid
from ldm.compression.step_search import Target
from ldm.errors import CodecError

# isort: off
sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.mutations import mutated

SECONDS, MEMORY = 5, 2**30
STEPS = (0.1, 0.5, 2.0)


@contextmanager
def limited() -> Iterator[None]:
    """TimeoutError after some seconds, MemoryError beyond some memory more than there is in use now."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """From now on no more than `MEMORY` beyond the address space that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))


def decoded(codec: Codec, file: bytes) -> None:
    """Decode a file of one image or of several."""
    if file.startswith(SOLID_MAGIC):
        decompress_solid(codec, file)
    else:
        codec.decompress([file])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    codec = Codec.load(options.codec)
    images = [read_image(path, codec.autoencoder.network.image_channels) for path in options.images]
    files = [file for step in STEPS for file in codec.compress(images, step=step)]
    names = [str(number) for number in range(len(images))]
    files += [compress_solid(codec, images, names, Target(step=step)) for step in STEPS]
    for file in files:
        decoded(codec, file)  # so that what is loaded once is loaded
    limit_memory()
    outcomes: Counter[str] = Counter()
    slowest = slowest_refusal = 0.0
    for number, file in enumerate(mutated(files, options.files, seed=options.seed)):
        begun, outcome = time.process_time(), "image"
        try:
            with limited():
                decoded(codec, file)
        except CodecError as error:
            outcome = "refused: " + re.sub(r"\d+", "N", re.sub(r"\(.*\)", "(...)", str(error)))
        except BaseException as error:
            outcome = f"WRONG: {type(error).__name__}: {error}"
            Path(f"fuzz-{number}.ldmc").write_bytes(file)
        seconds = time.process_time() - begun
        slowest = max(slowest, seconds)
        if outcome.startswith("refused"):
            slowest_refusal = max(slowest_refusal, seconds)
        outcomes[outcome] += 1
    for outcome, count in outcomes.most_common():
        print(f"{count:7,}  {outcome}")
    print(f"slowest {slowest:.2f} CPU s, slowest refusal {slowest_refusal:.2f} CPU s")
    sys.exit(any(outcome.startswith("WRONG") for outcome in outcomes))


if __name__ == "__main__":
    main()
