"""Containers: whether `data.path` is a folder of images, archives, tables or stacks, which is found out by looking."""

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.data.config import FolderConfig
from ldm.data.decoding import EXTENSIONS
from ldm.data.layouts.archives import ArchiveTree, agree_on_packaging
from ldm.data.layouts.arrays import list_idx, list_npy, list_npz
from ldm.data.layouts.file_tree import Exclusion, ending_of, is_image
from ldm.data.layouts.folder import FolderTree
from ldm.data.layouts.listing import Listing, joined
from ldm.data.layouts.metadata import metadata_files
from ldm.data.layouts.parquet import list_parquet
from ldm.data.layouts.splits import split_of_file
from ldm.data.layouts.tree_listing import list_tree
from ldm.data.layouts.unread_formats import unread_format
from ldm.errors import DataError


@dataclass(frozen=True)
class Container:
    """A kind of file that holds many images."""

    name: re.Pattern[str]
    listings: Callable[[Sequence[Path], FolderConfig], list[Listing]]  # of several files, that of each
    beside: re.Pattern[str] = re.compile(r"")  # files that belong to it


def list_archives(files: Sequence[Path], config: FolderConfig) -> list[Listing]:
    """The images in zips or tars."""
    exclude = Exclusion(config.exclude)
    trees = [ArchiveTree(file, exclude) for file in files]
    if len(trees) > 1:
        agree_on_packaging(trees)
    listings = [list_tree(tree, config) for tree in trees]
    listings[0].patterns_used |= exclude.used
    return listings


def one_by_one(listing: Callable[[Path, FolderConfig], Listing]) -> Callable[..., list[Listing]]:
    """For files that say all of themselves."""
    return lambda files, config: [listing(file, config) for file in files]


CONTAINERS = (
    Container(re.compile(r".+\.(zip|tar|tar\.\w+|tgz|tbz2?|txz)"), list_archives),
    Container(re.compile(r".+\.(parquet|pq)"), one_by_one(list_parquet)),
    Container(re.compile(r".+\.npz"), one_by_one(list_npz)),
    Container(re.compile(r".*images.*idx3.*"), one_by_one(list_idx), re.compile(r".*labels.*idx1.*")),
    Container(re.compile(r".+\.npy"), one_by_one(list_npy)),
)
READ = "a folder of images, .zip, .tar, .parquet, .npz, .npy"


def list_images(config: FolderConfig) -> Listing:
    """The images that `data.path` holds; DataError where it holds none that can be read."""
    path = Path(config.path).expanduser()
    files = [] if os.path.lexists(path) else _expanded(str(path))
    if files:
        if missing := next((file for file in files if not os.path.isfile(file)), None):
            if os.path.isdir(missing):
                raise DataError(f"data.path {config.path}: {missing} is a folder; a pattern stands for files only")
            raise DataError(f"data.path {config.path}: there is no file {missing}")
        listing = _of_files(list(map(Path, files)), Path(os.path.commonpath(map(os.path.dirname, files))), config)
    else:
        _check_exists(path)
        listing = _of_folder(path, config) if path.is_dir() else _of_files([path], path.parent, config)
    for pattern in config.exclude:
        if pattern not in listing.patterns_used:
            raise DataError(
                f'data.exclude "{pattern}" matches nothing in {path}: patterns are paths from there on, as in "*.gif",'
                ' "thumbs", "**/mask_*.png"'
            )
    return listing


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        seen = "" if path.is_absolute() else f" in {Path.cwd()}, where a relative path begins"
        raise DataError(f"data.path {path} does not exist{seen}") from error
    except OSError as error:
        raise DataError(f"data.path {path} cannot be read: {error.strerror}") from error


def _of_folder(path: Path, config: FolderConfig) -> Listing:
    """The images of a folder; if it has none, those of the archives, tables or stacks in it."""
    exclude = Exclusion(config.exclude)
    tree = FolderTree(path, exclude)
    listing = None
    if not any(is_image(name) for name in tree.names) and not metadata_files(tree):
        for container in CONTAINERS:
            files = [name for name in tree.names if container.name.fullmatch(name.lower())]
            if files and listing is None:
                listing = _of_files([path / name for name in files], path, config)
                others = [name for name in tree.names if not container.beside.fullmatch(name.lower())]
                listing.passed_over.update(ending_of(name) for name in others if name not in set(files))
        if listing is None and (other := unread_format(tree.names)):
            raise DataError(f"data.path {path} holds no images that can be read: {other}")
    listing = listing or list_tree(tree, config)
    listing.patterns_used |= exclude.used
    return listing


def _of_files(files: Sequence[Path], folder: Path, config: FolderConfig) -> Listing:
    """The images of several files of one kind; the splits are those that their names say, if they do."""
    names = [file.relative_to(folder).as_posix() for file in files]
    kind = next((each for each in CONTAINERS if all(each.name.fullmatch(file.name.lower()) for file in files)), None)
    if kind is None:
        raise DataError(_not_a_container(files[0]))
    splits = [split_of_file(name) if config.split != "none" else "" for name in names]
    if len(files) > 1 and any(splits) and not all(splits):
        raise DataError(
            f"{names[splits.index('')]} is of no split, but others beside it are ({next(filter(None, splits))}): name"
            " all of them so, or read them together by --data.split none"
        )
    listings = {}
    for listing, name, split in zip(kind.listings(files, config), names, splits, strict=True):
        if split and len(files) > 1:
            listing.entries = [replace(entry, split=split) for entry in listing.entries]
        listings[name] = listing
    return joined(listings)


def _not_a_container(file: Path) -> str:
    if other := unread_format([file.name]):
        return f"data.path {file}: {other}"
    if file.name.lower().endswith(EXTENSIONS):
        return f"data.path {file} is one image: give the folder that it lies in"
    return f"data.path {file} is not {READ}"


def _expanded(path: str) -> list[str]:
    """The files that a pattern with {000..007}, {a,b} or * in it stands for, in order; empty without such a pattern."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", path)
    if found is None:
        return sorted(glob.glob(path)) if "*" in path else []
    first, last, words = found.groups()
    parts = words.split(",") if words else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    paths = [path[: found.start()] + part + path[found.end() :] for part in parts]
    return [file for each in paths for file in _expanded(each) or [each]]
