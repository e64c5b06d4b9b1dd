"""Of images that do not all fit into memory some are decoded once, in whichever process meets them first."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.config import FolderConfig
from ldm.data.datasets import Dataset, open_dataset
from ldm.data.kept_images import KeptImages
from ldm.data.summary import describe


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Ten images of 4 x 4 levels, of which three have a place."""
    for level in range(10):
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(tmp_path / f"{level}.png")
    return open_dataset(FolderConfig(path=str(tmp_path), size=4, channels=1, cache_gb=3.5 * 16e-9))


@pytest.mark.parametrize(("count", "places"), [(10, 3), (10, 9), (7, 1), (1000, 333)])
def test_every_place_has_one_image_and_they_are_spread_over_the_data_set(count: int, places: int) -> None:
    kept = KeptImages(count, places, (1,), np.dtype(np.uint8))
    found = [index for index in range(count) if kept.place(index) is not None]
    assert [kept.place(index) for index in found] == list(range(places))
    assert max(np.diff([*found, count])) <= -(-count // places)


def test_images_that_have_a_place_are_decoded_once_and_all_others_each_time(dataset: Dataset) -> None:
    decoded, source = [], dataset.source
    dataset.source = lambda index: decoded.append(index) or source(index)
    for _ in range(2):
        assert [int(dataset.image(index).max()) for index in range(10)] == list(range(10))
    assert sorted(decoded) == sorted([*range(10), *(index for index in range(10) if index not in (0, 3, 6))])
    assert not dataset.is_in_memory and "30% of the decoded images are kept in memory" in describe(dataset)


def test_what_a_worker_has_decoded_is_there_for_the_others(dataset: Dataset) -> None:
    child = os.fork()
    if child == 0:
        dataset.image(3)
        os._exit(0)
    os.waitpid(child, 0)
    dataset.source = None  # nothing is decoded any more
    assert int(dataset.image(3).max()) == 3


def test_what_is_kept_stays_behind_when_a_data_set_is_pickled(dataset: Dataset) -> None:
    dataset.image(3)
    assert dataset._kept is not None and dataset._kept.get(3) is not None
    assert pickle.loads(pickle.dumps(dataset._kept)).get(3) is None
