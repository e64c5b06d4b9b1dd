"""Metadata of images: metadata.jsonl, .csv and .parquet as Hugging Face has them, and NVlabs' dataset.json."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from ldm.data.layouts.file_tree import FileTree
from ldm.data.layouts.listing import CAPTION_COLUMNS, Entry, check_label
from ldm.data.layouts.parquet import rows_of_table
from ldm.errors import DataError

Row = tuple[str, Any]  # where it stands, for messages, and what it says, which should be a mapping

NVLABS = "dataset.json"


def metadata_files(tree: FileTree) -> dict[str, str]:
    """The file that describes each folder, by the folder's path with a slash behind it; one at the top is the only one.

    Where a folder has several, the first kind of `READERS` counts.
    """
    for name in READERS:
        if name in tree and (name != NVLABS or _is_nvlabs(tree)):
            return {"": name}
    found: dict[str, str] = {}
    for kind in reversed(READERS):
        found |= {name.removesuffix(kind): name for name in tree.names if name.endswith(f"/{kind}") and kind != NVLABS}
    return found


def described(
    tree: FileTree, file: str, label_column: str | None, captions: Counter[str], *, keep_rows: bool = False
) -> list[Entry] | None:
    """The images that a file of metadata names, sorted; None if it names none and says that nothing is labeled.

    A `file_name` is a path from the file's own folder on. `label_column` None means that labels are not wanted. What it
    says of captions is counted in `captions`, by column. With `keep_rows` the images keep all that it says of them.
    """
    folder, _, kind = file.rpartition("/")
    place = f"{tree.place.removeprefix('data.path ')}/{file}"
    entries: dict[str, Entry] = {}
    rows = READERS[kind](tree.read(file), place)
    if rows is None:
        return None
    for where, row in rows:
        try:
            entry = _entry(tree, folder, row, label_column)
            if entry.name in entries:
                raise ValueError(f"file_name {entry.name} was named before")
            if entries and (entry.label is None) != (next(iter(entries.values())).label is None):
                raise ValueError(f"either every line has a {label_column} or none")
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        entries[entry.name] = replace(entry, row=row) if keep_rows else entry
        captions.update(f"{name} in {kind}" for name in CAPTION_COLUMNS if name != label_column and row.get(name))
    if not entries:
        raise DataError(f"{place} names no images")
    return [entries[name] for name in sorted(entries)]


def _entry(tree: FileTree, folder: str, row: Any, label_column: str | None) -> Entry:
    if isinstance(row, Exception):
        raise ValueError("not JSON") from row
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError("not an object with a file_name")
    path = PurePosixPath(row["file_name"])
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file_name {path} leads out of the folder")
    name = (PurePosixPath(folder) / path).as_posix()
    if name not in tree:
        raise ValueError(f"file_name {path} does not exist" + "; write / for each \\" * ("\\" in name))
    label = row.get(label_column) if label_column else None
    group = row.get("group")
    check_label(label, label_column or "label")
    check_label(group, "group")
    return Entry(name, label, name if group is None else str(group))


def _of_jsonl(content: bytes, place: str) -> Iterator[Row]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                yield f"{place}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"{place}, line {number}", error


def _of_csv(content: bytes, place: str) -> Iterator[Row]:
    """Columns that hold whole numbers alone, written as numbers are, are numbers; empty cells are left out."""
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{place} is not a table of comma-separated values in UTF-8: {error}") from error
    columns = list(reader.fieldnames or ())
    _check_columns(columns, place)
    numbers = {name for name in columns if all(_is_number(row[name]) for _, row in rows) and name != "file_name"}
    for number, row in rows:
        if None in row or None in row.values():
            raise DataError(f"{place}, line {number}: not {len(columns)} values, as its first line has")
        cells = {name: int(text) if name in numbers else text for name, text in row.items() if text}
        yield f"{place}, line {number}", cells


def _of_parquet(content: bytes, place: str) -> Iterator[Row]:
    columns, rows = rows_of_table(content, place)
    _check_columns(columns, place)
    yield from ((f"{place}, row {number}", row) for number, row in enumerate(rows))


def _of_nvlabs(content: bytes, place: str) -> list[Row] | None:
    labels = json.loads(content)["labels"]
    if labels is None:
        return None
    pairs = labels.items() if isinstance(labels, dict) else labels
    if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{place}: labels is not a list of pairs [file name, class]")
    return [
        (f"{place}, label {number}", {"file_name": name, "label": label}) for number, (name, label) in enumerate(pairs)
    ]


READERS: dict[str, Callable[[bytes, str], Iterable[Row] | None]] = {
    "metadata.jsonl": _of_jsonl,
    "metadata.csv": _of_csv,
    "metadata.parquet": _of_parquet,
    NVLABS: _of_nvlabs,
}


def _is_nvlabs(tree: FileTree) -> bool:
    """Whether dataset.json is theirs; the name is common."""
    try:
        found = json.loads(tree.read(NVLABS))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("labels", 0), list | dict | None)


def _check_columns(columns: Sequence[str], place: str) -> None:
    if twice := next((name for name, count in Counter(columns).items() if count > 1), None):
        raise DataError(f"{place} has the column {twice} twice: leave one of them out")
    if "file_name" not in columns:
        mark = next((mark for mark in (";", "\t") if len(columns) == 1 and mark in columns[0]), "")
        advice = f"; separate columns by commas instead of {json.dumps(mark)}" if mark else ""
        if "file_name" in map(str.strip, columns):
            advice = "; take the spaces around the commas out"
        raise DataError(f"{place} has no column file_name; its columns: {', '.join(columns) or 'none'}{advice}")


def _is_number(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"0|-?[1-9][0-9]{0,99}", text) is not None
