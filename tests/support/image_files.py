"""Tiny images and the files, archives and tables that hold them, for tests of layouts."""

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def gray(level: int) -> bytes:
    """A PGM of 4 x 4 pixels, all of this level: bytes that no encoder's version changes."""
    return b"P5 4 4 255\n" + bytes([level]) * 16


def write_files(folder: Path, files: Iterable[str] | Mapping[str, str | bytes]) -> Path:
    """Files in a folder, by path: those without content of their own are images, each of another level."""
    for level, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = files[name] if isinstance(files, Mapping) else ""
        path.write_bytes(content.encode() if content and isinstance(content, str) else content or gray(level))
    return folder


def split_folders(folder: Path, *splits: str, each: int = 3) -> Path:
    """`each` images of cats and of dogs in every split."""
    names = [f"{split}/{kind}/{n}.pgm" for split in splits for kind in ("cat", "dog") for n in range(each)]
    return write_files(folder, names)


def zipped(folder: Path, root: str = "") -> Path:
    """A zip beside the folder, of all that is in it, below `root`."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, root + file.relative_to(folder).as_posix())
    return folder.with_suffix(".zip")


def tarred(folder: Path, root: str = "") -> Path:
    """A tar beside the folder, of all that is in it, below `root`."""
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        archive.add(folder, root or ".")
    return folder.with_suffix(".tar")


def shard(file: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of these members in this order, as WebDataset writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file
