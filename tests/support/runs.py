"""Helpers for tests of whole runs: compare two of them, cut one short, fine-tune from another."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState

from ldm import checkpoint
from ldm.training.processes import Processes
from tests.support.scripts import forked, script, together


def in_float64(action: Callable[[], int]) -> Callable[[], int]:
    """The same script with every number in double precision."""

    def doubled() -> int:
        torch.set_default_dtype(torch.float64)
        return action()

    return doubled


@contextmanager
def one_process() -> Iterator[Processes]:
    """The only process, on the CPU; forked children, who inherit what is known of it, may be several again later."""
    try:
        yield Processes("cpu")
    finally:
        PartialState._reset_state()


def newest_checkpoint(run: Path) -> checkpoint.Checkpoint:
    """The newest whole checkpoint of a run."""
    found = checkpoint.newest(run / "checkpoints", print)
    assert found is not None
    return found


def train_alike(folder: Path, *arguments: object, cut: tuple[object, ...] = (), count: int = 2) -> None:
    """The same training in float64, by one process into folder/one and by `count` into folder/two: equal weights.

    `cut` are the flags with which the latter cut the batch further.
    """
    name, *rest = arguments
    one, two = ((str(name), *rest, "--out", folder / run) for run in ("one", "two"))
    assert (whole := forked(in_float64(script(*one)))[1]()).code == 0, whole
    outcomes = together([in_float64(script(*two, *cut))] * count)
    assert [outcome.code for outcome in outcomes] == [0] * count, outcomes
    assert json.loads((folder / "two" / "environment.json").read_text())["processes"] == count
    mine, theirs = newest_checkpoint(folder / "one").tensors, newest_checkpoint(folder / "two").tensors
    for file in (each for each in mine if each.endswith("model")):  # of all that is trained
        for key, value in mine[file].items():
            torch.testing.assert_close(theirs[file][key], value, rtol=0, atol=1e-9)


def lose_everything_after(run: Path, step: int) -> None:
    """Bring a finished run back to where it was when it had just saved `step`."""
    for name in ("vae", "unet"):
        shutil.rmtree(run / name, ignore_errors=True)
    (run / "finished.json").unlink()
    for later in checkpoint.steps(run / "checkpoints"):
        if later > step:
            shutil.rmtree(run / "checkpoints" / f"step-{later:08d}")
