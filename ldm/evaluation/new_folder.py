"""A new folder that several processes fill, and that is there only once it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm.errors import CheckpointError
from ldm.training.processes import Processes


class NewFolder:
    """A folder of files, perhaps in `parts`, which are sub-folders. Until it is complete it is `FOLDER.partial`."""

    def __init__(self, folder: Path, parts: tuple[str, ...] = ()):
        self.folder, self.parts = folder.resolve(), parts
        self.partial = self.folder.with_name(f"{self.folder.name}.partial")

    @contextmanager
    def open(self, processes: Processes) -> Iterator[None]:
        """Begin the folder, and complete it in the end; on an error nothing is left."""
        processes.on_main(self._begin)
        try:
            yield
            processes.on_main(self._end)
        except BaseException:
            if processes.is_main:
                shutil.rmtree(self.partial, ignore_errors=True)
            raise

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Errors in writing name the folder that a person asked for."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"could not write {self.folder}: {error.strerror or error}") from error

    def _begin(self) -> None:
        with self.named_in_errors():
            shutil.rmtree(self.partial, ignore_errors=True)  # what an interrupted attempt left
            for part in self.parts or ("",):
                (self.partial / part).mkdir(parents=True)

    def _end(self) -> None:
        with self.named_in_errors():
            with suppress(FileNotFoundError):
                self.folder.rmdir()  # fails if something has come to lie there; Windows renames onto no empty folder
            os.rename(self.partial, self.folder)
