"""Signals while a library computes."""

import os
import signal
import threading
import time

import pytest
import torch

from ldm.cli.interruption import prompt_interrupt
from ldm.errors import exit_code_of
from tests.support.scripts import forked


def computing(_: list[str]) -> None:
    """One call that takes long, and during which Python handles no signal."""
    with prompt_interrupt(grace=0.2):
        print("begun", flush=True)
        torch.linalg.svd(torch.randn(4000, 4000, dtype=torch.float64))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_does_not_wait_for_the_end_of_a_long_computation(number):
    def signaled() -> int:
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        return exit_code_of(computing, [], resumes=False)

    before = time.monotonic()
    outcome = forked(signaled)[1]()
    assert outcome.code == 1 and outcome.err == "error: stopped in the middle of a computation\n", outcome
    assert time.monotonic() - before < 10  # the decomposition alone takes longer


def test_a_signal_that_is_handled_in_time_ends_nothing_else():
    with pytest.raises(KeyboardInterrupt), prompt_interrupt(grace=0.2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    time.sleep(0.4)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_block_without_a_signal_ends_as_ever():
    with prompt_interrupt(grace=0.0):
        pass
    with pytest.raises(ValueError), prompt_interrupt(grace=0.0):
        raise ValueError
    watchers = [thread for thread in threading.enumerate() if thread.name.endswith("(watch)")]
    for thread in watchers:
        thread.join(5)
    assert not [thread for thread in watchers if thread.is_alive()]
