"""Checkpoints of a run: when one is due, that training goes on meanwhile, and that no failure goes unnoticed."""

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm import checkpoint
from ldm.checkpoint import Checkpoint
from ldm.errors import CheckpointError
from ldm.training.background_writer import BackgroundWriter, copies_on_host
from ldm.training.config import RunConfig
from ldm.training.run_checkpoints import RunCheckpoints
from ldm.training.run_folder import RunFolder
from ldm.training.signals import StopFlag
from tests.support.runs import one_process


class Weights:
    """A part of a run: weights that change in place with every step."""

    def __init__(self) -> None:
        self.value, self.facts = torch.zeros(1000), {"seen": [0]}

    def step(self) -> None:
        self.value += 1
        self.facts["seen"][0] += 1

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {"model": {"value": self.value, "first half": self.value[::2]}}

    def host_state(self) -> Mapping[str, Any]:
        return self.facts

    def load(self, found: Checkpoint) -> None:
        self.value = found.tensors["model"]["value"]


def checkpoints_of(folder: Path, **config: Any) -> RunCheckpoints:
    checkpoints = RunCheckpoints(RunFolder(folder), RunConfig(**{"steps": 100, "log_every": 5, **config}), print)
    checkpoints.parts = [Weights()]
    return checkpoints


def test_what_is_written_is_the_state_of_its_step_however_long_writing_takes(tmp_path, monkeypatch) -> None:
    checkpoints, go_on = checkpoints_of(tmp_path), threading.Event()
    (weights,) = checkpoints.parts
    save = checkpoint.save

    def slow(*arguments: Any) -> Path:
        go_on.wait(10)
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", slow)
    weights.step()
    checkpoints.write(1, wait=False)
    weights.step()
    assert checkpoints.writer.is_busy and checkpoint.steps(checkpoints.folder.checkpoints) == []
    go_on.set()
    checkpoints.writer.wait()
    found = checkpoint.load(checkpoints.folder.checkpoints / "step-00000001")
    assert (found.tensors["model"]["value"] == 1).all() and found.state["seen"] == [1]
    assert found.tensors["model"]["first half"].shape == (500,)


def test_the_steps_at_a_sixteenth_and_an_eighth_and_the_last_are_saved_whatever_the_clock_says(tmp_path) -> None:
    def due(**config: Any) -> list[int]:
        checkpoints = checkpoints_of(tmp_path, **config)
        return [step for step in range(1, checkpoints.config.steps + 1) if checkpoints.is_due(step)]

    assert due() == [7, 13, 100] and due(steps=16) == [1, 2, 16] and due(steps=1) == [1]
    assert due(checkpoint_every=30) == [30, 60, 90, 100]


def test_the_clock_asks_only_at_a_line_of_the_log_and_while_nothing_is_being_written(tmp_path) -> None:
    late = checkpoints_of(tmp_path, checkpoint_seconds=0)
    assert [step for step in range(1, 21) if late.is_late(step)] == [5, 10, 15, 20]
    end = threading.Event()
    late.writer.start(lambda: end.wait(10))
    assert not late.is_late(5)
    end.set()
    late.writer.wait()
    assert late.is_late(5)
    assert not checkpoints_of(tmp_path, checkpoint_seconds=1000).is_late(5)
    assert not checkpoints_of(tmp_path, checkpoint_seconds=0, checkpoint_every=7).is_late(5)


def test_a_checkpoint_that_could_not_be_written_ends_the_run_at_its_next_step(tmp_path) -> None:
    checkpoints, stop = checkpoints_of(tmp_path), StopFlag()
    checkpoints.folder.checkpoints.write_text("somebody's file where the folder should be")
    checkpoints.write(3, wait=False)
    checkpoints.writer.join()
    with one_process() as processes:
        with pytest.raises(CheckpointError, match=r"could not write .*step-00000003"):
            checkpoints.agree(4, stop, processes)
        assert checkpoints.agree(4, stop, processes) == (False, False)
    with pytest.raises(CheckpointError):
        checkpoints.write(4, wait=True)


def test_a_stop_is_answered_only_when_the_checkpoint_is_on_the_disk(tmp_path) -> None:
    checkpoints, stop = checkpoints_of(tmp_path), StopFlag()
    stop.name = "SIGINT"
    with one_process() as processes:
        assert checkpoints.agree(4, stop, processes) == (True, True)
    checkpoints.write(4, wait=True)
    assert checkpoint.steps(checkpoints.folder.checkpoints) == [4] and not checkpoints.writer.is_busy


def test_an_error_of_the_run_does_not_cost_the_checkpoint_that_is_being_written(tmp_path) -> None:
    checkpoints = checkpoints_of(tmp_path)

    def slow() -> None:
        time.sleep(0.1)
        (tmp_path / "written").touch()

    with pytest.raises(ZeroDivisionError), checkpoints.writing(StopFlag()):
        checkpoints.writer.start(slow)
        raise ZeroDivisionError
    assert (tmp_path / "written").exists()


def test_a_second_ctrl_c_during_a_panel_waited_for_the_writer(tmp_path) -> None:
    """It interrupts what the loop does between two steps, and the generator of the steps only hears that it is over."""
    checkpoints, stop, end = checkpoints_of(tmp_path), StopFlag(), threading.Event()

    def steps() -> Iterator[int]:
        with checkpoints.writing(stop):
            checkpoints.writer.start(lambda: end.wait(10))
            yield 1

    going = steps()
    next(going)
    stop.was_repeated = True
    going.close()
    assert checkpoints.writer.is_busy
    end.set()
    checkpoints.writer.wait()


def test_what_a_run_that_diverged_called_its_last_checkpoint_was_not_the_one_being_written(tmp_path) -> None:
    checkpoints = checkpoints_of(tmp_path)
    checkpoints.write(5, wait=True)
    checkpoints.write(10, wait=False)
    assert checkpoints.steps() == [5, 10]


def test_one_thing_is_written_after_the_other() -> None:
    writer, written = BackgroundWriter(), []
    for number in range(5):
        writer.start(lambda number=number: (time.sleep(0.01), written.append(number)))
    writer.wait()
    assert written == [0, 1, 2, 3, 4]


def test_copies_share_no_memory_with_the_tensors_or_with_one_another() -> None:
    shared = torch.arange(6.0).view(2, 3)
    copies = copies_on_host({"model": {"a": shared, "b": shared.t()}})["model"]
    shared.zero_()
    assert copies["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and copies["b"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert all(copy.is_contiguous() for copy in copies.values())
