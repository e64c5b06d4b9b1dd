"""The record of a detector's normal images: how others are read, and which ones it knows."""

from pathlib import Path

import pytest
import torch

from ldm.anomaly.normal_images import FILE, NormalImages, hash_of
from ldm.data.config import FolderConfig
from ldm.errors import CheckpointError

VIEW = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)


def test_settings_and_hashes_come_back_as_they_were_saved(tmp_path: Path) -> None:
    config = FolderConfig(path="x", size=(3, 4), channels=1, depth="uint16", value_range=(-1, 2), resize=False)
    before = NormalImages.of(config, [hash_of(VIEW), hash_of(VIEW + 1)])
    before.save(tmp_path)
    assert NormalImages.load(tmp_path, (1, 3, 4)) == before
    again = FolderConfig(path="x", **before.reading)
    assert (again.shape, again.depth, again.value_range, again.resize) == ((1, 3, 4), "uint16", (-1, 2), False)


def test_a_detector_that_was_saved_from_python_reads_images_of_its_shape_and_knows_none(tmp_path: Path) -> None:
    assert NormalImages.load(tmp_path, (3, 8, 9)) == NormalImages({"channels": 3, "size": (8, 9)})


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"reading": {}}')
    with pytest.raises(CheckpointError, match=f"{FILE} is damaged: fit the detector again"):
        NormalImages.load(tmp_path, (1, 3, 4))


def test_a_hash_is_of_pixels_type_and_shape() -> None:
    assert hash_of(VIEW) == hash_of(VIEW.clone()) == hash_of(VIEW.mT.contiguous().mT)
    others = [VIEW.flip(2), VIEW.reshape(1, 4, 3), VIEW.to(torch.int8), VIEW.float()]
    assert len({hash_of(VIEW), *map(hash_of, others)}) == 5
