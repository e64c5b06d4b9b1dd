"""Archives: the files inside a zip or an uncompressed tar, read where they lie; nothing is unpacked.

A file is found by its offset and read by a handle of its own, so that threads and forked workers share nothing.
"""

import io
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ldm.data.config import FolderConfig
from ldm.data.decoding import UnreadableImage, decode_bytes
from ldm.data.layouts.archive_index import Places, indexed
from ldm.data.layouts.file_tree import Exclusion, is_image
from ldm.data.layouts.splits import word_of_split
from ldm.errors import DataError

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's file: signature, ..., lengths of its name and its extra field


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file lies in an archive."""

    offset: int  # of its bytes in a tar, of its local header in a zip
    stored: int  # bytes in the archive
    size: int  # bytes when unpacked
    deflated: bool = False
    crc: int | None = None  # CRC-32 of its content, which a tar does not keep


class ArchiveTree:
    """The files of one archive."""

    is_archive = True

    def __init__(self, archive: Path, exclude: Exclusion | None = None):
        self.packaging: str | None = None
        self.archive, self.place = archive, f"data.path {archive}"
        try:
            self.members = dict(_members(archive))
        except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, ValueError, NotImplementedError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise DataError(f"{archive} is damaged or no archive: {' '.join(reason.split())}") from error
        self.names = sorted((exclude or Exclusion(())).visible(self.members))

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str) -> bytes:
        """The content of a file; DataError if it is damaged."""
        try:
            return self._content(self.members[name])
        except (OSError, ValueError, zlib.error, struct.error) as error:
            raise DataError(f"{self.archive}/{name} cannot be read: {error}") from error

    def image(self, name: str, config: FolderConfig) -> np.ndarray:
        """The decoded image, or UnreadableImage."""
        path = f"{self.archive}/{name}"
        try:
            content = self._content(self.members[name])
        except (OSError, ValueError, zlib.error, struct.error) as error:
            raise UnreadableImage(path, str(error)) from error
        return decode_bytes(content, path, config, pixel_limit=config.pixel_limit)

    def checksum(self, name: str) -> list[int]:
        """Size in bytes, and the CRC-32 of a zip's directory, in a tar that of the first 64 KiB."""
        member = self.members[name]
        if member.crc is not None:
            return [member.size, member.crc]
        with open(self.archive, "rb") as file:
            file.seek(member.offset)
            return [member.size, zlib.crc32(file.read(min(member.size, 2**16)))]

    def size(self, name: str) -> list[int]:
        """Size in bytes."""
        return [self.members[name].size]

    def _content(self, member: Member) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(member.offset)
            if member.crc is not None:
                signature, *lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                if signature != b"PK\3\4":
                    raise ValueError("no file begins where the archive's directory says")
                file.seek(sum(lengths), io.SEEK_CUR)
            content = file.read(member.stored)
        if member.deflated:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
        if len(content) != member.size or zlib.crc32(content) != (member.crc or zlib.crc32(content)):
            raise ValueError("its content is not what the archive says")
        return content


def agree_on_packaging(trees: Sequence[ArchiveTree]) -> None:
    """Let archives of one data set take those folders for packaging that are it in all of them.

    An archive may hold one class alone, whose folder then holds everything in it. A folder is packaging if all archives
    have the same, if each is of a split, or if each is called as its archive and there are several folders inside.
    """
    images = [[name for name in tree.names if is_image(name)] for tree in trees]
    around = [folders_around(names) for names in images]
    depth = 0
    while depth < min(map(len, around)):
        tops = [folders[depth] for folders in around]
        if len(set(tops)) > 1 and not all(map(word_of_split, tops)):
            inside = {PurePosixPath(name).parts[1:-1][:1] for names in images for name in names}
            if depth or tops != [tree.archive.stem for tree in trees] or () in inside or len(inside) == 1:
                break
        depth += 1
    for tree, folders in zip(trees, around, strict=True):
        tree.packaging = "/".join(folders[:depth])


def folders_around(names: Sequence[str]) -> tuple[str, ...]:
    """The folders in which all of these sorted files lie: those of the first and the last."""
    ends = [posixpath.dirname(name) for name in (*names[:1], *names[-1:])]
    return PurePosixPath(posixpath.commonpath(ends)).parts if ends else ()


def _members(archive: Path) -> Iterator[tuple[str, Member]]:
    with open(archive, "rb") as file:
        start = file.read(6)
        for magic, tool in COMPRESSED.items():
            if start.startswith(magic):
                raise DataError(
                    f"{archive} is compressed as a whole, so images cannot be read from its middle: {tool} it first"
                    " (images are compressed already), or unpack it into a folder"
                )
    if start.startswith(b"PK"):
        yield from _in_zip(archive)
    else:
        places = indexed(archive, _in_tar)
        yield from ((name, Member(offset, size, size)) for name, (offset, size) in places.items())


def _in_zip(archive: Path) -> Iterator[tuple[str, Member]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                continue
            if info.flag_bits & 1:
                raise DataError(f"{archive} is encrypted ({info.filename}): unpack it into a folder")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{archive}: {info.filename} is neither stored nor deflated: unpack it into a folder")
            deflated = info.compress_type == zipfile.ZIP_DEFLATED
            yield (
                posixpath.normpath(info.filename.replace("\\", "/")),  # as some programs on Windows have it
                Member(info.header_offset, info.compress_size, info.file_size, deflated, info.CRC),
            )


def _in_tar(archive: Path) -> Places:
    places: Places = {}
    with tarfile.open(archive, "r:") as file:
        for info in file:
            if info.isreg() and not info.issparse():
                places[posixpath.normpath(info.name)] = info.offset_data, info.size
            file.members.clear()  # type: ignore[attr-defined]  # which it keeps, at a kilobyte each
        end = file.offset  # of the header that was the last one for tarfile, be it damaged or none
    with open(archive, "rb") as raw:
        raw.seek(end)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{archive} is cut short or damaged: it has no end after {end:,} bytes; copy it again")
    return places
