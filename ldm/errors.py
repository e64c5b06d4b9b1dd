"""Errors: one class and one exit code for each expected failure, one line for the user, never a traceback."""

from collections.abc import Mapping


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

    def __reduce__(self) -> tuple[type["RequestError"], tuple[str, str]]:
        return RequestError, (self.argument, self.problem)  # as it travels between processes

    def renamed(self, names: Mapping[str, str]) -> "RequestError":
        """The same for a caller to whom arguments have other names."""
        return RequestError(names.get(self.argument, self.argument), self.problem)

    def as_flag(self) -> "RequestError":
        """The same for the command line."""
        return RequestError(f"--{self.argument.replace('_', '-')}", self.problem)


class DataError(LDMError):
    """The data are missing, unreadable, too few, or not what the settings say."""

    exit_code = 3


class CodecError(DataError):
    """A compressed file is damaged, of another codec or of a later version."""


class CheckpointError(LDMError):
    """A checkpoint, an autoencoder or a cache is damaged, wrong or stale, or the disk is full."""

    exit_code = 4


class DivergedError(LDMError):
    """A loss, a gradient or a sample is not a finite number."""

    exit_code = 5


class StopRequested(LDMError):
    """SIGTERM, SIGINT or SIGHUP arrived: the state was saved, and the same command resumes."""

    exit_code = 75
