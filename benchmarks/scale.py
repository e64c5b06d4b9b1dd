"""Benchmark of very large data sets: start-up, memory, images a second, and the order of a hundred million.

    python benchmarks/scale.py [--images 1000000]

The images are JPEGs of 32 x 32 pixels in tar shards of 10,000, made in a temporary folder. `opened` lists them, tells
them apart by their sizes (`data.checksums sizes`) and splits them: first without an index of the shards, then with it.
Images a second are those of training batches of 64, decoded at each access; CPU seconds of this process, wall seconds
with workers. Each row is measured in a process of its own.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.data.batches import BatchSampler, ImageBatches
from ldm.data.config import FolderConfig
from ldm.data.datasets import open_dataset
from ldm.data.order import order_of

SHARD, BATCH, BATCHES = 10_000, 64, 60
ORDER = 100_000_000


def write_shards(folder: Path, count: int) -> None:
    """Tar shards of small JPEGs, of which there are 16 different ones."""
    contents = []
    for seed in range(16):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(file, "JPEG")
        contents.append(file.getvalue())
    for first in range(0, count, SHARD):
        with tarfile.open(folder / f"{first // SHARD:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(first, min(first + SHARD, count)):
                info = tarfile.TarInfo(f"{number:09d}.jpg")
                info.size = len(contents[number % 16])
                archive.addfile(info, io.BytesIO(contents[number % 16]))


def peak() -> float:
    """MB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def opened(folder: str) -> None:
    before, began = peak(), time.process_time()
    dataset = open_dataset(FolderConfig(path=folder, size=32, cache_gb=0, checksums="sizes"))
    training, _ = dataset.split()
    seconds = time.process_time() - began
    print(f"opened         {len(dataset):,} images: {seconds:.1f} CPU s, {peak() - before:.0f} MB")
    batches = ImageBatches(dataset, BatchSampler(tuple(training.indices), 0, BATCH))
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(BATCHES), num_workers=workers)
        incoming = iter(loader)
        next(incoming)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in incoming:
            pass
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        rate = BATCH * (BATCHES - 1)
        each = cpu / rate * 1e6
        print(f"{workers} workers      {rate / wall:,.0f} images/s; CPU of this process {each:.0f} us an image")


def ordered() -> None:
    before, places = peak(), np.arange(BATCH)
    began = time.process_time()
    for step in range(200):
        order_of(ORDER, 0, "order", 0)[places + step * BATCH]
    each = (time.process_time() - began) / 200
    print(f"order          of {ORDER:,}: {each * 1e6:.0f} us for {BATCH} places, {peak() - before:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        name, folder = arguments.part
        return opened(folder) if name == "opened" else ordered()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "shards"
        images.mkdir()
        write_shards(images, arguments.images)
        environment = os.environ | {"XDG_CACHE_HOME": folder}
        for name in ("opened", "opened", "ordered"):
            subprocess.run([sys.executable, __file__, "--part", name, str(images)], check=True, env=environment)


if __name__ == "__main__":
    main()
