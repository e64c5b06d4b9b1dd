"""Signals: SIGTERM, SIGINT and SIGHUP ask a run to finish its step and save; they do not tear it down."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ldm.terminal import stopping_signals

ECHO = 1.0  # seconds within which a second signal is the first once more: torchrun passes on what Ctrl-C told all


class StopFlag:
    """Whether somebody asked the run to stop, with which signal, and whether again."""

    def __init__(self) -> None:
        self.name = ""
        self.since = 0.0
        self.was_repeated = False

    def raised(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self.name:
            self.name, self.since = name, time.monotonic()
        elif name != "SIGHUP" and time.monotonic() - self.since > ECHO:  # asked twice: the person means now
            self.was_repeated = True
            raise KeyboardInterrupt


@contextmanager
def catch_signals() -> Iterator[StopFlag]:
    """Within this block the signals only raise the flag."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.raised) for number in stopping_signals()}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
