"""Files of latents for other people's programs: .safetensors or .npz, written in chunks, and read again with .npy too.

`latents` (images x channels x height x width, float32) are standardized as `Autoencoder.encode` gives them; `mean` and
`std`, one number per channel, undo that: latents * std + mean is what the network itself gives and takes. `moments`
(images x 2 channels x ...) may stand in their place: means, then log variances. `measured_mean` and `measured_std` are
those of these very latents, `labels` the classes. Names of files and classes are in the header of a .safetensors, and
arrays of text in an .npz.
"""

import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ldm.errors import ConfigError, DataError

HEADER = "ldm.latents"  # in the metadata of a .safetensors
WRITTEN = (".safetensors", ".npz")
READ = (*WRITTEN, ".npy")
SAFETENSORS_NAMES = {"float32": "F32", "int64": "I64"}


@dataclass(frozen=True)
class LatentArray:
    """An array of a file; its rows are asked for when it is written, so that no more than a chunk is in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[np.ndarray]]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def small(name: str, values: Any, dtype: str) -> LatentArray:
    """An array that is there already."""
    found = np.asarray(values, dtype=dtype)
    return LatentArray(name, dtype, found.shape, lambda: [found])


def write(path: Path, arrays: Sequence[LatentArray], about: dict[str, Any]) -> None:
    """Write the arrays, one after the other, and what is said about them."""
    with open(path, "wb") as file:
        (write_safetensors if path.name.removesuffix(".partial").endswith(".safetensors") else write_npz)(
            file, arrays, about
        )


def write_safetensors(file: BinaryIO, arrays: Sequence[LatentArray], about: dict[str, Any]) -> None:
    """The format is a length, a header of JSON with the place of each tensor, and the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", HEADER: json.dumps(about)}}
    place = 0
    for array in arrays:
        ends = [place, place + array.size]
        header[array.name] = {"dtype": SAFETENSORS_NAMES[array.dtype], "shape": array.shape, "data_offsets": ends}
        place = ends[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        for chunk in array.chunks():
            file.write(chunk.astype(f"<{np.dtype(array.dtype).str[1:]}").tobytes())


def write_npz(file: BinaryIO, arrays: Sequence[LatentArray], about: dict[str, Any]) -> None:
    """An archive of .npy files, as NumPy reads it; lists of text are arrays of their own."""
    texts = {name: np.array(value) for name, value in about.items() if isinstance(value, list) and value}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for array in arrays:
            header = {"descr": np.dtype(array.dtype).str, "fortran_order": False, "shape": array.shape}
            with archive.open(f"{array.name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header)
                for chunk in array.chunks():
                    entry.write(chunk.astype(array.dtype).tobytes())
        for name, text in {**texts, "about": np.array(json.dumps(about))}.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, text, allow_pickle=False)


@dataclass(frozen=True)
class LatentFile:
    """The latents in a file, by index, and what is known of them: `names`, `image` (its sides), `sha256`, ..."""

    shape: tuple[int, int, int, int]
    rows: Callable[[int, int], Tensor]  # from one index to another
    about: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> LatentFile:
    """The latents in a file of ours, or in another's .safetensors or .npz with `latents`, or in a bare .npy.

    Of moments the means are taken. DataError if there are none.
    """
    if path.suffix not in READ:
        raise ConfigError(f"{path} is not a file of latents: it must end in {', '.join(READ)}")
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        found = read_safetensors(path) if path.suffix == ".safetensors" else read_numpy(path)
    except Exception as error:  # what NumPy, zipfile and safetensors raise for damaged files is of many types
        raise DataError(f"{path} holds no latents that can be read: {' '.join(str(error).split())[:160]}") from error
    if len(found.shape) != 4 or not all(found.shape):
        shape = " x ".join(map(str, found.shape))
        raise DataError(f"{path} holds an array of {shape}, and not images x channels x height x width")
    return found


def read_safetensors(path: Path) -> LatentFile:
    """Rows are read when they are asked for."""
    with safe_open(path, "pt") as opened:
        name = latents_among(list(opened.keys()))
        shape = tuple(opened.get_slice(name).get_shape())
        about = json.loads((opened.metadata() or {}).get(HEADER, "{}"))

    def rows(start: int, end: int) -> Tensor:
        with safe_open(path, "pt") as opened:
            found: Tensor = opened.get_slice(name)[start:end]
            return means(found, name)

    return LatentFile(means_shape(shape, name), rows, about)


def read_numpy(path: Path) -> LatentFile:
    """A .npy is mapped, so that its rows are read when they are asked for; an .npz is read whole."""
    opened = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(opened, np.ndarray):
        return LatentFile(opened.shape, lambda start, end: means(from_any_order(opened[start:end]), "latents"))
    with opened:
        name = latents_among(opened.files)
        latents = opened[name]
        about = json.loads(str(opened["about"])) if "about" in opened.files else {}
    return LatentFile(
        means_shape(latents.shape, name), lambda start, end: means(from_any_order(latents[start:end]), name), about
    )


def from_any_order(rows: np.ndarray) -> Tensor:
    """Rows of an array of either byte order, in memory of their own."""
    return torch.from_numpy(np.array(rows, dtype=rows.dtype.newbyteorder("=")))


def latents_among(names: list[str]) -> str:
    """The name of the latents or moments."""
    for name in ("latents", "moments"):
        if name in names:
            return name
    raise ValueError(f"no array is called latents or moments; there are {', '.join(names[:8]) or 'none'}")


def means(values: Tensor, name: str) -> Tensor:
    """The latents, or the first half of moments."""
    return values.float() if name == "latents" else values.float().chunk(2, dim=1)[0]


def means_shape(shape: Sequence[int], name: str) -> Any:
    """The shape of what `means` gives."""
    if name == "latents" or len(shape) != 4:
        return tuple(shape)
    return shape[0], shape[1] // 2, *shape[2:]
