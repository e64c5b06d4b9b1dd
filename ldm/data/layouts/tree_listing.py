"""The listing of a tree of files: which are images, and what folders, metadata and files beside them say of these."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from ldm.data.config import FolderConfig
from ldm.data.decoding import EXTENSIONS, NEEDS
from ldm.data.layouts.file_tree import FileTree, ending_of, is_image
from ldm.data.layouts.listing import CAPTION_COLUMNS, Entry, Listing, check_label
from ldm.data.layouts.metadata import described, metadata_files
from ldm.data.layouts.splits import folders_are_splits, split_named
from ldm.errors import DataError

CAPTIONS = (".txt", ".caption")
FEW = 0.01  # the share of images beside class folders that are passed over instead of refused


def list_tree(tree: FileTree, config: FolderConfig) -> Listing:
    """The images of a folder or an archive by name: those that its metadata names, or all that lie in it."""
    images, unnamed = [name for name in tree.names if is_image(name)], 0
    notes: list[str] = []
    described_captions = Counter[str]()
    files = metadata_files(tree)
    entries = _of_metadata(tree, files, config, described_captions)
    if entries is not None:
        _check_covered(tree, images, files, config)
        unnamed = len(set(images) - {entry.name for entry in entries})
    else:
        if not images:
            raise DataError(f"{tree.place} holds no images; looked for {' '.join(EXTENSIONS)}{_others(tree)}")
        entries = [Entry(name, None, name) for name in images]
    entries = _with_splits(tree, entries, config)
    sidecars: set[str] = set()
    if not files and config.labels != "none":
        entries, sidecars = _with_sidecar_labels(tree, entries, config)
    asked = config.labels == "metadata" or (config.labels == "auto" and config.label_column != "label")
    if asked and all(entry.label is None for entry in entries):
        raise DataError(
            f"{tree.place} has no metadata that says {config.label_column}, as data.labels or data.label_column asks"
        )
    if config.labels == "folder" or (config.labels == "auto" and not files and not sidecars):
        entries, notes = _with_folder_labels(tree, entries, config)
    if wants_captions(config, entries):
        entries, read = _with_captions(tree, entries)
        sidecars |= read
    passed_over, captions = _passed_over(tree, images, sidecars | set(files.values()))
    if config.conditions:
        described_captions.clear()  # which of them are used is for the config to say
    return Listing(entries, tree, passed_over, captions + described_captions, unnamed, notes)


def _of_metadata(
    tree: FileTree, files: dict[str, str], config: FolderConfig, captions: Counter[str]
) -> list[Entry] | None:
    """The images that metadata names; None if all images count, for there is none, or it says so."""
    if not files:
        return None
    column = config.label_column if config.labels in ("auto", "metadata") else None
    keeps = bool(config.conditions)
    parts = [described(tree, file, column, captions, keep_rows=keeps) for file in files.values()]
    entries = [entry for part in parts for entry in part or ()]
    return sorted(entries, key=lambda entry: entry.name) or None


def _check_covered(tree: FileTree, images: Sequence[str], files: dict[str, str], config: FolderConfig) -> None:
    """Raise DataError if a metadata file in one sub-folder would hide the images of another that is no split."""
    for name in images:
        top = name.split("/")[0]
        if not any(name.startswith(folder) for folder in files) and (config.split == "none" or not split_named(top)):
            file = next(iter(files.values()))
            raise DataError(
                f"{tree.place} has a {file} and images outside of its folder ({name}): describe them too, or leave the"
                f" file out with --data.exclude '[\"{file}\"]'"
            )


# ---- folders


def _with_splits(tree: FileTree, entries: list[Entry], config: FolderConfig) -> list[Entry]:
    """The entries with the split that the first folder on their way names, if folders are splits."""
    root = _root(tree, entries, config)
    inside = [_below(root, entry).split("/") for entry in entries]
    folders = {parts[0] for parts in inside if len(parts) > 1}
    if not folders or not folders_are_splits(folders, tree.place, config):
        return entries
    top = [entry for entry, parts in zip(entries, inside, strict=True) if len(parts) == 1]
    if len(top) > FEW * (len(entries) - len(top)):
        nested = [entry for entry, parts in zip(entries, inside, strict=True) if len(parts) > 1]
        _refuse_mixture(tree, top, nested)
    return [
        replace(entry, split=parts[0] if len(parts) > 1 else "") for entry, parts in zip(entries, inside, strict=True)
    ]


def _root(tree: FileTree, entries: Sequence[Entry], config: FolderConfig) -> str:
    """The folder in which everything lies, if that is packaging: in archives, and around nothing but splits."""
    root = ""
    while True:
        inside = [_below(root, entry).split("/") for entry in entries]
        if len({parts[0] for parts in inside}) != 1 or len(inside[0]) == 1 or split_named(inside[0][0]):
            return root
        deeper = {parts[1] for parts in inside if len(parts) > 2}
        all_deeper = all(len(parts) > 2 for parts in inside)
        further = f"{root}{inside[0][0]}/"
        is_packaging = tree.packaging is None or f"{tree.packaging}/".startswith(further)
        if not is_packaging and not (all_deeper and folders_are_splits(deeper, tree.place, config)):
            return root
        root = further


def _below(root: str, entry: Entry) -> str:
    """The rest of an image's path, without the packaging and its split."""
    return entry.name.removeprefix(root).removeprefix(f"{entry.split}/" if entry.split else "")


def _with_folder_labels(tree: FileTree, entries: list[Entry], config: FolderConfig) -> tuple[list[Entry], list[str]]:
    """The entries with the first folder on their way as class, and notes; a flat folder, or split, has no classes."""
    splits = sorted({entry.split for entry in entries})
    root = _root(tree, entries, config) if splits == [""] else _root_of_splits(entries)
    labeled: list[Entry] = []
    notes: list[str] = []
    for split in splits:
        part = [entry for entry in entries if entry.split == split]
        outside_of_splits = not split and len(splits) > 1
        labeled += part if outside_of_splits else _labeled_by_folder(tree, part, root, notes)
    if config.labels == "folder" and all(entry.label is None for entry in labeled):
        raise DataError(f"{tree.place} has no sub-folders that could be classes, as data.labels folder asks")
    return sorted(labeled, key=lambda entry: entry.name), notes + _looks_numbered(labeled)


def _labeled_by_folder(tree: FileTree, entries: list[Entry], root: str, notes: list[str]) -> list[Entry]:
    """The images in sub-folders with their class, or all images where there are none; few beside are left out."""
    inside = [_below(root, entry) for entry in entries]
    top = [entry for entry, name in zip(entries, inside, strict=True) if "/" not in name]
    nested = [entry for entry, name in zip(entries, inside, strict=True) if "/" in name]
    if not nested:
        return entries
    if len(top) > FEW * len(nested):
        _refuse_mixture(tree, top, nested)
    if top:
        names = ", ".join(entry.name for entry in top[:3])
        notes.append(f"beside the class folders, and passed over: {names}{' ...' if top[3:] else ''}")
    return [replace(entry, label=_below(root, entry).split("/")[0]) for entry in nested]


def _root_of_splits(entries: Sequence[Entry]) -> str:
    """The packaging around splits."""
    first = next(entry for entry in entries if entry.split)
    return first.name[: f"/{first.name}".index(f"/{first.split}/")]


def _refuse_mixture(tree: FileTree, top: Sequence[Entry], nested: Sequence[Entry]) -> None:
    if len(top) <= len(nested):
        patterns = {f"*{PurePosixPath(entry.name).suffix}" for entry in top}
    else:
        patterns = {entry.name.split("/")[0] for entry in nested}
    flag = f"--data.exclude '{json.dumps(sorted(patterns), ensure_ascii=False)}'"
    raise DataError(
        f"{tree.place} holds images at the top ({top[0].name}) and in sub-folders ({nested[0].name}): move all of them"
        f" into one sub-folder per class, or none; or leave some out with {flag}, or read all without classes with"
        " --data.labels none"
    )


def _looks_numbered(entries: Sequence[Entry]) -> list[str]:
    """A note where class folders are called as FFHQ numbers its parts."""
    names = {str(entry.label) for entry in entries if entry.label is not None}
    if names and all(name.isdecimal() and len(name) >= 4 for name in names):
        return [f"folders such as {min(names)} are read as classes: --data.labels none if they are only numbered"]
    return []


# ---- files beside the images


def _with_sidecar_labels(tree: FileTree, entries: list[Entry], config: FolderConfig) -> tuple[list[Entry], set[str]]:
    """The labels of a WebDataset, in `.cls` or `.json` files beside the images of an archive, and those files."""
    if not tree.is_archive:
        return entries, set()
    for ending in (".cls", ".json"):
        files = {entry.name: _key(entry.name) + ending for entry in entries}
        used = {file for file in files.values() if file in tree}
        if not used:
            continue
        labels = {name: _sidecar_label(tree, file, config) for name, file in files.items() if file in used}
        if any(label is not None for label in labels.values()):
            return [replace(entry, label=labels.get(entry.name)) for entry in entries], used
    return entries, set()


def wants_captions(config: FolderConfig, entries: Sequence[Entry]) -> bool:
    """Whether a text is asked for that no metadata has, so that it must be in files beside the images."""
    texts = {name: each for name, each in config.conditions.items() if each.kind == "text" and each.column is None}
    return any(
        not any(column in entry.row for column in (name, *CAPTION_COLUMNS) for entry in entries) for name in texts
    )


def _with_captions(tree: FileTree, entries: list[Entry]) -> tuple[list[Entry], set[str]]:
    """The entries with the text of the caption files beside them in their rows, and those files."""
    found, read = [], set[str]()
    for entry in entries:
        stem = entry.name.rpartition(".")[0]
        endings = (*CAPTIONS, *map(str.upper, CAPTIONS))
        file = next((stem + ending for ending in endings if stem + ending in tree), None)
        if file is not None:
            read.add(file)
            entry = replace(entry, row={**entry.row, CAPTION_COLUMNS[0]: _caption(tree, file)})
        found.append(entry)
    return found, read


def _caption(tree: FileTree, file: str) -> str:
    try:
        return " ".join(tree.read(file).decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{tree.place.removeprefix('data.path ')}/{file}: the caption is no text in UTF-8: save it as one"
        ) from error


def _sidecar_label(tree: FileTree, file: str, config: FolderConfig) -> str | int | None:
    content = tree.read(file)
    try:
        if file.endswith(".cls"):
            text = content.decode().strip()
            return int(text) if text.isdecimal() and str(int(text)) == text else text
        found = json.loads(content)
        label = found.get(config.label_column) if isinstance(found, dict) else None
        check_label(label, config.label_column)
        return label
    except (ValueError, RecursionError) as error:
        raise DataError(f"{tree.place.removeprefix('data.path ')}/{file}: {error}") from error


def _key(name: str) -> str:
    """What the files of one sample share: the path up to the first dot of the last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".")[0]


def _passed_over(tree: FileTree, images: Sequence[str], used: set[str]) -> tuple[Counter[str], Counter[str]]:
    """Files that are neither images nor read for their labels, by ending, and those of them that are captions."""
    stems = {name.rpartition(".")[0] for name in images}
    passed_over, captions = Counter[str](), Counter[str]()
    for name in tree.names:
        if is_image(name) or name in used:
            continue
        ending = ending_of(name)
        if ending in CAPTIONS and name.rpartition(".")[0] in stems:
            captions[ending] += 1
        else:
            passed_over[ending] += 1
    return passed_over, captions


def _others(tree: FileTree) -> str:
    found, _ = _passed_over(tree, [], set())
    shown = ", ".join(f"{ending} {count:,}" for ending, count in found.most_common(5))
    advice = dict.fromkeys(f"; to read {ending}: {NEEDS[ending]}" for ending in found if ending in NEEDS)
    return f"; found {shown}{''.join(advice)}" if shown else ""
