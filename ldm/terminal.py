"""The terminal of a script: its exit code, output that outlives it, signals that are answered in a long computation."""

import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ldm.errors import CheckpointError, ConfigError, LDMError, StopRequested

STOPPED = {
    True: "error: stopped at once; run the same command again to resume from the last checkpoint",
    False: "error: stopped; nothing was written",
}
LOST = {errno.EPIPE, errno.EIO} | ({errno.EINVAL} if os.name == "nt" else set())  # nobody reads there any more
FULL = {errno.ENOSPC, errno.EDQUOT}
GRACE = 1.0  # seconds in which a computation may notice that it was interrupted


def exit_code_of(main: Callable[[list[str]], None], arguments: list[str], *, resumes: bool = True) -> int:
    """Run `main` and return the process's exit code; an expected failure is printed as one line on stderr.

    `resumes` says whether the same command resumes where it was stopped. SIGTERM and a closed terminal end it as Ctrl-C
    does, except where `main` itself listens; that nobody reads its output ends nothing. Output that a full disk did not
    take ends nothing either, and is a failure once `main` is done.
    """

    def give_up() -> int:
        with suppress(OSError):  # past Python's own streams, which the main thread may hold
            os.write(2, f"\n{STOPPED[resumes]}\n".encode())
        return (StopRequested if resumes else LDMError).exit_code

    with durable_output() as output:
        try:
            with interruptible(give_up):
                main(arguments)
            output.check()
        except (Exception, KeyboardInterrupt) as error:
            line, exit_code = ended_by(error, resumes)
            if line:
                print(line, file=sys.stderr)
            return exit_code
    return 0


def ended_by(error: BaseException, resumes: bool) -> tuple[str, int]:
    """What there is to say of an expected failure, and its exit code; one that is not expected is raised again."""
    if isinstance(error, LDMError):
        return ("" if error.was_reported else f"error: {' '.join(str(error).split())}"), error.exit_code
    if is_interrupt(error):  # outside the training loop, or asked twice
        return STOPPED[resumes], (StopRequested if resumes else LDMError).exit_code
    if type(error).__name__ == "OutOfMemoryError":  # torch's own, which is not imported here
        return "error: the GPU is out of memory: lower run.batch_size, or raise run.accumulation", LDMError.exit_code
    if isinstance(error, OSError) and error.errno in FULL:
        line = f"error: the disk is full: could not write {error.filename or 'a file of the run'}"
        return line, CheckpointError.exit_code
    raise error


def amount(count: int, noun: str) -> str:
    """So many of these, in words: 1 image, 2,000 images."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def is_interrupt(error: BaseException | None) -> bool:
    """Whether it is a KeyboardInterrupt, or what a library made of one that came in the middle of its own work."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class DurableOutput:
    """A text stream that is written to without harm when its reader or its terminal is gone: `| head -1`, a closed ssh.

    Where its disk is full, `check` tells of it later. What its encoding does not have, such as a byte of a file name
    that is not UTF-8, is written with backslashes.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.full: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or lose, the text."""
        try:
            return self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding
            return self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._discard_from_now_on(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or lose, what was written."""
        try:
            self.stream.flush()
        except OSError as error:
            self._discard_from_now_on(error)

    def check(self) -> None:
        """Raise OSError if a full disk did not take all that was written."""
        self.flush()
        if self.full is not None:
            raise self.full

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _discard_from_now_on(self, error: OSError) -> None:
        """Else Python would fail on what is still in the buffer when it ends, with an exit code of its own."""
        if error.errno in FULL:
            error.filename, self.full = "the output", error
        elif error.errno not in LOST:
            raise error
        with suppress(OSError, ValueError):  # a stream without a descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextmanager
def durable_output() -> Iterator[DurableOutput]:
    """Within this block a lost terminal ends nothing: whoever prints need not think of it. Gives standard output."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # where Python was started without any output
        streams = [DurableOutput(stream or nowhere) for stream in before]
        sys.stdout, sys.stderr = streams  # type: ignore[assignment]
        try:
            yield streams[0]
        finally:
            for stream in streams:
                stream.flush()
            sys.stdout, sys.stderr = before


def stopping_signals() -> list[signal.Signals]:
    """The signals that ask to stop: Ctrl-C, SIGTERM, and a terminal that is closed, unless `nohup` had that ignored."""
    found = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        found.append(hangup)
    return found


@contextmanager
def interruptible(give_up: Callable[[], int]) -> Iterator[None]:
    """Within this block every signal that asks to stop raises KeyboardInterrupt.

    Python does so only between two of its own instructions, and a matrix decomposition may take minutes. If nothing
    was raised after a moment, `give_up` says so and names the exit code with which the process ends, as kill -9 would
    end it; nothing that we write minds that. Where a signal has another handler, as in a training loop, that one alone
    decides.
    """
    reading, writing = socket.socketpair()  # and not a pipe: Windows wakes sockets only
    writing.setblocking(False)
    raised = threading.Event()

    def watch() -> None:
        while number := reading.recv(1)[0]:
            answered_here = signal.getsignal(number) is signal.default_int_handler
            if answered_here and not raised.wait(GRACE):
                os._exit(give_up())

    before = {number: signal.signal(number, signal.default_int_handler) for number in stopping_signals()}
    woken_before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        raised.set()
        signal.set_wakeup_fd(woken_before)
        writing.send(b"\0")
        watcher.join()
        for end in (reading, writing):
            end.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Within this block an error in writing to `--out` becomes one line; a full disk stays that of `exit_code_of`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(out)
        if error.errno in FULL:
            raise
        raise ConfigError(f"--out {out} cannot be written: {error.filename}: {error.strerror}") from error
