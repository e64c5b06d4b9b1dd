"""Locks: one process at a time in a folder, on every disk that can lock."""

import errno
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}  # Lustre without -o flock, some NFS


def acquire(file: Path, *, wait: bool, warn: Callable[[str], None]) -> FileLock:
    """The lock on `file`, which is made if need be; it ends with its release or with the process, however that ends.

    Raises `filelock.Timeout` if another holds it and this one does not `wait`. A disk that cannot lock is said to
    `warn`, and used without: a file whose mere presence says that it is taken would outlive a killed process.
    """
    lock = FileLock(file, fallback_to_soft=False)
    try:
        lock.acquire(blocking=wait)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn(f"warning: {file.parent} cannot be locked ({error.strerror}): see to it that no other run uses it")
    return lock
