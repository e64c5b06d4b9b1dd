"""Splits that the data bring: train, validation and test, as folders or in the names of files."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from ldm.data.config import FolderConfig
from ldm.data.layouts.listing import Entry, check_labels
from ldm.errors import ConfigError, DataError

SPLITS = {  # as Hugging Face's datasets, torchvision and NumPy archives call them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "t10k"),
}


def split_named(word: str) -> str:
    """train, validation or test if `word` is a name of one of them; otherwise empty."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), "")


def word_of_split(name: str) -> str:
    """The word in the name of a file or folder that names a split: `train` of train-00000, images_train or train01."""
    words = [name, *re.split(r"[-_. ]+", name)]
    words += [word.rstrip("0123456789") for word in words]
    return next((word for word in words if split_named(word)), "")


def split_of_file(path: str) -> str:
    """The split in the path of an archive or table: `train-00000.parquet`, `val_03.tar`, `test/0.tar`; empty: none."""
    return next(filter(None, map(word_of_split, reversed(PurePosixPath(path).parts))), "")


def folders_are_splits(folders: Iterable[str], place: str, config: FolderConfig) -> bool:
    """Whether sub-folders of these names are splits: if nothing but them is there, as `train` may be a class too.

    A longer name, as train_images, counts beside that of another split. Raises DataError where several splits lie
    beside other folders, for then either reading would be a guess.
    """
    if config.split == "none":
        return False
    kinds = {folder: split_named(word_of_split(folder)) for folder in folders}
    several = len(set(kinds.values()) - {""}) > 1
    named = sorted(folder for folder, kind in kinds.items() if kind and (several or split_named(folder)))
    others = sorted(set(kinds) - set(named))
    if len(named) > 1 and others:
        raise DataError(
            f"{place} has the splits {', '.join(named)} beside other folders of images ({others[0]}): leave those out"
            f" with --data.exclude '[\"{others[0]}\"]', or read all of them as classes with --data.split none"
        )
    return bool(named) and not others


def choose_splits(
    entries: Sequence[Entry], config: FolderConfig, place: str
) -> tuple[list[Entry], str | None, list[str]]:
    """The images that are used, the split that is held out (None: a fraction of them is), and notes on the rest."""
    sizes = Counter(entry.split for entry in entries)
    if set(sizes) <= {""}:
        for name, value in (("split", config.split), ("held_out_split", config.held_out_split)):
            if value not in ("auto", "none"):
                raise DataError(
                    f"data.{name} {value}: {place} has no splits, as folders or files named train, val, test"
                )
        check_labels(entries, place)
        return list(entries), None, []
    training = _found(sizes, "train" if config.split == "auto" else config.split, place, "split", config.split)
    assert training is not None
    held_out = None
    if config.held_out_split != "none":
        wanted = "validation" if config.held_out_split == "auto" else config.held_out_split
        held_out = _found(sizes, wanted, place, "held_out_split", config.held_out_split)
    if held_out == training:
        if config.held_out_split != "auto":
            raise ConfigError(f"data.held_out_split {config.held_out_split} is the split that is trained on")
        held_out = None
    used = [entry for entry in entries if entry.split in (training, held_out)]
    check_labels(used, place, f", or leave {held_out} out by --data.held-out-split none" if held_out else "")
    _check_classes(used, training, place)
    notes = [f"split {training} is trained on"]
    sides = [{entry.group for entry in used if (entry.split == training) == side} for side in (True, False)]
    if shared := len(sides[0] & sides[1]):
        notes.append(f"{shared:,} groups are on both sides of the split")
    unused = [f"{split or 'no split'} {size:,}" for split, size in sizes.items() if split not in (training, held_out)]
    return used, held_out, notes + ([f"not used: {', '.join(unused)}"] if unused else [])


def _found(sizes: Counter[str], wanted: str, place: str, setting: str, given: str) -> str | None:
    """The split that is meant by `wanted`, exactly or in its other names; None where `auto` may find none."""
    there = [split for split in sizes if split]
    exact = [split for split in there if split == wanted]
    kinds = {split: split_named(word_of_split(split)) for split in there}
    alike = exact or [split for split, kind in kinds.items() if kind and kind == split_named(wanted)]
    if len(alike) == 1:
        return alike[0]
    if given == "auto" and setting == "held_out_split" and not alike:
        return None
    listed = ", ".join(f"{split} ({sizes[split]:,} images)" for split in sorted(there))
    problem = "more than one of them could be" if alike else "none of them is"
    raise DataError(f"{place} has the splits {listed}, and {problem} {wanted}: choose one with --data.{setting}")


def _check_classes(used: Sequence[Entry], training: str, place: str) -> None:
    """Raise DataError for a class that is held out and never trained on."""
    trained = {entry.label for entry in used if entry.split == training}
    if not trained:
        raise DataError(f"{place}: the split {training} holds no images")
    for entry in used:
        if entry.label not in trained:
            raise DataError(
                f"{place}: class {entry.label} is in {entry.split} but not in {training}, so it would be offered"
                f" untrained: leave it out with --data.exclude, or choose --data.held-out-split none"
            )
