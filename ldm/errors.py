"""Errors: one class and one exit code for each expected failure, one line for the user, never a traceback."""


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
