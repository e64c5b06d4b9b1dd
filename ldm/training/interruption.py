"""SIGTERM and SIGINT ask a run to finish its step; they do not tear it down."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Whether somebody asked the run to stop, and with which signal."""

    def __init__(self) -> None:
        self.name = ""

    def raised(self, number: int, _: FrameType | None) -> None:
        if self.name:  # asked twice: the person means now
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextmanager
def listening() -> Iterator[StopFlag]:
    """Within this block the signals only raise the flag."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.raised) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
