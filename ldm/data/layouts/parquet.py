"""Tables in Parquet: images in a column, as Hugging Face's datasets keep them, or rows of metadata."""

import io
import json
import threading
import zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.config import FolderConfig
from ldm.data.decoding import UnreadableImage, decode_bytes
from ldm.data.layouts.listing import CAPTION_COLUMNS, Entry, Listing, check_label
from ldm.errors import DataError

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")  # which one is meant where several could be


class ParquetImages:
    """The images in a column of a Parquet file, by row; whole row groups are read, and the latest ones kept."""

    def __init__(self, file: Path, column: str, starts: list[int]):
        self.file, self.column, self.starts = file, column, starts  # the first row of each row group

    def image(self, name: str, config: FolderConfig) -> np.ndarray:
        """The decoded image, or UnreadableImage."""
        row, path = int(name), f"{self.file}, row {int(name)}"
        group = self._group(row)
        try:
            with _reading:
                content = _row_group(self.file, self.column, group, _version(self.file))[row - self.starts[group]]
        except (OSError, ValueError) as error:
            raise UnreadableImage(path, " ".join(str(error).split())) from error
        if content is None:
            raise UnreadableImage(path, f"its {self.column} has no bytes; only a path, if that")
        return decode_bytes(content, path, config, pixel_limit=config.pixel_limit)

    def checksum(self, name: str) -> list[int]:
        """Sizes of the image's row group, and CRC-32 of its first 64 KiB: rows are not read for it."""
        return list(_group_checksum(self.file, self.column, self._group(int(name)), _version(self.file)))

    def _group(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1


def list_parquet(file: Path, config: FolderConfig) -> Listing:
    """The images of one Parquet file, with the label and group columns if there are any."""
    parquet = _pyarrow_parquet(f"{file} is a Parquet file")
    try:
        with parquet.ParquetFile(file) as opened:
            schema, layout = opened.schema_arrow, opened.metadata
            column = _image_column(schema, file)
            wanted = [] if config.labels == "none" else [config.label_column]
            if wanted and wanted[0] not in schema.names:
                if config.labels in ("metadata", "folder") or wanted[0] != "label":
                    raise DataError(
                        f"{file} has no column {wanted[0]}; its columns: {', '.join(schema.names)}: choose one with"
                        " data.label_column, or data.labels none"
                    )
                wanted = []
            asked = [*wanted, "group", *condition_columns(config)]
            present = [name for name in dict.fromkeys(asked) if name in schema.names and name != column]
            rows = opened.read(columns=present, use_threads=False).to_pylist() if present else [{}] * layout.num_rows
            sizes = [layout.row_group(group).num_rows for group in range(layout.num_row_groups)]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {' '.join(str(error).split())}") from error
    if not rows:
        raise DataError(f"{file} holds no rows")
    names = _class_names(schema, config.label_column)
    entries = []
    for number, row in enumerate(rows):
        label, group = row.get(config.label_column) if wanted else None, row.get("group")
        try:
            check_label(label, config.label_column)
        except ValueError as error:
            raise DataError(f"{file}, row {number}: {error}") from error
        if isinstance(label, int) and 0 <= label < len(names):
            label = names[label]
        kept = row if config.conditions else {}
        entries.append(Entry(f"{number:07d}", label, f"{number:07d}" if group is None else str(group), row=kept))
    captions = [name for name in CAPTION_COLUMNS if name in schema.names and name not in (column, *asked)]
    counted = Counter({f"{name} in Parquet": len(rows) for name in captions})
    return Listing(entries, ParquetImages(file, column, np.cumsum([0, *sizes[:-1]]).tolist()), captions=counted)


def condition_columns(config: FolderConfig) -> list[str]:
    """The columns that conditions may be in."""
    found = [each.column or name for name, each in config.conditions.items()]
    return found + [*CAPTION_COLUMNS] * any(each.kind == "text" for each in config.conditions.values())


def rows_of_table(content: bytes, place: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns and the rows of a small table in Parquet."""
    parquet = _pyarrow_parquet(f"{place} is a Parquet file")
    try:
        table = parquet.read_table(io.BytesIO(content), use_threads=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read as Parquet: {' '.join(str(error).split())}") from error
    return list(table.column_names), table.to_pylist()


def _pyarrow_parquet(what: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{what}, which needs pyarrow: pip install 'latent-diffusion-trainer[parquet]'") from error
    return parquet


def _image_column(schema: Any, file: Path) -> str:
    """The column of images: struct<bytes, path> or bytes."""
    found = []
    for field in schema:
        kind = str(field.type)
        if kind in ("binary", "large_binary") or (
            kind.startswith("struct<") and "bytes: " in kind and "binary" in kind
        ):
            found.append(field.name)
    named = [name for name in IMAGE_COLUMNS if name in found]
    if not found:
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(f"{file} has no column of images, struct<bytes, path> or binary; its columns: {listed}")
    if len(found) > 1 and not named:
        raise DataError(f"{file} has several columns of images ({', '.join(found)}): call the one to be read `image`")
    return named[0] if named else found[0]


def _class_names(schema: Any, column: str) -> list[str]:
    """The names behind whole numbers, where Hugging Face's datasets wrote them into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


# Columns cannot be read image by image; a data set that is decoded in order finds each group once.
_reading = threading.Lock()


def _version(file: Path) -> int:
    """Tells a file from what was written over it."""
    return file.stat().st_mtime_ns


@lru_cache(maxsize=4)
def _row_group(file: Path, column: str, group: int, version: int) -> list[bytes | None]:
    with _pyarrow_parquet(str(file)).ParquetFile(file) as opened:
        values = opened.read_row_group(group, columns=[column], use_threads=False).column(column).to_pylist()
    return [value.get("bytes") if isinstance(value, dict) else value for value in values]


@lru_cache(maxsize=1)
def _group_checksum(file: Path, column: str, group: int, version: int) -> tuple[int, ...]:
    with _pyarrow_parquet(str(file)).ParquetFile(file) as opened:
        found = opened.metadata.row_group(group)
        chunks = [found.column(number) for number in range(found.num_columns)]
    sizes, checksum = [], 0
    with open(file, "rb") as raw:
        for chunk in chunks:
            if chunk.path_in_schema.split(".")[0] == column:
                raw.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
                checksum = zlib.crc32(raw.read(min(chunk.total_compressed_size, 2**16)), checksum)
                sizes.append(chunk.total_compressed_size)
    return *sizes, checksum
