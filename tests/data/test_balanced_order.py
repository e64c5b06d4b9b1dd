"""`data.balance` shows rare classes as often as it says, each image before any repeats, wherever a run resumes."""

import pickle
import shutil
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.data.balanced_order import BalancedOrder
from ldm.data.batches import BatchSampler, BatchSpec, balanced_order, shuffled
from ldm.data.config import FolderConfig
from ldm.data.datasets import Dataset, Subset
from ldm.errors import ConfigError
from tests.support.batch_parts import tiled
from tests.support.runs import lose_everything_after
from tests.support.scripts import Stage, metrics, weights

SIZES = {3: 60, 0: 25, 5: 10, 1: 4, 7: 1}
LABELS = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))
COUNT = len(LABELS)


def sampler(balance: float = 0.5, **more: Any) -> BatchSampler:
    """Over images 1000, 1001, …, of which image 1000 + k is of class LABELS[k]."""
    order = BalancedOrder(LABELS, balance, more.get("seed", 0))
    samples = tuple(range(1000, 1000 + COUNT))
    return BatchSampler(**{"samples": samples, "seed": 0, "batch_size": 16, "balanced": order, **more})


@pytest.mark.parametrize("balance", [0.01, 0.25, 0.5, 0.9, 1.0])
def test_a_class_is_drawn_as_often_as_its_size_to_the_power_of_1_minus_balance(balance: float) -> None:
    powers = {label: size ** (1 - balance) for label, size in SIZES.items()}
    order, counts = BalancedOrder(LABELS, balance, 0), Counter[int]()
    for number in range(40):
        counts.update(int(LABELS[order.place(number * COUNT + step)[1]]) for step in range(COUNT))
        for label, power in powers.items():
            expected = (number + 1) * COUNT * power / sum(powers.values())
            assert abs(counts[label] - expected) < 1, (label, number)


def test_at_balance_1_every_class_comes_exactly_equally_often() -> None:
    order = BalancedOrder(LABELS, 1.0, 0)
    counts = Counter(int(LABELS[order.place(position)[1]]) for position in range(7 * COUNT))
    assert counts == dict.fromkeys(SIZES, 7 * COUNT // len(SIZES))


def test_every_image_of_a_class_is_seen_before_any_repeats() -> None:
    order = BalancedOrder(LABELS, 0.7, 0)
    places = [order.place(position) for position in range(12 * COUNT)]
    for label, size in SIZES.items():
        members = np.flatnonzero(label == LABELS).tolist()
        seen = [(epoch, sample) for epoch, sample in places if LABELS[sample] == label]
        passes = [seen[start : start + size] for start in range(0, len(seen) - size + 1, size)]
        assert len(passes) > 2
        for number, one in enumerate(passes):
            assert sorted(sample for _, sample in one) == members
            assert {epoch for epoch, _ in one} == {number}  # an epoch is a pass over the image's own class
        assert size < 4 or [sample for _, sample in passes[0]] != [sample for _, sample in passes[1]]


def test_classes_are_mixed_inside_a_round_and_another_seed_is_another_order() -> None:
    one, other = ([BalancedOrder(LABELS, 1.0, seed).place(position)[1] for position in range(COUNT)] for seed in (0, 1))
    assert one != other
    changes = np.count_nonzero(np.diff(LABELS[one]))
    assert changes > 0.6 * COUNT  # of equal classes in shuffled order four of five neighbors differ


@pytest.mark.parametrize(("processes", "accumulation"), list(product((1, 2, 4), (1, 4))))
def test_the_parts_of_a_balanced_step_tile_the_same_global_batch(processes: int, accumulation: int) -> None:
    for step in (0, 6, 5, 100):  # in any order: nothing depends on what was asked for before
        tiled(sampler, step, processes=processes, accumulation=accumulation)


def test_a_balanced_batch_does_not_depend_on_what_was_drawn_before() -> None:
    def specs(of: BatchSampler, steps: list[int]) -> dict[int, BatchSpec]:
        return {step: of.spec(step) for step in steps}

    steps, used = list(range(30)), sampler()
    assert specs(used, steps) == specs(used, steps[::-1]) == {step: sampler().spec(step) for step in steps}
    assert pickle.loads(pickle.dumps(used)).spec(7) == used.spec(7)  # as a worker gets it


def dataset(labels: np.ndarray, classes: list[str], balance: float) -> Dataset:
    names = [str(index) for index in range(len(labels))]
    config = FolderConfig(path="drawn", balance=balance)
    return Dataset(config, names, labels, classes, names, "drawn", lambda _: np.zeros((3, 64, 64), np.uint8))


def test_balance_0_is_the_order_as_it_always_was() -> None:
    training = Subset(dataset(LABELS, list("abcdefgh"), 0.0), [5, 3, 8])
    assert balanced_order(training, 0) is None
    plain = BatchSampler((5, 3, 8), seed=0, batch_size=3)
    assert (
        plain.spec(4).indices == [(5, 3, 8)[place] for place in shuffled(3, 0, 4)] and plain.spec(4).epochs == [4] * 3
    )


def test_the_classes_of_the_training_images_are_balanced() -> None:
    training = Subset(dataset(LABELS, list("abcdefgh"), 1.0), [index for index in range(COUNT) if LABELS[index] < 4])
    order = balanced_order(training, 0)
    assert order is not None
    drawn = Counter(int(training.labels[order.place(position)[1]]) for position in range(3 * len(training)))
    assert drawn == dict.fromkeys((0, 1, 3), len(training))


def test_balance_without_classes_is_refused_in_one_line() -> None:
    training = Subset(dataset(np.zeros(9, np.int64), [], 0.5), list(range(9)))
    with pytest.raises(ConfigError, match=r"^data\.balance 0\.5 needs classes, and these images have none"):
        balanced_order(training, 0)
    with pytest.raises(ValueError, match="balance must be from 0 to 1"):
        FolderConfig(path="x", balance=1.5)


CONFIG = """
data: {{kind: folder, path: "{data}", size: 16, balance: 0.8}}
autoencoder: {{network: {{widths: [8, 8], norm_groups: 4}}, bottleneck: {{channels: 2}}}}
run: {{steps: 4, batch_size: 8, log_every: 1, checkpoint_every: 2, precision: fp32}}
"""


@pytest.mark.slow
def test_a_balanced_run_resumes_bit_for_bit(shapes_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_folder, tmp_path / "images")
    for number in range(5, 30):
        (tmp_path / "images" / "square" / f"{number:02d}.png").unlink()
    (tmp_path / "vae.yaml").write_text(CONFIG.format(data=tmp_path / "images"))
    stage = Stage("train_vae", (tmp_path / "vae.yaml",))
    assert stage.run(tmp_path / "whole").code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    lose_everything_after(tmp_path / "again", step=2)
    outcome = stage.run(tmp_path / "again")
    assert outcome.code == 0 and "resuming from step 2" in outcome.out + outcome.err, outcome
    assert metrics(tmp_path / "again") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
