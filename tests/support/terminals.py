"""Scripts on a terminal of their own, which can be closed under them."""

import os
import pty
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class Terminal:
    """A script in a forked child that leads a session on a pseudo-terminal; `nohup` has it ignore SIGHUP."""

    def __init__(self, action: Callable[[], int], *, nohup: bool = False):
        self.child, self.master = pty.fork()
        if self.child == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
            code = 70
            try:
                code = action()
            finally:
                os._exit(code)
        self.closing = False
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        """Take what the terminal shows: unread, it would fill and hold up the script."""
        with suppress(OSError):
            while not self.closing:
                if select.select([self.master], [], [], 0.05)[0]:
                    os.read(self.master, 2**12)

    def close(self) -> None:
        """As a dropped connection does."""
        self.closing = True
        self.reader.join()  # which keeps it open while it reads
        os.close(self.master)

    def wait(self) -> int:
        """How the script ended, whose terminal was closed."""
        _, status = os.waitpid(self.child, 0)
        return os.waitstatus_to_exitcode(status)


def wait_for_a_step(run: Path) -> None:
    """Until the log of a run has a line."""
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        time.sleep(0.01)
