"""Archives: the images of a zip or of tars are those of the folder that was packed, and damage is one line."""

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.data.batches import BatchSampler, ImageBatches
from ldm.data.summary import what_was_found
from ldm.errors import DataError
from tests.data.layouts.test_layouts import names_of, opened
from tests.support.image_files import gray, shard, split_folders, tarred, write_files, zipped


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("root", ["", "pets/", "a/b/"])
def test_an_archive_cannot_be_read_where_its_folder_can(tmp_path: Path, pack: Any, root: str) -> None:
    folder = split_folders(tmp_path / "data", "train", "val", "test")
    write_files(folder, {"train/notes.md": "x", "__MACOSX/train/cat/._0.pgm": "x", "train/.DS_Store": "x"})
    from_folder, from_archive = (
        opened(folder, exclude=("__MACOSX",)),
        opened(pack(folder, root)),
    )
    assert from_archive.names == [root + name for name in from_folder.names]
    for index in range(len(from_folder)):
        assert torch.equal(from_folder.image(index), from_archive.image(index))
    assert names_of(from_archive, 1) == [root + name for name in names_of(from_folder, 1)]
    assert what_was_found(from_archive) == what_was_found(from_folder)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_of_another_content_has_the_same_fingerprint(tmp_path: Path, pack: Any) -> None:
    fingerprints = set()
    for level in (1, 2):
        folder = write_files(tmp_path / str(level) / "data", {"a.pgm": gray(level), "b.pgm": gray(3)})
        fingerprints |= {opened(pack(folder)).fingerprint, opened(pack(folder), cache_gb=0).fingerprint}
    assert len(fingerprints) == 2


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_metadata_and_dataset_json_inside_an_archive_are_not_read(tmp_path: Path, pack: Any) -> None:
    folder = write_files(tmp_path / "edm", {"00000/1.pgm": gray(1), "00000/2.pgm": gray(2)})
    write_files(folder, {"dataset.json": '{"labels": [["00000/1.pgm", 3], ["00000/2.pgm", 1]]}'})
    assert opened(pack(folder)).classes == ["1", "3"]
    folder = write_files(tmp_path / "hf", {"1.pgm": gray(1), "metadata.csv": "file_name,label\n1.pgm,cat\n"})
    assert opened(pack(folder)).classes == ["cat"]
    folder = write_files(tmp_path / "hf2", {"1.pgm": gray(1), "metadata.csv": "file_name,label\n2.pgm,cat\n"})
    with pytest.raises(DataError, match=r"metadata\.csv, line 2: file_name 2\.pgm does not exist"):
        opened(pack(folder))


def test_workers_and_threads_that_share_an_archive_read_each_other_s_images(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "data", [f"{n:03d}.pgm" for n in range(200)])
    for archive in (zipped(folder), tarred(folder)):
        dataset = opened(archive, cache_gb=0)
        with ThreadPoolExecutor(4) as pool:
            assert [int(image[0, 0, 0]) for image in pool.map(dataset.image, range(200))] == list(range(200))
    sampler = BatchSampler(tuple(range(200)), seed=0, batch_size=50)
    loader = torch.utils.data.DataLoader(ImageBatches(dataset, sampler), None, sampler=range(8), num_workers=2)
    levels = [rows.pixels[:, 0, 0, 0].tolist() for rows in loader]
    assert levels == [sampler.spec(step).indices for step in range(8)]


def test_the_shards_of_a_webdataset_cannot_be_read(tmp_path: Path) -> None:
    for number in range(3):
        files = {f"{number}{n}": (gray(10 * number + n), str(n).encode()) for n in range(2)}
        members = {
            f"{key}{end}": data for key, pair in files.items() for end, data in zip((".pgm", ".cls"), pair, strict=True)
        }
        shard(tmp_path / "shards" / f"{number:03d}.tar", members | {"00.txt": b"a cat"})
    folder = tmp_path / "shards"
    dataset = opened(folder)
    assert dataset.classes == ["0", "1"] and dataset.labels.tolist() == [0, 1] * 3
    assert dataset.names[2:4] == ["001.tar/10.pgm", "001.tar/11.pgm"] and int(dataset.image(3)[0, 0, 0]) == 11
    assert "captions (.txt) are not used: 1" in what_was_found(dataset)
    for pattern in ("{000..002}.tar", "{000,001,002}.tar", "*.tar", "00{0..2}.tar"):
        assert opened(folder / pattern).fingerprint == dataset.fingerprint
    assert len(opened(folder / "{001..002}.tar")) == 4
    folder.rename(tmp_path / "a")
    shard(tmp_path / "b" / "000.tar", {"0.pgm": gray(7), "0.cls": b"0"})
    assert len(opened(tmp_path / "{a,b}" / "000.tar")) == 3  # files of the same name
    (tmp_path / "a").rename(folder)
    with pytest.raises(DataError, match=r"there is no file .*003\.tar"):
        opened(folder / "{000..003}.tar")


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    ("archives", "classes"),
    [
        ({"part1": ["cat/1.pgm", "cat/2.pgm"], "part2": ["dog/1.pgm"]}, ["cat", "dog"]),
        ({"cat": ["cat/1.pgm"], "dog": ["dog/1.pgm", "dog/2.pgm"]}, ["cat", "dog"]),
        ({"a": ["cat/1.pgm", "dog/2.pgm"], "b": ["cat/3.pgm"]}, ["cat", "dog"]),
        ({"a": ["pets/cat/1.pgm"], "b": ["pets/dog/2.pgm"]}, ["cat", "dog"]),
        ({"cat": ["cat/images/1.pgm"], "dog": ["dog/images/2.pgm"]}, ["cat", "dog"]),
        ({"part1": ["part1/cat/1.pgm", "part1/dog/2.pgm"], "part2": ["part2/cat/3.pgm"]}, ["cat", "dog"]),
        ({"a": ["images/1.pgm"], "b": ["images/2.pgm"]}, []),
        ({"a_train": ["a_train/1.pgm"], "a_val": ["a_val/2.pgm"]}, []),
        ({"a_train": ["a_train/cat/1.pgm", "a_train/dog/2.pgm"], "a_val": ["a_val/cat/2.pgm"]}, ["cat", "dog"]),
        ({"train": ["cat/1.pgm", "dog/2.pgm"], "val": ["cat/2.pgm"]}, ["cat", "dog"]),
    ],
)
def test_an_archive_of_one_class_lost_it_beside_others(
    tmp_path: Path, pack: Any, archives: dict[str, list[str]], classes: list[str]
) -> None:
    (tmp_path / "packed").mkdir()
    for name, images in archives.items():
        packed = pack(write_files(tmp_path / name, images))
        packed.rename(tmp_path / "packed" / packed.name)
    dataset = opened(tmp_path / "packed")
    assert dataset.classes == classes and len(dataset) == sum(map(len, archives.values()))
    labels = [dataset.classes[label] for label in dataset.labels] if classes else []
    assert all(f"/{label}/" in name for label, name in zip(labels, dataset.names, strict=bool(classes)))


def test_labels_in_the_json_of_a_sample_are_lost(tmp_path: Path) -> None:
    members = {
        "1.pgm": gray(1),
        "1.json": b'{"label": "cat", "breed": 7}',
        "2.pgm": gray(2),
        "2.json": b'{"label": "dog"}',
    }
    file = shard(tmp_path / "a.tar", members)
    assert opened(file).classes == ["cat", "dog"] and opened(file, labels="metadata").classes == ["cat", "dog"]
    assert opened(file, labels="none").classes == []
    with pytest.raises(DataError, match=r"1\.pgm has a label and 2\.pgm has none"):
        opened(file, label_column="breed")
    with pytest.raises(DataError, match=r"b\.tar/2\.json: "):
        opened(shard(tmp_path / "b.tar", members | {"2.json": b"{"}))


def test_shards_called_test_are_trained_on(tmp_path: Path) -> None:
    for name in ("pets-train-000", "pets-train-001", "pets-test-000"):
        shard(tmp_path / f"{name}.tar", {f"{n}.pgm": gray(n) for n in range(4)})
    dataset = opened(tmp_path)
    assert {name[:14] for name in dataset.names} == {"pets-train-000", "pets-train-001"}
    assert len(opened(tmp_path, held_out_split="test").split()[1]) == 4 and len(opened(tmp_path, split="none")) == 12
    shard(tmp_path / "extra.tar", {"1.pgm": gray(1)})
    with pytest.raises(DataError, match=r"extra\.tar is of no split, but others beside it are \(test\)"):
        opened(tmp_path)


def damaged(folder: Path, kind: str) -> Path:
    """An archive that is wrong in this way."""
    source = write_files(folder / "data", ["a/1.pgm", "a/2.pgm"])
    good = tarred(source) if "tar" in kind else zipped(source)
    if kind == "encrypted.zip":
        content = bytearray(good.read_bytes())
        content[content.index(b"PK\1\2") + 8] |= 1  # the flag of the first entry in the directory
        good.write_bytes(content)
    elif kind == "bzip2.zip":
        with zipfile.ZipFile(good, "w", zipfile.ZIP_BZIP2) as archive:
            archive.writestr("1.pgm", gray(1))
    elif kind == "cut.tar.gz":
        good.write_bytes(b"\x1f\x8b" + good.read_bytes())
        return good.rename(good.with_suffix(".tar.gz"))
    elif kind == "empty.tar":
        good.write_bytes(bytes(10240))
    elif kind == "text.zip":
        good.write_text("no archive")
    elif kind.startswith("cut"):
        good.write_bytes(good.read_bytes()[: {"cut.zip": 150, "cut.tar": 1500, "cut in content.tar": 2100}[kind]])
    return good


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("encrypted.zip", r"data\.zip is encrypted \(a/1\.pgm\): unpack it"),
        ("bzip2.zip", r"1\.pgm is neither stored nor deflated"),
        ("cut.tar.gz", r"data\.tar\.gz is compressed as a whole.*gunzip it first"),
        ("empty.tar", "holds no images; looked for"),
        ("text.zip", "is damaged or no archive"),
        ("cut.zip", "is damaged or no archive: File is not a zip file"),
        ("cut.tar", "is (cut short or damaged|damaged or no archive)"),
        ("cut in content.tar", "is (cut short or damaged|damaged or no archive)"),
    ],
)
def test_a_damaged_archive_is_a_traceback_or_read_in_part(tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        opened(damaged(tmp_path, kind))
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_zip_becomes_an_image(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "data", [f"{n}.pgm" for n in range(4)])
    content = bytearray(zipped(folder).read_bytes())
    content[content.index(b"1.pgm") + 12] ^= 1
    (tmp_path / "data.zip").write_bytes(content)
    dataset = opened(tmp_path / "data.zip", max_unreadable=0.3)
    assert len(dataset.unreadable) == 1 and "data.zip/1.pgm" in dataset.unreadable[0]


def test_an_archive_beside_images_is_passed_over_in_silence(tmp_path: Path) -> None:
    zipped(write_files(tmp_path / "in" / "data", ["1.pgm"]))
    assert opened(tmp_path / "in").passed_over == {".zip": 1}


def test_the_folders_of_a_zip_with_backslashes_are_a_part_of_the_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("cat", "dog"):
            archive.writestr(zipfile.ZipInfo(f"images\\{name}\\1.pgm"), gray(1))
    assert opened(tmp_path / "a.zip").classes == ["cat", "dog"]


def test_a_folder_among_the_files_of_a_pattern_does_not_exist(tmp_path: Path) -> None:
    shard(tmp_path / "a" / "0.tar", {"1.pgm": gray(1)})
    (tmp_path / "a" / "more").mkdir()
    with pytest.raises(DataError, match="more is a folder"):
        opened(tmp_path / "a" / "*")
