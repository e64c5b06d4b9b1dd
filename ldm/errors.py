"""Errors: one class and one exit code for each expected failure, one line for the user, never a traceback."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping


class LDMError(Exception):
    """An expected failure. Its message is one line, in the user's words: what was given, and what to do."""

    exit_code = 1
    was_reported = False  # whether another process has already printed it


class ConfigError(LDMError):
    """A setting, a flag or the command line is wrong, or the run folder is in use."""

    exit_code = 2


class RequestError(ConfigError):
    """A request for samples cannot be met; it names the argument in the words of `LatentDiffusion.sample`."""

    def __init__(self, argument: str, problem: str):
        super().__init__(f"{argument} {problem}")
        self.argument, self.problem = argument, problem

    def renamed(self, names: Mapping[str, str]) -> "RequestError":
        """The same for a caller to whom arguments have other names."""
        return RequestError(names.get(self.argument, self.argument), self.problem)

    def as_flag(self) -> "RequestError":
        """The same for the command line."""
        return RequestError(f"--{self.argument.replace('_', '-')}", self.problem)


class DataError(LDMError):
    """The data are missing, unreadable, too few, or not what the settings say."""

    exit_code = 3


class CheckpointError(LDMError):
    """A checkpoint, an autoencoder or a cache is damaged, wrong or stale, or the disk is full."""

    exit_code = 4


class DivergedError(LDMError):
    """A loss, a gradient or a sample is not a finite number."""

    exit_code = 5


class StopRequested(LDMError):
    """SIGTERM or SIGINT arrived: the state was saved, and the same command resumes."""

    exit_code = 75


def exit_code_of(main: Callable[[list[str]], None], arguments: list[str], *, resumes: bool = True) -> int:
    """Run `main` and return the process's exit code; an expected failure is printed as one line on stderr.

    `resumes` says whether the same command resumes where it was stopped. SIGTERM ends it as Ctrl-C does, except where
    `main` itself listens.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(arguments)
    except LDMError as error:
        if not error.was_reported:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # outside the training loop, or asked twice
        if not resumes:
            print("error: stopped; nothing was written", file=sys.stderr)
            return LDMError.exit_code
        print("error: stopped at once; run the same command again to resume from the last checkpoint", file=sys.stderr)
        return StopRequested.exit_code
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's own, which is not imported here
            raise
        print("error: the GPU is out of memory: lower run.batch_size, or raise run.accumulation", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has seen enough, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: the disk is full: could not write {error.filename or 'a file of the run'}", file=sys.stderr)
        return CheckpointError.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
