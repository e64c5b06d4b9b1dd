"""The report of a dry run: sizes, memory and time of a run, from a few real steps of it that are then forgotten."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from ldm.config import reader
from ldm.data.datasets import Subset
from ldm.data.near_duplicates import describe_near_duplicates
from ldm.training.config import RunConfig
from ldm.training.snapshots import bytes_of

STEPS = 4  # the last ones of the run, in which everything takes part that starts late


@dataclass(frozen=True)
class Measured:
    """What the steps of a dry run took; the time is a mean, as some steps are cheaper than others."""

    seconds_per_step: float
    bytes_per_process: int


def report(
    config: Any,
    measured: Measured,
    modules: Mapping[str, nn.Module],
    image: tuple[int, ...],
    latent: tuple[int, ...],
    training: Subset,
    held_out: Subset,
) -> Iterator[str]:
    """The resolved config, and what the whole run would take, line by line."""
    run: RunConfig = config.run
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    parameters = ", ".join(f"{name} {size:,}".strip() for name, size in sizes.items())
    seconds = measured.seconds_per_step
    yield reader.dump(config).rstrip()
    yield f"parameters         {parameters}"
    yield f"image              {' x '.join(map(str, image))} = {prod(image):,} numbers"
    ratio = prod(image) / prod(latent)
    yield f"latent             {' x '.join(map(str, latent))} = {prod(latent):,} numbers, {ratio:.1f} times fewer"
    yield f"training images    {len(training):,}"
    yield f"near-duplicates    {describe_near_duplicates(training, held_out)}"
    yield f"steps              {run.steps:,} of {run.batch_size} images"
    yield f"time               about {seconds * run.steps / 60:.1f} minutes: {seconds:.3f} s per step"
    if run.snapshots:
        yield f"snapshots          at most {run.snapshots}: {bytes_of(run, modules['']) / 2**30:.2f} GiB of disk"
    yield f"memory             {measured.bytes_per_process / 2**30:.2f} GiB per process"
