"""The held-out split holds what was asked for, whatever the sizes of groups and classes, or says why not."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ldm.data.config import FolderConfig
from ldm.data.datasets import Dataset
from ldm.data.split import explain_split, split_groups

EMOJI = Path(__file__).parents[3] / "shared" / "data" / "noto-emoji-64"


def named(sizes: Sequence[int], naming: object = "") -> list[str]:
    """Groups of these sizes; another naming is another order."""
    return [f"{naming}-{number}" for number, size in enumerate(sizes) for _ in range(size)]


def shares(sizes: Sequence[int], fraction: float = 0.1) -> np.ndarray:
    """The shares that are held out under 50 namings of the groups."""
    return np.array([len(split_groups(named(sizes, k), fraction, 0)[1]) / sum(sizes) for k in range(50)])


HEAVY_TAILED = [max(1, int(1 / (1 - u))) for u in np.random.default_rng(0).random(200)]


@pytest.mark.parametrize("sizes", [[900, 20, 20, 20, 20, 20], [500, 300, 120, 60, 15, 5], HEAVY_TAILED])
def test_one_large_group_no_longer_makes_a_tenth_nine_tenths(sizes: list[int]) -> None:
    assert np.abs(shares(sizes) - 0.1).max() <= 0.02 + 1e-9


def test_a_group_that_overshoots_is_held_out_only_where_nothing_smaller_can_be() -> None:
    for k in range(20):
        groups = [f"C{k}"] * 36 + [f"D{k}"] * 4
        assert {groups[index] for index in split_groups(groups, 0.1, 0)[1]} == {f"D{k}"}
        groups = [f"C{k}"] * 24 + [f"D{k}"] * 16
        assert len(split_groups(groups, 0.1, 0)[1]) == 16


def test_of_two_hold_outs_equally_far_from_what_was_asked_the_smaller_one_is_taken() -> None:
    groups = ["C"] * 36 + ["D"] * 4
    for seed in range(6):
        training, held_out = split_groups(groups, 0.5, seed)
        assert (len(training), len(held_out)) == (36, 4)


def test_a_single_image_is_not_called_a_group() -> None:
    assert explain_split(["a.png"], 0.1, []).endswith("for one image of each class stays for training")


def test_groups_stay_whole_and_the_order_of_the_list_does_not_matter() -> None:
    groups = named([900, 50, 45, 33, 31, 20])

    def held_out(names: list[str], seed: int) -> set[str]:
        training, held_out = ({names[index] for index in part} for part in split_groups(names, 0.1, seed))
        assert not training & held_out and training | held_out == set(names)
        return held_out

    assert held_out(groups, 0) == held_out(groups[::-1], 0) == held_out(groups[7:] + groups[:7], 0)


def prefix_of_the_order(groups: list[str], fraction: float, seed: int) -> list[int]:
    """The split as it was: groups in the order of their hashes until the fraction is reached."""
    order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    chosen: set[str] = set()
    for group in order[:-1]:
        if sum(name in chosen for name in groups) >= max(1, round(fraction * len(groups))):
            break
        chosen.add(group)
    return [index for index, group in enumerate(groups) if group in chosen]


def test_a_split_that_was_right_is_the_same_as_before() -> None:
    cases = [named([1] * 60), named([2] * 50), named([1]), named([1] * 3), named([3, 1, 4, 1, 5, 9, 2, 6] * 9)]
    for groups in cases:
        for seed in range(3):
            before = prefix_of_the_order(groups, 0.1, seed)
            for labels in (None, [0] * len(groups)):
                assert split_groups(groups, 0.1, seed, labels)[1].tolist() == before


@pytest.mark.skipif(not EMOJI.is_dir(), reason=f"the emoji are not at {EMOJI}")
def test_the_split_of_the_emoji_is_the_same_as_before() -> None:
    lines = (EMOJI / "metadata.jsonl").read_text().splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: row["file_name"])
    groups, (_, labels) = [row["group"] for row in rows], np.unique([row["label"] for row in rows], return_inverse=True)
    held_out = split_groups(groups, 0.1, 0, labels)[1]
    assert len(held_out) == 378 and explain_split(groups, 0.1, held_out.tolist()) == ""
    assert held_out.tolist() == split_groups(groups, 0.1, 0)[1].tolist()


# ---- classes


def test_no_class_disappears_from_training() -> None:
    labels = [0] * 12 + [1] * 12 + list(range(2, 14))
    for k in range(30):
        training, held_out = split_groups(named([1] * 36, k), 0.1, 0, labels)
        assert {labels[index] for index in training} == set(range(14)) and len(held_out) == 4
        assert {labels[index] for index in held_out} <= {0, 1}


def test_a_class_of_one_group_is_never_held_out_nor_the_last_group_of_any() -> None:
    sizes, labels = [30, 3, 3, 3, 3, 5, 5, 5], [0, 1, 1, 1, 1, 2, 2, 3]
    of_images = [label for label, size in zip(labels, sizes, strict=True) for _ in range(size)]
    for fraction in (0.1, 0.3, 0.9):
        for k in range(20):
            training, held_out = split_groups(named(sizes, k), fraction, 0, of_images)
            assert {of_images[index] for index in training} == {0, 1, 2, 3} and len(held_out)
            assert not {of_images[index] for index in held_out} & {0, 3}


def test_a_group_of_several_classes_counts_for_each_of_them() -> None:
    for k in range(20):
        groups, labels = [f"{k}x", f"{k}x", f"{k}y", f"{k}z"], [0, 1, 0, 0]
        assert f"{k}x" not in {groups[index] for index in split_groups(groups, 0.5, 0, labels)[1]}


# ---- what is said


def dataset(groups: list[str], labels: list[int] | None = None, **more: float) -> Dataset:
    classes = [] if labels is None else [str(label) for label in sorted(set(labels))]
    numbers = np.array(labels or [0] * len(groups), dtype=np.int64)
    config = FolderConfig(path="drawn", **more)  # type: ignore[arg-type]
    return Dataset(config, groups, numbers, classes, groups, "drawn", lambda _: np.zeros((3, 64, 64), np.uint8))


def test_a_hold_out_other_than_asked_is_explained_in_one_sentence() -> None:
    assert dataset(["C"] * 36 + ["D"] * 4).split_note() == ""
    assert dataset(["C"] * 30 + ["D"] * 10).split_note() == (
        "data.held_out 0.1: 10 of 40 images (25%) are held out, for groups stay whole and one of each class stays for"
        ' training; group "C" alone is 75% of the images'
    )
    assert 'all of them are of one group, "C"' in dataset(["C"] * 30).split_note()
    assert "0 of 30 images (0%)" in dataset(["C"] * 30, held_out=0.01).split_note()  # however few were asked for
    assert dataset(["C"] * 30, held_out=0).split_note() == ""
    singles = dataset(named([1] * 20), list(range(20)))
    assert "0 of 20 images (0%) are held out, for one image of each class stays" in singles.split_note()
    assert len(singles.split()[1]) == 0


def test_a_data_set_splits_by_its_classes() -> None:
    labels = [0] * 12 + [1] * 12 + list(range(2, 14))
    training, held_out = dataset(named([1] * 36), labels).split()
    assert set(training.labels.tolist()) == set(range(14)) and len(held_out) == 4
