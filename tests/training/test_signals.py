"""Signals ask a run to stop; asked twice, it stops at once."""

import os
import signal

import pytest

from ldm.training import signals
from ldm.training.signals import catch_signals


def test_the_first_signal_raises_the_flag_and_a_later_one_interrupts(monkeypatch):
    monkeypatch.setattr(signals, "ECHO", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    with catch_signals() as flag:
        assert not flag.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.name == "SIGTERM" and not flag.was_repeated
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert flag.was_repeated
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_that_a_launcher_passes_on_does_not_tear_the_step_down():
    """The terminal tells every process, and torchrun tells its workers once more a moment later."""
    with catch_signals() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.name == "SIGINT"
