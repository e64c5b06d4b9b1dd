"""Ctrl-C and SIGTERM that do not wait for a long computation to end."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 1.0  # seconds in which a signal may end the block as usual


@contextmanager
def prompt_interrupt(grace: float = GRACE) -> Iterator[None]:
    """Within this block, a signal that is not handled after `grace` seconds ends the process.

    Python handles signals between its own instructions: not inside one call of a library, be it the eigenvalues of a
    large matrix or a message from another process that never comes.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    has_ended = threading.Event()

    def watch() -> None:
        while number := os.read(read, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM) and not has_ended.wait(grace):
                print("error: stopped in the middle of a computation", file=sys.stderr, flush=True)
                os._exit(1)
        os.close(read)

    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        has_ended.set()
        signal.set_wakeup_fd(before)
        os.close(write)
