"""A summary of a data set in one line, to be read before a run spends hours on it."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ldm.data.condition_columns import CLASSES
from ldm.data.datasets import Dataset
from ldm.data.decoding import NEEDS

UNREADABLE = 20  # so many are named
ALL_CLASSES = 6  # so many are all listed; of more the largest and the smallest


def describe(dataset: Dataset) -> str:
    """What was found, in one line, after the images that could not be read, if there are any: a line each, of many
    the first 20."""
    unreadable = [f"unreadable, replaced by another: {reason}" for reason in dataset.unreadable[:UNREADABLE]]
    if (more := len(dataset.unreadable) - UNREADABLE) > 0:
        unreadable.append(f"unreadable, replaced by others: {more} more")
    return "\n".join([*unreadable, what_was_found(dataset)])


def what_was_found(dataset: Dataset) -> str:
    """The number of images, classes and held-out images, what was passed over, and whatever else should be known.

    For instance "22 images in 2 classes (cat 16, dog 6), 2 held out; 14 other files passed over (.mov 14)".
    """
    images = f"{len(dataset):,} image{'s' * (len(dataset) != 1)}"
    classes = f" in {_classes(dataset)}" if dataset.classes else ", no classes"
    parts = [f"{images}{classes}, {_held_out(dataset)}", dataset.split_note(), *dataset.notes]
    parts += [column.describe() for column in dataset.columns if column.name != CLASSES or not dataset.classes]
    parts += _never_trained(dataset)
    if dataset.passed_over:
        parts.append(f"{_files(sum(dataset.passed_over.values()))} passed over ({_listed(dataset.passed_over)})")
    line = " ".join("; ".join(filter(None, parts)).split())
    return line.encode(errors="backslashreplace").decode()  # names of files may be no text


def _classes(dataset: Dataset) -> str:
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
    if len(counts) == 1:
        return f"1 class ({dataset.classes[0]})"
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    shown = [f"{dataset.classes[label]} {counts[label]:,}" for label in order]
    if len(shown) > ALL_CLASSES:
        shown = [*shown[:3], "...", *shown[-2:]]
    return f"{len(counts):,} classes ({', '.join(shown)})"


def _held_out(dataset: Dataset) -> str:
    _, held_out = dataset.split()
    groups = len({dataset.groups[index] for index in held_out.indices})
    of_split = f" ({dataset.held_out_split})" if dataset.held_out_split else ""
    in_groups = f" in {groups:,} group{'s' * (groups != 1)}" if groups != len(held_out) else ""
    return f"{len(held_out):,} held out{of_split}{in_groups}"


def _never_trained(dataset: Dataset) -> list[str]:
    """The classes of conditions that held-out images alone have: a model would offer them untrained."""
    training, notes = dataset.split()[0].indices, list[str]()
    for column in (each for each in dataset.columns if each.config.kind == "class"):
        counts = np.bincount(column.values[training], minlength=len(column.names)).tolist()
        if names := [name for name, count in zip(column.names, counts, strict=True) if not count]:
            more = f" and {len(names) - 3} more" if names[3:] else ""
            notes.append(f"{column.name} {', '.join(names[:3])}{more}: held-out images alone, so never trained")
    return notes


def _files(count: int) -> str:
    return f"{count:,} other file{'s' * (count != 1)}"


def _listed(passed_over: Mapping[str, int]) -> str:
    found: Sequence[tuple[str, int]] = Counter(passed_over).most_common()
    shown = [f"{ending} {count:,}" for ending, count in found[:5]] + ["..."] * (len(found) > 5)
    advice = dict.fromkeys(f"; to read {ending}: {NEEDS[ending]}" for ending, _ in found if ending in NEEDS)
    return ", ".join(shown) + "".join(advice)
