"""Normal images of `ldm detect fit`, without those that cannot be read and those that would spoil the threshold.

Scores of images that the model was trained on are too low to set a threshold by. Where they are the run's own data the
detector divides them itself; in other places they are found by their content.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ldm.anomaly.normal_images import NormalImages, hash_of
from ldm.checkpoint import read_json
from ldm.cli.detect_data import class_index, is_same
from ldm.data.config import DataSourceConfig
from ldm.data.datasets import Dataset, Subset, list_dataset, open_dataset
from ldm.data.decoding import UnreadableImage
from ldm.data.split import split_groups
from ldm.data.summary import what_was_found
from ldm.errors import DataError

Say = Callable[[str], object]


def normal_images(
    options: argparse.Namespace, data: DataSourceConfig, run_data: DataSourceConfig | None, seed: int, is_main: bool
) -> tuple[Subset, NormalImages]:
    """The images that the detector is made with, and what is remembered of them."""
    say: Say = print if is_main else lambda line: None
    dataset = open_dataset(replace(data, max_unreadable=1.0), progress=is_main)
    say(what_was_found(dataset))
    chosen = list(range(len(dataset)))
    if options.normal_class is not None:
        label = class_index(dataset, options.normal_class, options.normal)
        chosen = [index for index in chosen if dataset.labels[index] == label]
    hashes = hashes_of(Subset(dataset, chosen), warn=is_main)
    if not hashes:
        raise DataError(f"--normal {options.normal}: none of the {len(chosen)} normal images can be read")
    used, kept = list(hashes), list[int]()
    if run_data is not None:
        used = list(without_training_images(options, dataset, hashes, run_data, say))
    if options.held_out:  # by other names than the run has held out by: else these are the same, and none is left
        purpose = "" if run_data is None else "detection/"
        groups = [f"{purpose}{dataset.groups[index]}" for index in used]
        parts = split_groups(groups, options.held_out, seed)
        used, kept = ([used[place] for place in part.tolist()] for part in parts)
    if run_data is not None and is_same(options.normal, run_data):  # whose training images are among both
        trained_on = set(dataset.split()[0].indices)
        kept = [index for index in kept if index not in trained_on]
    known = [value for index, value in hashes.items() if index not in set(kept)]
    return Subset(dataset, used), NormalImages.of(data, known)


def hashes_of(images: Subset, *, warn: bool = False) -> dict[int, str]:
    """A hash of each image by its index, in their order; of those that can be read."""
    found = {}
    for index in images.indices:
        view = images.dataset.view_or_failure(index)
        if not isinstance(view, UnreadableImage):
            found[index] = hash_of(view)
        elif warn:
            print(f"unreadable, left out: {view}", file=sys.stderr)
    return found


def without_training_images(
    options: argparse.Namespace, dataset: Dataset, hashes: dict[int, str], run_data: DataSourceConfig, say: Say
) -> dict[int, str]:
    """The normal images without those that the run was trained on, but for its own data, which the detector divides.

    Raises DataError where the run's own data are not those any more that it was trained on, and where none is left.
    """
    own, config = is_same(options.normal, run_data), dataset.config
    if own and config.shape == run_data.shape:
        if not is_as_trained_on(options.run, dataset):
            raise DataError(
                f"the data changed since the run in {options.run} began, and nobody knows which of them it was trained"
                " on: restore them, or give others with --normal"
            )
        return hashes
    if own:
        held_out = set(dataset.split()[1].indices)
        left = {index: value for index, value in hashes.items() if index in held_out}
    else:
        try:
            trained_on = training_hashes(options.run, run_data, config.shape)
        except DataError:
            say(
                f"whether {options.run} was trained on some of these cannot be told: its own images are gone or changed"
            )
            return hashes
        left = {index: value for index, value in hashes.items() if value not in trained_on}
    if not left:
        raise DataError(f"{options.run} was trained on all {len(hashes)} normal images: give others with --normal")
    if len(left) < len(hashes):
        say(f"left out, as {options.run} was trained on them: {len(hashes) - len(left):,} images")
    return left


def training_hashes(run: str, run_data: DataSourceConfig, shape: tuple[int, int, int]) -> set[str]:
    """Hashes of the images that a run was trained on, read at a shape; DataError if they are not there as they were."""
    if not is_as_trained_on(run, list_dataset(run_data)):
        raise DataError(f"the data changed since the run in {run} began")
    training, _ = open_dataset(replace(run_data, channels=shape[0], size=shape[1:], max_unreadable=1.0)).split()
    return set(hashes_of(training).values())


def is_as_trained_on(run: str, dataset: Dataset) -> bool:
    """Whether the images are those that a run recorded when it began."""
    environment = read_json(Path(run) / "environment.json")
    return dataset.fingerprint in (environment.get("images"), environment.get("data"))
