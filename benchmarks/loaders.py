"""Benchmark of both stages' data loaders: CPU milliseconds per batch and images per second, one thread.

    OMP_NUM_THREADS=1 python benchmarks/loaders.py [--device cuda] [--rounds 20]

`loader` is what a data loader brings where the data lie on the device (numbers), `workers` what it brings where they do
not, and `device` what the device then makes of numbers: flips, crop, augmentation, noise, noise levels (on a GPU the
time until it is done). The last rows are those of one of several simulated processes, whose part is 64 images. Data
are random, in memory, and warm.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ldm.data.batches import BatchSampler, ImageBatches, TrainingBatches
from ldm.data.config import AugmentConfig, FolderConfig
from ldm.data.datasets import Dataset
from ldm.diffusion.latent_batches import LatentBatches
from ldm.diffusion.losses.config import DenoisingObjectiveConfig
from ldm.latents import LatentCache
from ldm.training.config import RunConfig
from ldm.training.kernels import keep_freed_memory

AUGMENT = AugmentConfig(rotate90=True, flip_vertical=True, zoom=1.3, brightness=0.1, contrast=0.1)
LATENTS = [(4, 8, 8), (4, 16, 16), (4, 32, 32)]
IMAGES = [(1, 32, 32), (3, 64, 64), (3, 256, 256)]
PLACES = {"loader": RunConfig(store="device"), "workers": RunConfig(store="host")}


def latents(shape: tuple[int, int, int], device: str, sampler: dict[str, Any]) -> Iterator[TrainingBatches[Any, Any]]:
    """Batches of random latents and of their mirror images: from the store, and from the host."""
    channels, height, width = shape
    count = min(20_000, max(4096, 2**28 // (8 * channels * height * width)))
    moments = np.random.default_rng(0).standard_normal((2, count, 2 * channels, height, width), np.float32)
    cache = LatentCache("random", moments, channels, torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1))
    config = FolderConfig(path="random", size=height, flip=True)
    names = [str(index) for index in range(count)]
    dataset = Dataset(config, names, np.arange(count) % 10, list("0123456789"), names, "random", lambda index: moments)
    order = BatchSampler(tuple(range(count)), seed=0, **sampler)
    for run in PLACES.values():
        yield LatentBatches(cache, dataset, DenoisingObjectiveConfig(), order, device, run)


def images(
    shape: tuple[int, int, int], device: str, sampler: dict[str, Any], everything: bool
) -> Iterator[TrainingBatches[Any, Any]]:
    """Batches of random images, mirrored, or cropped and augmented in every way."""
    channels, height, width = shape
    count = 512 if height > 128 else 4096
    more: dict[str, Any] = {"crop": "random", "augment": AUGMENT} if everything else {}
    config = FolderConfig(path="random", size=(height, width), channels=channels, flip=True, resize=False, **more)
    sides = (height + height // 8, width + width // 8) if everything else (height, width)
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, *sides), dtype=np.uint8)
    names = [str(index) for index in range(count)]
    labels = np.arange(count) % 10
    dataset = Dataset(config, names, labels, list("0123456789"), names, "random", lambda index: pixels[index])
    dataset.preload()
    order = BatchSampler(tuple(range(count)), seed=0, **sampler)
    for run in PLACES.values():
        yield ImageBatches(dataset, order, device, run)


def seconds(action: Callable[[int], Any], rounds: int, device: str) -> float:
    """The least that one of `rounds` calls took: of CPU, or on a GPU on the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    found = []
    for number in range(rounds + 2):
        began = clock()
        action(number)
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(clock() - began)
    return min(found[2:])


def row(name: str, given: Iterator[TrainingBatches[Any, Any]], size: int, rounds: int, device: str) -> str:
    """One line of the table."""
    stored, loaded = given
    number = seconds(lambda step: stored[step], rounds, "cpu")
    gathered = seconds(lambda step: loaded[step], rounds, "cpu")
    whole = seconds(lambda step: stored.batch(step, device), rounds, device)
    times = " | ".join(f"{1000 * each:.3f}" for each in (number, gathered, whole - number))
    return f"| {name} | {size} | {times} | {size / number:,.0f} | {size / whole:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    rounds, device = options.rounds, options.device
    keep_freed_memory()  # as a run does
    print("| data | batch | loader, ms | workers, ms | device, ms | images/s of the loader | of both |")
    print("|---|---|---|---|---|---|---|")
    for shape in LATENTS:
        for size in (64, 256):
            name = " x ".join(map(str, shape))
            print(row(name, latents(shape, device, {"batch_size": size}), size, rounds, device), flush=True)
    for shape in IMAGES:
        for everything in (False, True):
            name = " x ".join(map(str, shape)) + (", crop and augmentation" if everything else ", flip")
            print(row(name, images(shape, device, {"batch_size": 64}, everything), 64, rounds, device), flush=True)
    for processes in (1, 8, 32):
        sampler = {"batch_size": 64 * processes, "processes": processes}
        name = f"4 x 32 x 32, one of {processes} processes"
        print(row(name, latents((4, 32, 32), device, sampler), 64, rounds, device), flush=True)


if __name__ == "__main__":
    main()
