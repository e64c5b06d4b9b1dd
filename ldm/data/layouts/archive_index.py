"""The index of a large tar: the name, the place and the size of every file in it, built once and kept.

Of a tar nothing but its headers says what is in it, one after the other over the whole file. The index is kept in the
cache folder of whoever runs this (`XDG_CACHE_HOME`, else ~/.cache), never beside the images.
"""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

LARGE = 2**22  # bytes of a tar whose index is kept

Places = dict[str, tuple[int, int]]  # offset and size by name


def indexed(archive: Path, build: Callable[[Path], Places]) -> Places:
    """What `build` says of an archive, or has said of it before: of the same path, size and time of change."""
    facts = archive.stat()
    if facts.st_size < LARGE:
        return build(archive)
    identity = f"{archive.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a container's user may have no home
        return build(archive)
    file = cache / "ldm" / "archives" / f"{digest}.npz"
    if (known := _read(file)) is not None:
        return known
    places = build(archive)
    with suppress(OSError):  # a home that cannot be written: it is built again next time
        _write(file, places)
    return places


def _read(file: Path) -> Places | None:
    """The index in a file; None if there is none, or none that is whole."""
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as kept:
            names, numbers = kept["names"].tobytes(), kept["places"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    decoded = names.decode("utf-8", "surrogateescape").split("\0") if len(numbers) else []
    return dict(zip(decoded, map(tuple, numbers.tolist()), strict=True))


def _write(file: Path, places: Places) -> None:
    """Write it under another name first, as others may be reading or writing it now."""
    file.parent.mkdir(parents=True, exist_ok=True)
    names = "\0".join(places).encode("utf-8", "surrogateescape")
    numbers = np.array([*places.values()], dtype=np.int64).reshape(-1, 2)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as new:
        try:
            np.savez(new, names=np.frombuffer(names, np.uint8), places=numbers)
            new.close()
            os.replace(new.name, file)
        except BaseException:
            os.unlink(new.name)
            raise
