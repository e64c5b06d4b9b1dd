"""What a run would take, from a few real steps of it."""

import time
from collections.abc import Callable
from math import prod
from statistics import mean
from typing import TYPE_CHECKING, Any

from ldm.config import reader

if TYPE_CHECKING:
    from ldm.training.run import Run

STEPS = 4


def report(
    run: "Run", train_step: Callable[[int, Any], None], batches: Any, latent: tuple[int, int, int], data: Any
) -> None:
    """Print the resolved config, sizes, and time and memory of the whole run; the steps are made and forgotten.

    They are the last steps of the run, in which everything takes part that starts late; the times are averaged, as some
    steps may be cheaper than others.
    """
    seconds = []
    for micro_batch in range(STEPS * run.settings.accumulation):
        began = time.monotonic()
        run.step = max(run.settings.steps - 1 - micro_batch // run.settings.accumulation, 0)
        run.micro_step = micro_batch % run.settings.accumulation
        train_step(run.step, run.to_device(batches[micro_batch]))
        run.history.rows_on_host()  # waits for the device
        seconds.append(time.monotonic() - began)
    per_step = mean(seconds[1:]) * run.settings.accumulation  # the first is slower
    sizes = {name: sum(p.numel() for p in state.module.parameters()) for name, state in run.states.items()}
    parameters = ", ".join(f"{name} {size:,}".strip() for name, size in sizes.items())
    image, code = prod(data.shape), prod(latent)
    minutes = per_step * run.settings.steps / 60
    run.print(reader.dump(run.config).rstrip())
    run.print(f"parameters         {parameters}")
    run.print(f"image              {' x '.join(map(str, data.shape))} = {image:,} numbers")
    run.print(f"latent             {' x '.join(map(str, latent))} = {code:,} numbers, {image / code:.1f} times fewer")
    run.print(f"training images    {len(batches.order.samples):,}")
    run.print(f"steps              {run.settings.steps:,} of {run.settings.batch_size} images")
    run.print(f"time               about {minutes:.1f} minutes: {per_step:.3f} s per step")
    run.print(f"memory             {run.history.memory() / 2**30:.2f} GiB per process")
