"""Checkpoints that survive kill -9, a full disk and a flipped bit.

A checkpoint is a folder `step-00000500/` of safetensors files, a `state.json`, and a `manifest.json` with the size and
sha256 of each. Nothing in it is a pickle. It is written under another name, synced, and only then renamed.

Two endings mark folders that are not in place: `.partial` is being written or removed, and the next save sweeps it
away; `.replaced` stepped aside for a new one of the same name, and comes back if the new one never arrived.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ldm.errors import CheckpointError, LDMError

T = TypeVar("T")
JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_FORMAT = 1
_FOLDER = re.compile(r"step-([0-9]{8,})(\.replaced)?")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors|state\.json")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: tensors on the CPU by file and name, and the state as JSON reads it back."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, JSON]) -> Path:
    """Write a checkpoint and return its path; one of the same step is replaced, and every other one left alone.

    Each entry of `tensors` becomes a file of that name. Tensors may live on any device, share memory or be strided.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f"{final.name}.partial"
    with _writing(final, partial):
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.parent)
        _sweep(folder)
        partial.mkdir()
        recorded = {}
        for file, data in _serialized(tensors, state):
            (partial / file).write_bytes(data)
            recorded[file] = _fingerprint(data)
        (partial / "manifest.json").write_bytes(_manifest(step, recorded))
        replace_folder(partial, final)
    return final


def load(path: Path) -> Checkpoint:
    """The checkpoint in `path`, every byte of it verified; `CheckpointError` names the file that is damaged."""
    name = _FOLDER.fullmatch(path.name)
    if name is None:
        raise CheckpointError(f"{path} is not a checkpoint: the name of one looks like step-00000500")
    step = int(name[1])
    with _reading(path / "manifest.json") as data:
        recorded = dict(json.loads(data).get("files", {}))
        # A manifest is, byte for byte, the one that would be written: not a blank more, no file twice, no other format.
        if data != _manifest(step, recorded) or "state.json" not in recorded or not all(map(_FILE.fullmatch, recorded)):
            raise ValueError(f"it is not a manifest of step {step} in format {_FORMAT}")
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    for file, fingerprint in recorded.items():
        with _reading(path / file) as data:
            if _fingerprint(data) != fingerprint:
                raise ValueError("its size or sha256 is not the one in the manifest")
            if file == "state.json":
                state = dict(json.loads(data))
            else:
                tensors[file.removesuffix(".safetensors")] = safetensors.torch.load(data)
    return Checkpoint(step, tensors, state, path)


def newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, or None if there are none at all.

    `warn` gets one line for each damaged one on the way; if none is whole, `CheckpointError` names them all.
    """
    damages: list[str] = []
    for _, path in sorted(_folders(folder).items(), reverse=True):
        try:
            checkpoint = load(path)
        except CheckpointError as error:
            damages.append(str(error))
            continue
        for damage in damages:
            warn(f"{damage}; using {path} instead")
        return checkpoint
    if damages:
        raise CheckpointError(f"no checkpoint in {folder} is whole; move it away to start anew: {'; '.join(damages)}")
    return None


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, whole or damaged, in increasing order."""
    return sorted(_folders(folder))


def prune(folder: Path, keep: Collection[int], *, keep_newest: bool = True) -> None:
    """Remove the checkpoints whose step is not in `keep`, but never the newest one while it is to be kept."""
    _sweep(folder)
    found = sorted(_folders(folder).items())
    for step, path in found[:-1] if keep_newest else found:
        if step not in keep:
            partial = folder / f"{path.name}.partial"
            with _writing(path, partial):
                os.rename(path, partial)
                _sync(folder)
                shutil.rmtree(partial)


def to_keep(steps: Collection[int], total: int, newest: int = 2) -> set[int]:
    """The steps worth keeping of a run of `total` steps: the newest few, and the first at or after 1/16 and 1/8.

    The early ones are for guidance with a weaker version of the same model (Karras et al. 2024).
    """
    early = [[step for step in steps if step * parts >= total] for parts in (16, 8)]
    return {min(later) for later in early if later} | set(sorted(steps, reverse=True)[:newest])


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that `path` holds either what it held before or all of `data`, whatever happens."""
    partial = path.with_name(f"{path.name}.partial")
    with _writing(path, partial):
        partial.write_bytes(data)
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)


def write_folder_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then put it in place of `folder` in one move."""
    new = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(new, ignore_errors=True)  # what an interrupted attempt left
        new.mkdir(parents=True)
        write(new)
    except (OSError, SafetensorError) as error:  # a full disk reaches safetensors, which has an error of its own for it
        shutil.rmtree(new, ignore_errors=True)
        raise CheckpointError(f"could not write {folder}: {error}; the same command tries again") from error
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    replace_folder(new, folder)


def read_json(path: Path) -> Any:
    """What a file of JSON holds; `CheckpointError` names one that is missing or damaged."""
    with _reading(path) as data:
        return json.loads(data)


def read_entry(path: Path, name: str, kind: type[T]) -> T:
    """One entry of a file with a JSON object; `CheckpointError` if the file is damaged or has none of that kind."""
    found = read_json(path)
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} is damaged: it does not say {name}")
    return value


def replace_folder(new: Path, final: Path) -> None:
    """Move the fully written folder `new` to `final`, in the same parent, in place of what was there.

    If the disk is full, `new` is removed and `final` is what it was.
    """
    aside = final.with_name(f"{final.name}.replaced")
    with _writing(final, new):
        for path in sorted(new.rglob("*")):
            _sync(path)
        _sync(new)
        _settle(final)
        try:
            if final.exists():
                os.rename(final, aside)
            os.rename(new, final)
        except OSError:
            _settle(final)
            raise
        _sync(final.parent)
        _settle(final)


def _settle(final: Path) -> None:
    """End an exchange: the folder that stepped aside goes if there is a new one, and comes back if there is not."""
    aside = final.with_name(f"{final.name}.replaced")
    if aside.exists() and final.exists():
        shutil.rmtree(aside)
    elif aside.exists():
        os.rename(aside, final)


def _sweep(folder: Path) -> None:
    """Clear away what a crash left behind."""
    for path in sorted(folder.glob("step-*")):
        if path.suffix == ".partial":
            shutil.rmtree(path)
        elif path.suffix == ".replaced":
            _settle(path.with_suffix(""))


def _folders(folder: Path) -> dict[int, Path]:
    """Where the checkpoint of each step lies: in place, or still aside after an exchange that a crash cut short."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step-*")):  # a name sorts before the same name with an ending
        if name := _FOLDER.fullmatch(path.name):
            found.setdefault(int(name[1]), path)
    return found


def _serialized(tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, JSON]) -> Iterator[tuple[str, bytes]]:
    """The files of a checkpoint, one after the other, so that only one is held in memory."""
    yield "state.json", json.dumps(state, indent=2).encode()
    for name, entry in tensors.items():
        file = f"{name}.safetensors"
        if not _FILE.fullmatch(file):
            raise ValueError(f"{name!r} cannot name a file of weights: use letters, digits, '_', '-' and '.'")
        # Copies, because safetensors refuses tensors that are strided or share memory.
        dense = torch.contiguous_format
        copies = {key: tensor.detach().to("cpu", copy=True, memory_format=dense) for key, tensor in entry.items()}
        yield file, safetensors.torch.save(copies)


def _fingerprint(data: bytes) -> JSON:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _manifest(step: int, recorded: Mapping[str, JSON]) -> bytes:
    content = {"format": _FORMAT, "step": step, "files": recorded}
    itself = _fingerprint(json.dumps(content).encode())  # so that damage to it is not blamed on the files it lists
    return json.dumps(content | {"manifest": itself}, indent=2).encode()


@contextmanager
def _reading(path: Path) -> Iterator[bytes]:
    """The bytes of a file of a checkpoint. Whatever goes wrong with them is damage to that file, and said in a line."""
    try:
        if not path.is_file():
            raise ValueError("it is missing")
        yield path.read_bytes()
    except (LDMError, MemoryError):
        raise
    except Exception as error:  # what safetensors raises for intact but foreign bytes is not documented
        raise CheckpointError(f"{path} is damaged: {' '.join(str(error).split())}") from error


@contextmanager
def _writing(path: Path, partial: Path) -> Iterator[None]:
    """If writing `path` fails, remove what is `partial` and say in one line what could not be written, and why."""
    try:
        yield
    except Exception as error:
        with suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        if not isinstance(error, OSError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CheckpointError(f"could not write {path}: {'the disk is full' if full else error.strerror}") from error


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    windows = os.name == "nt"  # which syncs no folders, and no files that are open for reading
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
