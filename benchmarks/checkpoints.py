"""Checkpoints of a run with short steps: how long it stands still for one, and what the thread costs the steps beside.

    python benchmarks/checkpoints.py

A network of 9.8 million parameters with AdamW's two moments and both averages: 196 MB a checkpoint. The steps are
simulated: 1.5 ms of waiting, as on a GPU that is busy. `stands still` is what a save keeps from the steps (the copy),
and its share of the time at one save a minute; `in the main thread` is the same for a save without a thread.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from ldm import checkpoint
from ldm.training.config import AdamWConfig, RunConfig
from ldm.training.run_checkpoints import RunCheckpoints
from ldm.training.run_folder import RunFolder
from ldm.training.train_state import TrainState

STEP = 0.0015  # seconds
STEPS, SAVES = 4000, 5


def network(device: str) -> nn.Module:
    """About 9.8 million parameters in 120 tensors."""
    return nn.ModuleList([nn.Conv2d(134, 134, 3) for _ in range(60)]).to(device)


def state_of(module: nn.Module) -> TrainState:
    """Its training state after one update."""
    state = TrainState(module, AdamWConfig(), None, window=lambda step: (0, STEPS))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.advance(1e-3, [1e-3, 1e-3], torch.zeros((), device=next(module.parameters()).device))
    return state


def steps(count: int, busy: RunCheckpoints | None = None) -> float:
    """Median seconds of so many simulated steps, or of those made while something is being written."""
    seconds: list[float] = []
    while len(seconds) < count and (busy is None or busy.writer.is_busy):
        began = time.perf_counter()
        time.sleep(STEP)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measured(device: str) -> dict[str, float]:
    """The seconds of a checkpoint and of the steps beside it, and its size."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = RunCheckpoints(RunFolder(Path(folder)), RunConfig(steps=STEPS), print)
        checkpoints.parts = [state_of(network(device))]
        size = sum(t.nbytes for each in checkpoints.parts[0].tensors().values() for t in each.values())
        alone, stands_still, whole, beside = steps(200), [], [], []
        for number in range(SAVES + 1):
            began = time.perf_counter()
            checkpoints.write(number + 1, wait=False)
            stands_still.append(time.perf_counter() - began)
            beside.append(steps(STEPS, checkpoints))
            checkpoints.writer.wait()
            whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        checkpoint.save(Path(folder) / "before", 1, checkpoints.parts[0].tensors(), {})
        before = time.perf_counter() - began
    return {
        "bytes": size,
        "stands still": statistics.median(stands_still[1:]),  # the first touches its memory for the first time
        "first save": stands_still[0],
        "in the main thread": before,
        "on the disk after": statistics.median(whole[1:]),
        "a step": alone,
        "a step beside": statistics.median(beside[1:]),
    }


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    interval, found = RunConfig().checkpoint_seconds, measured(device)
    still, before = found["stands still"], found["in the main thread"]
    print(f"{device}, {found['bytes'] / 1e6:.0f} MB a checkpoint, one every {interval:g} s")
    print(f"stands still        {still * 1e3:.0f} ms: {still / interval:.3%} of the time")
    print(f"first save          {found['first save'] * 1e3:.0f} ms")
    print(f"in the main thread  {before * 1e3:.0f} ms: {before / (1000 * STEP):.0%} at one every 1,000 steps of 1.5 ms")
    print(f"on the disk after   {found['on the disk after'] * 1e3:.0f} ms")
    print(
        f"a step              {found['a step'] * 1e3:.2f} ms, beside the thread {found['a step beside'] * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    main()
