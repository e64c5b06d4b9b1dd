"""Errors: one class and one exit code for each expected failure, one line for the user, never a traceback."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from ldm.terminal import durable_output, interruptible

STOPPED = {
    True: "error: stopped at once; run the same command again to resume from the last checkpoint",
    False: "error: stopped; nothing was written",
}


class LDMError(Exception):
    """An expected failure. Its message is one line, in the user's words: what was given, and what to do."""

    exit_code = 1
    was_reported = False  # whether another process has already printed it


class ConfigError(LDMError):
    """A setting, a flag or the command line is wrong, or the run folder is in use."""

    exit_code = 2


class DataError(LDMError):
    """The data are missing, unreadable, too few, or not what the settings say."""

    exit_code = 3


class CheckpointError(LDMError):
    """A checkpoint, an autoencoder or a cache is damaged, wrong or stale, or the disk is full."""

    exit_code = 4


class DivergedError(LDMError):
    """A loss or a gradient stopped being a finite number."""

    exit_code = 5


class StopRequested(LDMError):
    """SIGTERM, SIGINT or SIGHUP arrived: the state was saved, and the same command resumes."""

    exit_code = 75


def exit_code_of(main: Callable[[list[str]], None], arguments: list[str], *, resumes: bool = True) -> int:
    """Run `main` and return the process's exit code; an expected failure is printed as one line on stderr.

    `resumes` says whether the same command resumes where it was stopped. SIGTERM and a closed terminal end it as Ctrl-C
    does, except where `main` itself listens; that nobody reads its output ends nothing.
    """
    code = StopRequested.exit_code if resumes else LDMError.exit_code

    def give_up() -> int:
        with suppress(OSError):  # past Python's own streams, which the main thread may hold
            os.write(2, f"\n{STOPPED[resumes]}\n".encode())
        return code

    with durable_output():
        try:
            with interruptible(give_up):
                main(arguments)
        except LDMError as error:
            if not error.was_reported:
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:  # outside the training loop, or asked twice
            print(STOPPED[resumes], file=sys.stderr)
            return code
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's own, which is not imported here
                raise
            print("error: the GPU is out of memory: lower run.batch_size, or raise run.accumulation", file=sys.stderr)
            return 1
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(f"error: the disk is full: could not write {error.filename or 'a file of the run'}", file=sys.stderr)
            return CheckpointError.exit_code
    return 0
