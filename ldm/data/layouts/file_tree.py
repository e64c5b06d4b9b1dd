"""A tree of files, in a folder or in an archive, and the patterns by which some of them are left out."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

from ldm.data.decoding import EXTENSIONS
from ldm.data.layouts.listing import ImageStore


class FileTree(ImageStore, Protocol):
    """The files of a folder or an archive, by their paths in it, with forward slashes."""

    place: str  # what messages call it
    names: list[str]  # sorted, without hidden and excluded ones
    is_archive: bool
    packaging: str | None  # the folders at the top that are only that where everything lies in them; None: any are

    def __contains__(self, name: str) -> bool:
        """Whether there is such a file, hidden ones included."""

    def read(self, name: str) -> bytes:
        """The content of a small file; DataError if it cannot be read."""


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its ending."""
    return name.lower().endswith(EXTENSIONS)


def ending_of(name: str) -> str:
    """A file's ending as it is counted; the name of one that has none."""
    path = PurePosixPath(name)
    return path.suffix.lower() or path.name


def is_hidden(name: str) -> bool:
    """Whether a file or a folder on the way to it is hidden, or is what macOS adds to an archive."""
    return name.startswith((".", "__MACOSX/")) or "/." in name


@dataclass
class Exclusion:
    """`data.exclude`: paths in which `*` stands for anything but a slash and `**` for any folders; a folder means all
    that is in it."""

    patterns: Sequence[str]
    used: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        hits = [pattern for pattern in self.patterns if _expression(pattern).fullmatch(name)]
        self.used.update(hits)
        return bool(hits)

    def visible(self, names: Iterable[str]) -> Iterator[str]:
        """The names that are neither hidden nor left out."""
        return (name for name in names if not is_hidden(name) and name not in self)


def _expression(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression; `re` keeps those that were compiled before."""
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./").strip("/"))
    return re.compile("".join(meanings.get(piece) or re.escape(piece) for piece in pieces) + "(?:/.*)?", re.DOTALL)
