"""Names of saved images: one folder of files for a data set of any names."""

import unicodedata

import pytest

from ldm.evaluation.saved_images import file_names


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
