"""A terminal that is lost, and a person who waits for Ctrl-C to be answered."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm import checkpoint
from ldm.terminal import DurableOutput, amount, exit_code_of, stopping_signals
from tests.support.scripts import ROOT, Stage, forked, script
from tests.support.terminals import Terminal, wait_for_a_step


class LostStream(io.StringIO):
    """A stream that fails as a real one does when nobody is there any more."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, text: str = "") -> int:
        raise OSError(self.number, os.strerror(self.number))

    flush = write  # type: ignore[assignment]


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_print_to_a_lost_terminal_ended_the_run(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, LostStream(number))
    done = []

    def main(_: list[str]) -> None:
        print("before", flush=True)
        print("to the other", file=sys.stderr, flush=True)
        done.append(True)

    assert exit_code_of(main, []) == 0 and done
    with pytest.raises(OSError, match="not permitted"):
        DurableOutput(LostStream(errno.EPERM)).write("another failure is no lost terminal")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("flush", [True, False])
def test_output_on_a_full_disk_ended_the_work_or_was_a_traceback(flush: bool, tmp_path: Path) -> None:
    """Python gives a buffered line to the disk at its very end, where an error is a traceback and exit code 120."""

    def main(_: list[str]) -> None:
        print("lost", flush=flush)
        (tmp_path / "done").touch()

    def onto_a_full_disk() -> int:
        with open("/dev/full", "w") as sys.stdout:
            return exit_code_of(main, [])

    outcome = forked(onto_a_full_disk)[1]()
    assert (tmp_path / "done").exists()
    assert (outcome.code, outcome.err) == (4, "error: the disk is full: could not write the output\n")

    def progress_alone() -> int:
        with open("/dev/full", "w") as sys.stderr:
            return exit_code_of(lambda _: print("working", file=sys.stderr, flush=flush), [])

    assert forked(progress_alone)[1]().code == 0


def test_bytes_of_a_path_that_are_not_utf_8_ended_the_run_that_printed_them() -> None:
    raw = io.BytesIO()
    stream = DurableOutput(io.TextIOWrapper(raw, encoding="utf-8", errors="strict"))
    stream.write("caf\udce9 ✓")
    stream.flush()
    assert raw.getvalue().decode() == "caf\\udce9 ✓"


def test_head_made_a_training_that_did_not_happen_exit_0(stage_one: Stage, tmp_path: Path) -> None:
    """As `2>&1 | head -1` does: the reader of both streams is gone before the second line."""
    action = script(stage_one.name, *stage_one.arguments, "--out", tmp_path / "run", "--run.steps", 4)
    reading, writing = os.pipe()
    os.close(reading)

    def into_nothing() -> int:
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        return action()

    outcome = forked(into_nothing)[1]()
    os.close(writing)
    assert outcome.code == 0 and (tmp_path / "run" / "finished.json").exists(), outcome


def test_help_of_which_only_the_first_line_is_read_is_no_failure() -> None:
    command = f"{sys.executable} {ROOT / 'train_vae.py'} --help | head -1; exit ${{PIPESTATUS[0]}}"
    outcome = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0 and not outcome.stderr and outcome.stdout.startswith("usage:"), outcome


def test_a_dropped_connection_cost_every_step_since_the_last_checkpoint(stage_one: Stage, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", ("--run.steps", 10_000, "--run.checkpoint-every", 10_000, "--run.log-every", 1)
    terminal = Terminal(script(stage_one.name, *stage_one.arguments, "--out", run, *flags))
    wait_for_a_step(run)
    terminal.close()
    assert terminal.wait() == 75
    assert checkpoint.steps(run / "checkpoints")


def test_under_nohup_a_dropped_connection_ended_the_run_at_its_next_line(stage_one: Stage, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", ("--run.steps", 8, "--run.log-every", 1)
    terminal = Terminal(script(stage_one.name, *stage_one.arguments, "--out", run, *flags), nohup=True)
    wait_for_a_step(run)
    terminal.close()
    assert terminal.wait() == 0
    assert (run / "finished.json").exists()


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stopping_signals()
        exit_code_of(lambda _: os.kill(os.getpid(), signal.SIGHUP), [])
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in stopping_signals()
        assert exit_code_of(lambda _: os.kill(os.getpid(), signal.SIGHUP), []) == 75
    finally:
        signal.signal(signal.SIGHUP, before)


def decomposing(_: list[str]) -> None:
    """One call of LAPACK, which no signal of Python's interrupts, of about half a minute."""
    import torch

    print("now", flush=True)
    torch.linalg.svd(torch.rand(4000, 4000))


def decoding(_: list[str]) -> None:
    """As a folder of photographs is decoded, each of which takes a moment."""
    import numpy as np

    from ldm.data.config import FolderConfig
    from ldm.data.datasets import Dataset

    def slow(index: int) -> np.ndarray:
        if index == 3:
            print("now", flush=True)
        time.sleep(0.2)
        return np.zeros((3, 8, 8), dtype=np.uint8)

    names = [str(number) for number in range(1000)]
    config = FolderConfig(path="x", size=8)
    Dataset(config, names, np.zeros(1000, dtype=np.int64), [], names, "", slow).preload(progress=True)


@pytest.mark.parametrize("work", [decomposing, decoding])
@pytest.mark.parametrize("resumes", [True, False])
def test_ctrl_c_waited_for_a_decomposition_or_for_all_the_images(
    work: Callable[[list[str]], None], resumes: bool
) -> None:
    reading, writing = os.pipe()

    def action() -> int:
        os.dup2(writing, 1)
        return exit_code_of(work, [], resumes=resumes)

    child, wait = forked(action)
    assert os.read(reading, 3) == b"now"
    time.sleep(0.2)
    began = time.monotonic()
    os.kill(child, signal.SIGINT)
    outcome = wait()
    assert time.monotonic() - began < 2
    assert outcome.code == (75 if resumes else 1), outcome
    assert outcome.err.count("error: stopped") == 1 and "Traceback" not in outcome.err, outcome
    for end in (reading, writing):
        os.close(end)


def test_a_signal_that_the_loop_listens_to_is_not_cut_short() -> None:
    """The watch over deaf computations leaves a training alone that is finishing its step."""
    from ldm.training.signals import catch_signals

    def main(_: list[str]) -> None:
        with catch_signals() as flag:
            os.kill(os.getpid(), signal.SIGINT)
            began = time.monotonic()
            while time.monotonic() - began < 1.3:
                time.sleep(0.1)
            print(flag.name)

    outcome = forked(lambda: exit_code_of(main, []))[1]()
    assert outcome.code == 0 and outcome.out.strip() == "SIGINT", outcome


@pytest.mark.parametrize(("count", "words"), [(0, "0 images"), (1, "1 image"), (2000, "2,000 images")])
def test_amounts_are_said_as_people_say_them(count: int, words: str) -> None:
    assert amount(count, "image") == words
