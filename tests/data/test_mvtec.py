"""The layout of MVTec AD as a kind of data: what is trained on, what is tested on, and where each image's mask lies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.config import MVTecConfig
from ldm.data.datasets import open_dataset
from ldm.data.mvtec import find_masks, is_mvtec, mvtec_test_images, read_mask
from ldm.errors import DataError
from tests.support.anomaly_data import SIDE, mvtec_folder, pixels_of, save
from tests.support.scripts import ran


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return mvtec_folder(tmp_path / "data", train=4, good=2, scratch=3)


def config(root: Path, **settings: Any) -> MVTecConfig:
    return MVTecConfig(path=str(root), **{"size": SIDE, "channels": 1, **settings})


def found_masks(root: Path) -> list[Path | None] | None:
    return find_masks(str(root), mvtec_test_images(config(root)).names)


def test_only_the_normal_images_of_train_are_trained_on(root: Path) -> None:
    dataset = open_dataset(config(root, held_out=0.25))
    assert dataset.names == [f"train/good/{number:03d}.png" for number in range(4)]
    assert dataset.classes == [] and dataset.groups == dataset.names
    assert [len(side) for side in dataset.split()] == [3, 1]
    pixels = pixels_of(root / dataset.names[2])
    assert torch.equal(dataset.image(2)[0], torch.from_numpy(pixels))


def test_a_defect_that_lies_in_train_is_not_trained_on(root: Path) -> None:
    save(np.zeros((SIDE, SIDE), np.uint8), root / "train" / "scratch" / "0.png")
    assert len(open_dataset(config(root))) == 4


def test_the_folders_of_test_are_its_classes(root: Path) -> None:
    dataset = mvtec_test_images(config(root))
    assert dataset.classes == ["good", "scratch"] and dataset.labels.tolist() == [0, 0, 1, 1, 1]
    assert dataset.names[0] == "test/good/000.png" and dataset.names[-1] == "test/scratch/002.png"
    pixels = pixels_of(root / dataset.names[3])
    assert torch.equal(dataset.image(3)[0], torch.from_numpy(pixels))


def test_train_vae_trains_on_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"""
data: {{kind: mvtec, path: "{root}", size: {SIDE}, channels: 1}}
autoencoder: {{network: {{kind: linear}}, bottleneck: {{kind: identity, channels: 4}}}}
optim: {{warmup: 1}}
run: {{steps: 1, batch_size: 2, precision: fp32}}
""")
    outcome = ran("train_vae", tmp_path / "config.yaml", "--out", tmp_path / "run")
    assert outcome.code == 0 and "4 images, no classes" in outcome.out, outcome.err


def test_a_folder_without_train_good_is_refused(tmp_path: Path) -> None:
    assert not is_mvtec(str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path} has no folder train/good"):
        open_dataset(config(tmp_path))
    with pytest.raises(ValueError, match=r"^path is empty"):
        MVTecConfig()


def test_every_image_with_a_defect_has_its_mask_and_a_good_one_needs_none(root: Path) -> None:
    masks = root / "ground_truth" / "scratch"
    assert found_masks(root) == [None, None, *(masks / f"{number:03d}_mask.png" for number in range(3))]
    save(np.zeros((SIDE, SIDE), np.uint8), root / "ground_truth" / "good" / "001_mask.png")
    assert (found_masks(root) or [])[:2] == [None, root / "ground_truth" / "good" / "001_mask.png"]


def test_without_ground_truth_there_are_no_masks(root: Path) -> None:
    (root / "ground_truth").rename(root / "elsewhere")
    assert found_masks(root) is None


def test_a_missing_mask_is_named(root: Path) -> None:
    (root / "ground_truth" / "scratch" / "001_mask.png").unlink()
    with pytest.raises(DataError, match=r"has no mask of test/scratch/001.png: scratch/001_mask.png is missing$"):
        found_masks(root)


def test_a_mask_of_no_image_is_named(root: Path) -> None:
    (root / "test" / "scratch" / "002.png").unlink()
    with pytest.raises(DataError, match=r"scratch/002_mask.png is the mask of no image: test holds no scratch/002"):
        found_masks(root)


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_a_mask_of_another_size_is_laid_over_the_whole_image(root: Path, factor: int) -> None:
    file = root / "ground_truth" / "scratch" / "000_mask.png"
    before = read_mask(file, (SIDE, SIDE), config(root))
    assert before.shape == (1, SIDE, SIDE) and 0 < before.sum() == 20
    save(pixels_of(file).repeat(factor, 0).repeat(factor, 1), file)
    assert torch.equal(read_mask(file, (SIDE, SIDE), config(root)), before)


def test_a_mask_is_scaled_and_cropped_as_its_image_is(tmp_path: Path) -> None:
    """A wide image whose right half is marked, at half its height: the crop takes the middle."""
    mask = np.zeros((8, 32), np.uint8)
    mask[:, 16:] = 1  # not black, if only just
    save(mask, tmp_path / "mask.png")
    seen = read_mask(tmp_path / "mask.png", (16, 64), config(tmp_path, size=8))
    assert seen[0].tolist() == [[False] * 4 + [True] * 4] * 8
    uncropped = read_mask(tmp_path / "mask.png", (16, 64), config(tmp_path, size=(16, 64), resize=False))
    assert uncropped.sum() == 16 * 32 and uncropped[..., 32:].all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16"])
def test_masks_of_every_mode_are_black_where_nothing_is(mode: str, tmp_path: Path) -> None:
    inside = np.zeros((4, 4), bool)
    inside[1, 2] = True
    if mode == "I;16":
        image = Image.fromarray(inside.astype(np.uint16))  # the darkest gray that there is
    else:
        image = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", (4, 4), config(tmp_path, size=4))[0].tolist() == inside.tolist()


def test_a_mask_that_cannot_be_read_is_named(root: Path) -> None:
    file = root / "ground_truth" / "scratch" / "000_mask.png"
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"the mask {file}: .* cannot be read"):
        read_mask(file, (SIDE, SIDE), config(root))
