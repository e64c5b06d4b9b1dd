"""A pass sees every image once, in an order that no place or pair of images is favored by, at any size."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from ldm.data import balanced_order
from ldm.data.balanced_order import BalancedOrder
from ldm.data.order import MOST_SHUFFLED, KeyedPermutation, order_of
from ldm.randomness import generator


@pytest.mark.parametrize("count", [*range(1, 30), 100, 1001, 4096, 4097])
def test_every_number_comes_once(count: int) -> None:
    for key in (0, 2**63 - 1):
        numbers = KeyedPermutation(count, key)[np.arange(count)]
        assert np.array_equal(np.sort(numbers), np.arange(count))


def test_of_more_images_than_are_shuffled_every_one_comes_once() -> None:
    count = MOST_SHUFFLED + 1
    assert np.bincount(order_of(count, 0, "order", 3)[np.arange(count)], minlength=count).tolist() == [1] * count


def chi_square(counts: np.ndarray, expected: float, freedom: int) -> float:
    """How many standard deviations the statistic lies above its mean."""
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def test_no_image_prefers_a_place_or_a_neighbor() -> None:
    count, keys = 61, 2000
    places, neighbors = np.zeros((count, count)), np.zeros((count, count))
    for key in range(keys):
        numbers = KeyedPermutation(count, key)[np.arange(count)]
        places[np.arange(count), numbers] += 1
        neighbors[numbers[:-1], numbers[1:]] += 1
    pairs = neighbors[~np.eye(count, dtype=bool)]
    assert abs(chi_square(places, keys / count, (count - 1) ** 2)) < 4
    assert abs(chi_square(pairs, keys / count, count * (count - 1))) < 4


def test_a_pass_over_a_hundred_million_images_takes_no_memory_and_depends_on_seed_and_epoch_alone() -> None:
    count, places = 10**8, np.array([0, 5, 10**8 - 1, 77_777_777])
    tracemalloc.start()
    numbers = order_of(count, 0, "order", 0)[places]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert [int(order_of(count, 0, "order", 0)[int(place)]) for place in places] == numbers.tolist()
    others = [order_of(count, *key)[places].tolist() for key in ((0, "order", 1), (1, "order", 0), (0, "other", 0))]
    assert len({tuple(numbers.tolist()), *map(tuple, others)}) == 4 and numbers.max() < count


def test_a_place_that_is_none_is_refused() -> None:
    for place in (-1, 5, np.array([0, 5])):
        with pytest.raises(IndexError, match="outside of 0 to 4"):
            KeyedPermutation(5, 0)[place]


def test_the_order_of_smaller_sets_is_the_shuffle_that_it_always_was() -> None:
    expected = torch.randperm(1000, generator=generator(3, "order", 2)).tolist()
    assert order_of(1000, 3, "order", 2).tolist() == expected


def test_classes_stay_balanced_where_a_round_is_shorter_than_the_data_set(monkeypatch) -> None:
    monkeypatch.setattr(balanced_order, "MOST_SHUFFLED", 50)
    labels = np.repeat([0, 1, 2], [150, 40, 10])
    order, seen = BalancedOrder(labels, 1.0, 0), []
    for _ in range(12):
        seen += [order.place(position)[1] for position in range(len(seen), len(seen) + 50)]
        counts = np.bincount(labels[seen], minlength=3)
        assert abs(counts - len(seen) / 3).max() < 1
    assert [sorted(sample for sample in seen if labels[sample] == 2)[::20]] == [list(range(190, 200))]
