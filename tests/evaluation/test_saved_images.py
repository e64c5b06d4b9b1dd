"""Saved images: one folder of files for a data set of any names, whole or not there."""

import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.data.config import FolderConfig
from ldm.data.datasets import Subset, open_dataset
from ldm.errors import CheckpointError
from ldm.evaluation.saved_images import SavedImages, file_names


@pytest.fixture
def drawings(shapes_folder: Path) -> Subset:
    return Subset(open_dataset(FolderConfig(path=str(shapes_folder), size=16)), [3, 40])


def written(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*.png")}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_up_to_four_channels_come_back_as_they_were(drawings, processes, tmp_path, channels):
    saved = SavedImages(tmp_path / "new", drawings)
    pixels = torch.randint(0, 256, (2, channels, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with saved.open(processes):
        saved.write([3, 40], pixels, 255 - pixels)
    assert written(tmp_path) == {
        f"new/{p}/{n}.png" for p in ("images", "reconstructions") for n in ("disc-03", "square-10")
    }
    for part, expected in (("images", pixels[1]), ("reconstructions", 255 - pixels[1])):
        with Image.open(tmp_path / "new" / part / "square-10.png") as image:
            found = torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(5, 7, channels)
        assert torch.equal(found, expected.permute(1, 2, 0))


def test_an_interrupted_evaluation_leaves_no_half_of_a_folder(drawings, processes, tmp_path):
    saved = SavedImages(tmp_path / "new", drawings)
    with pytest.raises(KeyboardInterrupt), saved.open(processes):
        saved.write([3], *torch.zeros(2, 1, 3, 4, 4, dtype=torch.uint8))
        assert written(tmp_path) and not (tmp_path / "new").exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_comes_to_lie_there_meanwhile_is_not_replaced(drawings, processes, tmp_path):
    saved = SavedImages(tmp_path / "new", drawings)
    with pytest.raises(CheckpointError, match=f"could not write {tmp_path / 'new'}: "), saved.open(processes):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "mine.png").write_bytes(b"mine")
    assert written(tmp_path) == {"new/mine.png"} and len(list(tmp_path.iterdir())) == 1


def test_an_image_keeps_the_name_of_its_file():
    assert file_names(["0001.png", "0002.JPEG", "a b.tiff", "c.v2.npy"]) == ["0001", "0002", "a_b", "c.v2"]


def test_what_is_no_ending_of_an_image_is_a_part_of_the_name():
    """Rows of a file, for instance."""
    assert file_names(["train.parquet#7", "00007", "v1.5"]) == ["train.parquet_7", "00007", "v1.5"]


def test_a_class_is_a_part_of_the_name_and_not_a_folder_that_other_tools_do_not_enter():
    assert file_names(["cat/1.png", "dog/1.png"]) == ["cat-1", "dog-1"]


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "a.jpg", "a.tif"],
        ["cat/1.png", "cat-1.png"],
        ["A.png", "a.png", "b.png"],
        ["a?.png", "a*.png", "a_.png"],
        ["a.png", "a.jpg", "a-2.png", "a-2.jpg"],
        ["a-2.png", "a.png", "a.jpg"],
        ["caf\xe9.png", unicodedata.normalize("NFD", "caf\xe9.png"), "cafe.png"],
        ["\udce9.png", "\udce8.png", "_.png"],
        ["...png", "-.png", ".png"],
        [f"{'x' * 300}/{number}.png" for number in (1, 2)] + ["x" * 300 + "1.png", "x" * 300 + "2.png"],
        ["\U0001f600" * 80 + "\u65e5" * 90 + end for end in (".png", ".jpg")],
    ],
)
def test_no_image_takes_the_place_of_another(names: list[str]):
    """Not even where a file system does not tell case, or ways to write an accent, apart."""
    found = file_names(names)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == len(names)
    for name in found:
        assert "/" not in name and name[0] not in ".-" and len(f"{name}.png".encode()) <= 255


def test_many_images_of_one_name_are_numbered_in_no_time():
    found = file_names(["a.png"] * 20_000)
    assert found[:3] == ["a", "a-2", "a-3"] and len(set(found)) == 20_000
