"""The parts of the normal images: by group, by a seed, and without what the model was trained on for the threshold."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm.anomaly.splits import NormalParts, split_normal, trained_on
from ldm.data.datasets import Subset
from ldm.errors import DataError
from tests.support.normal_images import data_of

RUN = """
data: {kind: folder, path: memory, size: [2, 2], channels: 1, held_out: 0.25, split_seed: 3}
"""


def images(count: int = 120, group: int = 1) -> Subset:
    return data_of(torch.zeros(count, 1, 2, 2), [f"group {number // group}" for number in range(count)])


def parts_of(parts: NormalParts) -> list[list[int]]:
    return [parts.fitting.indices, parts.standardization.indices, parts.calibration.indices]


def run_folder(folder: Path, fingerprint: str, key: str = "data") -> str:
    (folder / "config.yaml").write_text(RUN)
    (folder / "environment.json").write_text(json.dumps({"format": 2, "data": "latents", key: fingerprint}))
    return str(folder)


def test_parts_hold_every_image_once_and_never_divide_a_group() -> None:
    for group in (1, 4):
        normal = images(group=group)
        parts = parts_of(split_normal(normal, "pca:2", fits=True, seed=0))
        assert sorted(itertools.chain(*parts)) == normal.indices and all(parts)
        groups = [{normal.dataset.groups[index] for index in part} for part in parts]
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        assert [len(part) for part in parts] == pytest.approx([60, 20, 40], abs=4)


def test_parts_depend_on_the_seed_and_the_names_of_the_groups_alone() -> None:
    normal = images()
    first = parts_of(split_normal(normal, "pca:2", fits=True, seed=0))
    assert parts_of(split_normal(normal, "pca:2", fits=True, seed=0)) == first
    assert parts_of(split_normal(normal, "pca:2", fits=True, seed=1)) != first
    turned = Subset(normal.dataset, normal.indices[::-1])
    assert [sorted(part) for part in parts_of(split_normal(turned, "pca:2", fits=True, seed=0))] == first


def test_without_anything_to_fit_all_images_set_scale_and_threshold() -> None:
    parts = split_normal(images(), "run", fits=False, seed=0)
    assert (len(parts.fitting), len(parts.standardization), len(parts.calibration)) == (0, 40, 80)


@pytest.mark.parametrize("key", ["data", "images"])
def test_images_that_a_run_was_trained_on_are_never_calibrated_with(tmp_path: Path, key: str) -> None:
    normal, run = images(), run_folder(tmp_path, "test", key)
    config = replace(normal.dataset.config, held_out=0.25, split_seed=3)
    training, held_out = replace(normal.dataset, config=config).split()
    assert trained_on(run, normal) == set(training.indices)
    parts = split_normal(normal, run, fits=True, seed=0)
    assert parts.fitting.indices == training.indices
    assert sorted(parts.standardization.indices + parts.calibration.indices) == held_out.indices
    parts = split_normal(Subset(normal.dataset, held_out.indices), run, fits=True, seed=0)
    assert len(parts.fitting) == 15  # a density takes its share where no training images are given
    with pytest.raises(DataError, match="was trained on all 90 normal images"):
        split_normal(training, run, fits=True, seed=0)


def test_other_images_than_those_of_the_run_are_all_calibrated_with(tmp_path: Path) -> None:
    assert trained_on(run_folder(tmp_path, "other"), images()) == set()
    assert trained_on(str(tmp_path / "none"), images()) == set()


def test_the_vae_folder_of_a_run_is_known_as_the_run(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    assert trained_on(run_folder(tmp_path, "test") + "/vae", images())
