"""The conditions of a data set: columns of metadata, captions and classes, checked before any image is decoded."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.batch import LARGEST, Attribute, ClassAttribute, Condition, ConditionSchema, NumberAttribute, TextAttribute
from ldm.data.config import ConditionConfig, FolderConfig
from ldm.data.layouts.listing import CAPTION_COLUMNS, Entry, indices_and_values, labels_and_classes
from ldm.errors import ConfigError, DataError

CLASSES = "label"  # the condition that stands for the classes of the images, whatever these come from


@dataclass(frozen=True, eq=False)
class ConditionColumn:
    """One condition of every image."""

    name: str
    config: ConditionConfig
    values: np.ndarray  # indices of classes, numbers, or indices of captions
    names: tuple[str, ...] = ()  # the classes or the captions, each once

    def attribute(self, training: Sequence[int]) -> Attribute:
        """What a model is told of it; the statistics of numbers are those of the training images."""
        if self.config.kind == "class":
            return ClassAttribute(self.name, self.names)
        numbers = self.values[list(training)].astype(np.float64)
        std = float(numbers.std()) or 1.0
        period = self.config.period if self.config.kind == "number" else None
        return NumberAttribute(
            self.name, float(numbers.mean()), std, float(numbers.min()), float(numbers.max()), period
        )

    def describe(self) -> str:
        """What was found, for the first line of a run."""
        if self.config.kind == "text":
            return f"{self.name}: {len(self.names):,} distinct captions, such as {json.dumps(self.names[0])}"
        if self.config.kind == "number":
            period = f", period {self.config.period:g}" if self.config.period else ""
            return f"{self.name}: numbers from {self.values.min():g} to {self.values.max():g}{period}"
        counts = np.bincount(self.values, minlength=len(self.names)).tolist()
        most = sorted(zip(self.names, counts, strict=True), key=lambda pair: (-pair[1], pair[0]))[:6]
        shown = ", ".join(f"{name} {count:,}" for name, count in most) + (" ..." if len(self.names) > 6 else "")
        return f"{self.name}: {len(self.names)} class{'es' * (len(self.names) != 1)} ({shown})"


@dataclass(frozen=True, eq=False)
class ConditionTable:
    """The conditions of all images of a data set, without the images, by row."""

    values: Mapping[str, Tensor]  # per image: the index of a class, a number, or the index of a text
    tokens: Mapping[str, Tensor]  # of the distinct texts of an attribute, texts x length x width

    def __getitem__(self, rows: Tensor | Sequence[int]) -> Condition:
        """The conditions of some of the images."""
        return Condition(
            {
                name: self.tokens[name][value[rows]].float() if name in self.tokens else value[rows]
                for name, value in self.values.items()
            }
        )

    def to(self, device: torch.device | str) -> "ConditionTable":
        """On another device."""
        moved = ({name: value.to(device) for name, value in each.items()} for each in (self.values, self.tokens))
        return ConditionTable(*moved)


@dataclass(frozen=True, eq=False)
class EmbeddedCaptions:
    """What a text encoder made of the distinct captions of a condition."""

    attribute: TextAttribute
    tokens: Tensor  # captions x length x width, NaN behind the last token


def columns_of(config: FolderConfig, entries: Sequence[Entry], place: str) -> tuple[ConditionColumn, ...]:
    """The conditions that the config declares; DataError for one that an image lacks, or that is none of its kind."""
    for name in config.conditions:
        if hasattr(nn.ModuleDict(), name):
            raise ConfigError(
                f"data.conditions: no condition can be called {name}, a word that torch uses: choose another name, with"
                f" column: {name}"
            )
    return tuple(_column(name, each, entries, place) for name, each in config.conditions.items())


def _column(name: str, config: ConditionConfig, entries: Sequence[Entry], place: str) -> ConditionColumn:
    found = _values(name, config, entries)
    missing = [entry.name for entry, value in zip(entries, found, strict=True) if value is None or value == ""]
    if missing:
        known = sorted({column for entry in entries for column in entry.row} - {"file_name"})
        some = f"{len(missing):,} of {len(entries):,} images have none, for instance {missing[0]}"
        some += " (data.exclude would leave them out)"
        what = "none of the images has one" if len(missing) == len(entries) else some
        raise DataError(
            f"{place}: the condition {name} is missing: {what}; give every image one, choose its column, or leave the"
            f" condition out (columns of the metadata: {', '.join(map(str, known)) or 'none'})"
        )
    for entry, value in zip(entries, found, strict=True):
        if reason := _unfit(config, value):
            raise DataError(
                f"{place}: {entry.name}: the condition {name} is {json.dumps(value, default=str)}: {reason}"
            )
    if config.kind == "number":
        return ConditionColumn(name, config, np.array([float(value) for value in found], dtype=np.float32))
    if config.kind == "text":
        indices, names = indices_and_values([str(value) for value in found])
        return ConditionColumn(name, config, indices, tuple(names))
    values, classes = labels_and_classes(found)
    return ConditionColumn(name, config, values, tuple(classes))


def _values(name: str, config: ConditionConfig, entries: Sequence[Entry]) -> list[Any]:
    if config.column is None and config.kind == "class" and name == CLASSES:
        return [entry.label for entry in entries]
    columns = [config.column or name]
    if config.column is None and config.kind == "text":
        columns += [column for column in CAPTION_COLUMNS if column != name]
    column = next((each for each in columns if any(each in entry.row for entry in entries)), columns[0])
    return [entry.row.get(column) for entry in entries]


def _unfit(config: ConditionConfig, value: Any) -> str:
    """Why a value is none of its kind; empty if it is."""
    if config.kind == "number":
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            return "not a number"
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        if not math.isfinite(number):
            return "not a finite number"
        return "" if abs(number) <= LARGEST else f"larger than the largest number of single precision, {LARGEST:.1e}"
    if config.kind == "text":
        return "" if isinstance(value, str) else "not a text"
    return "" if isinstance(value, str | int) and not isinstance(value, bool) else "neither text nor a whole number"


def schema_and_table(
    columns: Iterable[ConditionColumn], captions: Mapping[str, EmbeddedCaptions], training: Sequence[int]
) -> tuple[ConditionSchema, ConditionTable]:
    """What a model of these columns is told, and the values; texts must be embedded already."""
    attributes: list[Attribute] = []
    values: dict[str, Tensor] = {}
    for column in columns:
        values[column.name] = torch.from_numpy(column.values)
        is_text = column.config.kind == "text"
        attributes.append(captions[column.name].attribute if is_text else column.attribute(training))
    tokens = {name: each.tokens for name, each in captions.items()}
    return ConditionSchema(tuple(attributes)), ConditionTable(values, tokens)


def conditions_fingerprint(columns: Iterable[ConditionColumn], captions: Mapping[str, EmbeddedCaptions]) -> str:
    """SHA-256 of the conditions of all images and of their text encoders."""
    digest = hashlib.sha256()
    for column in columns:
        encoder = captions[column.name].attribute.sha256 if column.name in captions else ""
        digest.update(json.dumps([column.name, column.names, encoder]).encode() + column.values.tobytes())
    return digest.hexdigest()
