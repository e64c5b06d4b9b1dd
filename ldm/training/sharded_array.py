"""An array in one file that several processes write in shards, with a checksum of each: a killed build goes on."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.checkpoint import write_atomically
from ldm.errors import CheckpointError

SHARD = 4096  # images
TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
}  # NumPy has no bfloat16: its bits


@dataclass(frozen=True)
class ShardedArray:
    """`moments.npy` in a folder, views x images x ..., of `precision`; a shard is 4,096 images in all their views.

    While it is built, `building.json` says what of, and `shards/` has a file with the checksums of each shard that is
    on the disk. At the end `cache.json` takes the place of both: where it is, everything is.
    """

    folder: Path
    fingerprint: str
    shape: tuple[int, ...]
    precision: str

    @property
    def file(self) -> Path:
        """Where the numbers are."""
        return self.folder / "moments.npy"

    @property
    def description(self) -> dict[str, Any]:
        """What tells it from another one, as JSON has it."""
        what = {"fingerprint": self.fingerprint, "shape": [*self.shape]}
        return {**what, "precision": self.precision, "shard": SHARD}

    def __len__(self) -> int:
        """How many shards there are."""
        return -(-self.shape[1] // SHARD)

    def images(self, shard: int) -> range:
        """The images of a shard."""
        return range(shard * SHARD, min((shard + 1) * SHARD, self.shape[1]))

    def begin(self) -> list[int]:
        """Make the file, or take it up where the same build was cut short; the shards that are missing."""
        building = self.folder / "building.json"
        if not (building.exists() and self.file.exists() and _read(building) == self.description):
            building.unlink(missing_ok=True)
            shutil.rmtree(self.folder / "shards", ignore_errors=True)
            with self._writing(), open(self.file, "wb") as file:
                file.write(self._header())
                file.flush()
                file.truncate(self._place(self.shape[0], 0))
            (self.folder / "shards").mkdir()
            write_atomically(building, json.dumps(self.description).encode())
        return [shard for shard in range(len(self)) if not self._record(shard).exists()]

    def write(self, shard: int, chunks: Iterable[Sequence[np.ndarray]]) -> None:
        """Write the images of a shard, some at a time, each chunk in all its views, and record the checksums.

        Written, not mapped: where the disk is full, writing to a mapped file kills the process.
        """
        sums, first = [hashlib.sha256() for _ in range(self.shape[0])], self.images(shard).start
        with self._writing(), open(self.file, "r+b") as file:
            for views in chunks:
                for view, (rows, checksum) in enumerate(zip(views, sums, strict=True)):
                    data = np.ascontiguousarray(rows, TYPES[self.precision]).data.cast("B")
                    file.seek(self._place(view, first))
                    file.write(data)
                    checksum.update(data)
                first += len(views[0])
            file.flush()
            os.fsync(file.fileno())
        write_atomically(self._record(shard), json.dumps([each.hexdigest() for each in sums]).encode())

    def finish(self) -> None:
        """Note that every shard is on the disk."""
        sums = [_read(self._record(shard)) for shard in range(len(self))]
        write_atomically(self.folder / "cache.json", json.dumps(self.description | {"sha256": sums}).encode())
        (self.folder / "building.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "shards", ignore_errors=True)

    def verify(self, shard: int) -> None:
        """Raise CheckpointError if a shard is not what was written; caches of earlier versions have no checksums."""
        expected = _read(self.folder / "cache.json").get("sha256")
        if expected is None:
            return
        images, numbers = self.images(shard), np.load(self.file, mmap_mode="r", allow_pickle=False)
        found = [hashlib.sha256(view[images.start : images.stop].data.cast("B")) for view in numbers]
        if [each.hexdigest() for each in found] != expected[shard]:
            raise CheckpointError(
                f"the latent cache {self.folder} is damaged (the checksum of images {images.start} to"
                f" {images.stop - 1}): delete it and run again"
            )

    def _header(self) -> bytes:
        buffer = io.BytesIO()
        described = {"descr": TYPES[self.precision].str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(buffer, described)
        return buffer.getvalue()

    def _place(self, view: int, image: int) -> int:
        """Where in the file the numbers of an image begin."""
        size = prod(self.shape[2:]) * TYPES[self.precision].itemsize
        return len(self._header()) + (view * self.shape[1] + image) * size

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """An error in writing names the file."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.file)
            raise

    def _record(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:05d}.json"


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


def as_tensor(rows: np.ndarray) -> Tensor:
    """Rows of such a file as a tensor of the precision that they are kept in."""
    tensor = torch.from_numpy(rows)
    return tensor.view(torch.bfloat16) if rows.dtype == np.uint16 else tensor
