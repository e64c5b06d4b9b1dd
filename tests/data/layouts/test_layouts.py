"""Layouts of folders: splits, metadata, classes, and what is said about them; each was once read wrongly in silence."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.data.config import FolderConfig
from ldm.data.datasets import Dataset, open_dataset
from ldm.data.summary import what_was_found
from ldm.errors import DataError
from tests.support.image_files import gray, split_folders, write_files


def opened(path: object, **config: Any) -> Dataset:
    return open_dataset(FolderConfig(path=str(path), **{"size": 4, "channels": 1, **config}))


def names_of(dataset: Dataset, part: int) -> list[str]:
    """The names of the training images (0) or of those held out (1)."""
    return [dataset.names[index] for index in dataset.split()[part].indices]


# ---- runs of before


def test_folders_that_were_read_before_have_another_fingerprint_or_order(tmp_path: Path) -> None:
    """What the version before said of the same bytes."""
    flat = opened(write_files(tmp_path / "flat", {"b.pgm": gray(2), "a.pgm": gray(1), "c.txt": "x"}))
    assert flat.fingerprint == "6b9192760f6bf9b55745374cac433ac5f0eb31dd530e21dea51db945f18b09e5"
    images = {"dog/1.pgm": gray(1), "cat/x/2.pgm": gray(2), "cat/3.pgm": gray(3)}
    classes = opened(write_files(tmp_path / "classes", images))
    assert classes.fingerprint == "12ce0fc97c4ca01b1d16c2ee86c655f9509816747e8853b95bfcf6c1cce3cb63"
    rows = [
        {"file_name": "x/2.pgm", "label": 10, "group": 7},
        {"file_name": "3.pgm", "label": 9},
        {"file_name": "./x/1.pgm", "label": 10, "group": "7", "split": "test"},
    ]
    images = {"x/1.pgm": gray(1), "x/2.pgm": gray(2), "3.pgm": gray(3), "no.pgm": gray(4)}
    metadata = {"metadata.jsonl": "\n".join(map(json.dumps, rows))}
    described = opened(write_files(tmp_path / "described", images | metadata))
    assert described.fingerprint == "6db5616f7103f9594cef5de4edebe4f6ecba4600e3a88e5dd1eaa945ef531cda"
    assert (described.names, described.groups) == (["3.pgm", "x/1.pgm", "x/2.pgm"], ["3.pgm", "7", "7"])
    assert "passed over, as no metadata names them: 1 images" in what_was_found(described)


# ---- splits


def test_test_images_were_trained_on_and_splits_taken_for_classes(tmp_path: Path) -> None:
    folder = split_folders(tmp_path / "data", "train", "val", "test")
    dataset = opened(folder)
    assert dataset.classes == ["cat", "dog"] and dataset.labels.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    assert {name.split("/")[0] for name in names_of(dataset, 0)} == {"train"}
    assert {name.split("/")[0] for name in names_of(dataset, 1)} == {"val"}
    assert what_was_found(dataset) == (
        "12 images in 2 classes (cat 6, dog 6), 6 held out (val); split train is trained on; not used: test 6"
    )
    assert dataset.split_note() == ""


def test_a_split_can_be_chosen_by_any_of_its_names(tmp_path: Path) -> None:
    folder = split_folders(tmp_path / "data", "Training", "validation", "test")
    assert names_of(opened(folder, held_out_split="test"), 1)[0] == "test/cat/0.pgm"
    assert names_of(opened(folder, split="val", held_out_split="none"), 0)[0].startswith("validation/")
    alone = opened(folder, held_out_split="none", held_out=0.5)
    assert len(alone) == 6 and len(names_of(alone, 1)) == 3
    several = opened(folder, split="none")
    assert several.classes == ["Training", "test", "validation"]
    assert len({opened(folder, **more).fingerprint for more in ({}, {"held_out_split": "test"}, {"split": "val"})}) == 3


def test_the_split_of_the_data_is_not_in_the_fingerprint(tmp_path: Path) -> None:
    folder = split_folders(tmp_path / "data", "train", "val")
    assert opened(folder).fingerprint != opened(folder, split="val", held_out_split="train").fingerprint


@pytest.mark.parametrize(
    ("splits", "config", "reason"),
    [
        (("train", "val"), {"split": "foo"}, r"has the splits train \(6 images\), val .* none of them is foo"),
        (("val", "test"), {}, r"splits test \(6 images\), val \(6 images\), and none of them is train: .*--data.split"),
        (("train", "val", "dev"), {}, r"more than one of them could be validation: .*--data.held_out_split"),
        (("train", "test"), {"held_out_split": "val"}, "none of them is val"),
        (("train", "test", "birds"), {}, r"beside other folders of images \(birds\).*--data.exclude '\[\"birds\"\]'"),
        (("cats", "dogs"), {"split": "train"}, "data.split train: .* has no splits"),
        (("cats", "dogs"), {"held_out_split": "val"}, "data.held_out_split val: .* has no splits"),
    ],
)
def test_a_wrong_split_is_not_named(tmp_path: Path, splits: tuple[str, ...], config: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        opened(split_folders(tmp_path, *splits), **config)


def test_the_split_that_is_trained_on_is_held_out_too() -> None:
    with pytest.raises(ValueError, match="held_out_split val is the split that is trained on"):
        FolderConfig(path="x", split="val", held_out_split="val")


def test_a_class_called_train_beside_others_is_taken_for_a_split(tmp_path: Path) -> None:
    assert opened(write_files(tmp_path, ["car/1.pgm", "plane/1.pgm", "train/1.pgm"])).classes == [
        "car",
        "plane",
        "train",
    ]


def test_folders_called_train_images_and_test_images_are_two_classes(tmp_path: Path) -> None:
    folder = split_folders(tmp_path / "data", "train_images", "test_images")
    assert opened(folder).classes == ["cat", "dog"] and {name[:12] for name in opened(folder).names} == {"train_images"}
    assert len(opened(folder, held_out_split="test").split()[1]) == 6
    assert opened(write_files(tmp_path / "one", ["train_station/1.pgm", "cat/1.pgm"])).classes == [
        "cat",
        "train_station",
    ]


def test_a_folder_called_train_beside_many_images_is_all_that_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images at the top \(1\.pgm\) and in sub-folders \(train/1\.pgm\)"):
        opened(write_files(tmp_path, ["1.pgm", "2.pgm", "train/1.pgm"]))


def test_splits_inside_one_folder_are_one_class(tmp_path: Path) -> None:
    dataset = opened(split_folders(tmp_path / "data" / "pets", "train", "test").parent)
    assert dataset.classes == ["cat", "dog"] and len(dataset) == 6 and "not used: test 6" in what_was_found(dataset)


def test_a_flat_test_split_makes_labeled_training_images_unlabeled(tmp_path: Path) -> None:
    write_files(split_folders(tmp_path, "train"), ["test/1.pgm", "test/2.pgm"])
    assert opened(tmp_path).classes == ["cat", "dog"]
    with pytest.raises(
        DataError, match=r"train/cat/0\.pgm has a label and test/1\.pgm has none.*none, or leave test out by"
    ):
        opened(tmp_path, held_out_split="test")
    assert opened(tmp_path, held_out_split="test", labels="none").classes == []


def test_a_class_that_is_only_held_out_is_offered_untrained(tmp_path: Path) -> None:
    write_files(split_folders(tmp_path, "train", "val"), ["val/emu/1.pgm"])
    with pytest.raises(DataError, match="class emu is in val but not in train"):
        opened(tmp_path)
    assert opened(tmp_path, exclude=("val/emu",)).classes == ["cat", "dog"]


def test_a_damaged_held_out_image_is_replaced_by_one_that_is_trained_on(tmp_path: Path) -> None:
    write_files(tmp_path, {"train/1.pgm": gray(1), "val/1.pgm": b"damaged", "val/2.pgm": gray(9)})
    for cache_gb in (0, 1):
        dataset = opened(tmp_path, max_unreadable=0.5, cache_gb=cache_gb)
        assert [int(dataset.image(index)[0, 0, 0]) for index in range(3)] == [1, 9, 9]


# ---- metadata


def metadata(kind: str, rows: list[dict[str, object]]) -> bytes:
    """A file of metadata with these rows."""
    if kind == "jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        return "\n".join(lines).encode()
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("nested", [False, True])
def test_metadata_is_ignored_where_hugging_face_has_it(tmp_path: Path, kind: str, nested: bool) -> None:
    rows = {
        split: [
            {"file_name": name, "label": 10 - n, "text": "'a b'", "group": "g"}
            for n, name in enumerate(["x/1.pgm", "2.pgm"] if nested else [f"{split}/x/1.pgm", f"{split}/2.pgm"])
        ]
        for split in ("train", "test")
    }
    for split in rows:
        write_files(tmp_path, [f"{split}/x/1.pgm", f"{split}/2.pgm", f"{split}/unnamed.pgm"])
        if nested:
            write_files(tmp_path, {f"{split}/metadata.{kind}": metadata(kind, rows[split])})
    if not nested:
        write_files(tmp_path, {f"metadata.{kind}": metadata(kind, rows["train"] + rows["test"])})
    dataset = opened(tmp_path)
    assert (dataset.names, dataset.classes) == (["train/2.pgm", "train/x/1.pgm"], ["9", "10"])
    assert dataset.groups == ["g", "g"] and dataset.labels.tolist() == [0, 1]
    assert "not used: test 2; passed over, as no metadata names them: 2 images" in what_was_found(dataset)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,label\n1.pgm,a\n", "has no column file_name; its columns: name, label"),
        ("file_name,label\n1.pgm,a,b\n", r"metadata\.csv, line 2: not 2 values"),
        ("file_name,label\n1.pgm\n", r"metadata\.csv, line 2: not 2 values"),
        ("file_name,label\n1.pgm,a\n2.pgm,\n", r"line 3: either every line has a label or none"),
        ("file_name,label\n../1.pgm,a\n", r"line 2: file_name \.\./1\.pgm leads out of the folder"),
        ("file_name,label\n9.pgm,a\n", r"file_name 9\.pgm does not exist"),
        ("file_name\na\\9.pgm\n", r"file_name a\\9\.pgm does not exist; write / for each \\"),
        ("label, file_name\na, 1.pgm\n", "no column file_name; .*; take the spaces around the commas out"),
        ("file_name\n1.pgm\n1.pgm\n", "was named before"),
        ("file_name\n", "names no images"),
        ('file_name\n"1.pgm', "not a table of comma-separated values"),
        (b"\xff\xfe", "not a table of comma-separated values in UTF-8"),
        ("", "has no column file_name; its columns: none"),
        ("file_name;label\n1.pgm;a\n", "separate columns by commas instead of"),
    ],
)
def test_a_wrong_table_of_metadata_is_not_refused_in_one_line(tmp_path: Path, text: str | bytes, reason: str) -> None:
    write_files(tmp_path, ["1.pgm", "2.pgm"])
    (tmp_path / "metadata.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=reason):
        opened(tmp_path)


def test_a_damaged_table_is_a_traceback_of_pyarrow(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.pgm": gray(1), "metadata.parquet": b"PAR1 damaged"})
    with pytest.raises(DataError, match=r"metadata\.parquet cannot be read as Parquet"):
        opened(tmp_path)


def test_numbers_in_a_table_are_sorted_as_text_or_lose_their_zeros(tmp_path: Path) -> None:
    write_files(tmp_path, ["1.pgm", "2.pgm", "3.pgm"])
    for labels, classes in ((("9", "10", "9"), ["9", "10"]), (("007", "7", "8"), ["007", "7", "8"])):
        rows = "\n".join(f"{n}.pgm,{label}" for n, label in enumerate(labels, start=1))
        (tmp_path / "metadata.csv").write_text(f"file_name,label\n{rows}\n")
        assert opened(tmp_path).classes == classes


def test_numbers_beyond_64_bits_are_rounded_into_one_class(tmp_path: Path) -> None:
    labels = [2**63, 2**63 + 1, -1]
    rows = [{"file_name": f"{n}.pgm", "label": label} for n, label in enumerate(labels)]
    write_files(tmp_path, {f"{n}.pgm": gray(n) for n in range(3)} | {"metadata.jsonl": metadata("jsonl", rows)})
    assert opened(tmp_path).classes == ["-1", str(2**63), str(2**63 + 1)]


def test_a_number_of_thousands_of_digits_in_a_table_is_a_traceback(tmp_path: Path) -> None:
    long = "1" * 5000
    write_files(tmp_path, {"1.pgm": gray(1), "metadata.csv": f"file_name,label\n1.pgm,{long}\n"})
    assert opened(tmp_path).classes == [long]


def test_the_label_cannot_be_in_another_column(tmp_path: Path) -> None:
    rows = [{"file_name": "a/1.pgm", "breed": "pug"}, {"file_name": "b/2.pgm", "breed": "tabby"}]
    write_files(tmp_path, {"a/1.pgm": gray(1), "b/2.pgm": gray(2), "metadata.jsonl": metadata("jsonl", rows)})
    assert opened(tmp_path).classes == [] and opened(tmp_path, label_column="breed").classes == ["pug", "tabby"]
    assert opened(tmp_path, labels="folder").classes == ["a", "b"]
    with pytest.raises(DataError, match=r"no metadata that says color, as data\.labels or data\.label_column asks"):
        opened(tmp_path, label_column="color")
    with pytest.raises(DataError, match=r"no metadata that says label, as data\.labels or data\.label_column asks"):
        opened(tmp_path, labels="metadata")


def test_metadata_in_one_class_folder_hides_the_other_classes(tmp_path: Path) -> None:
    write_files(tmp_path, {"cat/1.pgm": gray(1), "dog/1.pgm": gray(2), "cat/metadata.csv": "file_name\n1.pgm\n"})
    with pytest.raises(DataError, match=r"cat/metadata\.csv and images outside of its folder \(dog/1\.pgm\)"):
        opened(tmp_path)
    assert opened(tmp_path, exclude=("cat/metadata.csv",)).classes == ["cat", "dog"]


@pytest.mark.parametrize("labels", ['[["00000/1.pgm", 3], ["00000/2.pgm", 1]]', "null"])
def test_numbered_parts_of_dataset_json_are_classes(tmp_path: Path, labels: str) -> None:
    write_files(tmp_path, ["00000/1.pgm", "00000/2.pgm"])
    (tmp_path / "dataset.json").write_text(f'{{"labels": {labels}}}')
    assert opened(tmp_path).classes == ([] if labels == "null" else ["1", "3"])
    (tmp_path / "dataset.json").write_text('{"name": "not of their tools"}')
    assert opened(tmp_path).classes == ["00000"]
    (tmp_path / "dataset.json").write_text('{"labels": [["00000/1.pgm"]]}')
    with pytest.raises(DataError, match="not a list of pairs"):
        opened(tmp_path)


# ---- class folders, and what lies beside


def test_two_stray_files_among_many_class_images_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, [*(f"cat/{n}.pgm" for n in range(100)), "logo.pgm"])
    dataset = opened(tmp_path)
    assert len(dataset) == 100 and "beside the class folders, and passed over: logo.pgm" in what_was_found(dataset)
    assert len(opened(tmp_path, labels="none")) == 101


def test_a_mixture_is_refused_without_the_flag_that_reads_it(tmp_path: Path) -> None:
    write_files(tmp_path, ["cat/1.pgm", "cat/2.pgm", "logo.pgm"])
    with pytest.raises(DataError, match=r"--data.exclude '\[\"\*\.pgm\"\]'.*--data.labels none"):
        opened(tmp_path)
    assert opened(tmp_path, exclude=("*.pgm",)).names == ["cat/1.pgm", "cat/2.pgm"]
    write_files(tmp_path, ["1.pgm", "2.pgm", "3.pgm"])
    with pytest.raises(DataError, match=r"--data.exclude '\[\"cat\"\]'"):
        opened(tmp_path)
    assert len(opened(tmp_path, exclude=("cat",))) == 4


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (("*.pgm",), ["a/1.pgm", "a/b/2.pgm", "a/b/mask_2.pgm"]),
        (("**/mask_*",), ["0.pgm", "a/1.pgm", "a/b/2.pgm"]),
        (("a/b",), ["0.pgm", "a/1.pgm"]),
        (("?.pgm", "a/*/*"), ["a/1.pgm"]),
        (("a/**",), ["0.pgm"]),
        (("./a/*.pgm",), ["0.pgm", "a/b/2.pgm", "a/b/mask_2.pgm"]),
    ],
)
def test_patterns_leave_out_other_files_than_they_say(
    tmp_path: Path, patterns: tuple[str, ...], left: list[str]
) -> None:
    write_files(tmp_path, ["0.pgm", "a/1.pgm", "a/b/2.pgm", "a/b/mask_2.pgm"])
    assert opened(tmp_path, exclude=patterns, labels="none").names == left


def test_a_misspelled_pattern_is_ignored(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'data\.exclude "thumb" matches nothing in'):
        opened(write_files(tmp_path, ["a.pgm"]), exclude=("thumb",))


def test_numbered_folders_are_classes_in_silence(tmp_path: Path) -> None:
    dataset = opened(write_files(tmp_path, ["00000/1.pgm", "01000/2.pgm"]))
    assert "folders such as 00000 are read as classes: --data.labels none" in what_was_found(dataset)
    assert opened(tmp_path, labels="none").classes == []
    with pytest.raises(DataError, match="no sub-folders that could be classes"):
        opened(write_files(tmp_path / "flat", ["1.pgm"]), labels="folder")


def test_captions_are_dropped_without_a_word(tmp_path: Path) -> None:
    files = {f"10_cat/{n}.{kind}": gray(n) if kind == "pgm" else "a cat" for n in range(3) for kind in ("pgm", "txt")}
    dataset = opened(write_files(tmp_path, files | {"10_cat/0.caption": "a cat", "readme.txt": "x"}))
    assert dataset.classes == ["10_cat"] and dataset.passed_over == {".txt": 1}
    assert what_was_found(dataset).endswith(
        "; captions (.caption) are not used: 1; captions (.txt) are not used: 3; 1 other file passed over (.txt 1)"
    )
    rows = [{"file_name": f"{n}.pgm", "text": "a cat"} for n in (1, 2)]
    folder = write_files(
        tmp_path / "hub", {"1.pgm": gray(1), "2.pgm": gray(2), "metadata.jsonl": metadata("jsonl", rows)}
    )
    assert "; captions (text in metadata.jsonl) are not used: 2" in what_was_found(opened(folder))
    named = opened(folder, label_column="text")
    assert named.classes == ["a cat"] and "captions" not in what_was_found(named)


def test_a_name_that_is_no_text_or_two_lines_breaks_the_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    write_files(tmp_path, ["a\nb/1.pgm", "a\nb/2.pgm", os.fsdecode(b"caf\xe9/1.pgm")])
    assert what_was_found(opened(tmp_path)) == "3 images in 2 classes (a b 2, caf\\udce9 1), 1 held out"


def test_files_of_other_kinds_are_passed_over_in_silence(tmp_path: Path) -> None:
    files = {"a.pgm": gray(1), "b.mov": "x", "c.MOV": "x", "LICENSE": "x", ".hidden": "x", "__pycache__/x.pyc": "x"}
    dataset = opened(write_files(tmp_path, files))
    assert dataset.passed_over == {".mov": 2, "LICENSE": 1, ".pyc": 1}
    assert what_was_found(dataset).endswith("4 other files passed over (.mov 2, LICENSE 1, .pyc 1)")


# ---- the line


def dataset_of(
    counts: list[int], passed_over: dict[str, int] | None = None, groups: list[str] | None = None
) -> Dataset:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = groups or [str(number) for number in range(len(labels))]
    classes = [f"c{number}" for number in range(len(counts))] if len(counts) > 1 else []
    found = Counter(passed_over or {})
    config = FolderConfig(path="drawn")
    return Dataset(config, names, labels, classes, names, "drawn", lambda _: np.zeros(1), passed_over=found)


def test_the_line_of_what_was_found_leaves_something_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert what_was_found(dataset_of([22])) == "22 images, no classes, 2 held out"
    assert what_was_found(dataset_of([1, 3, 2])) == "6 images in 3 classes (c1 3, c2 2, c0 1), 1 held out"
    many = what_was_found(dataset_of([2000, *range(10, 19), 1]))
    assert many == "2,127 images in 11 classes (c0 2,000, c9 18, c8 17, ..., c1 10, c10 1), 213 held out"
    grouped = dataset_of([40], groups=[f"g{number // 4}" for number in range(40)])
    assert what_was_found(grouped) == "40 images, no classes, 4 held out in 1 group"
    monkeypatch.setattr("ldm.data.summary.NEEDS", {".heic": "pip install 'latent-diffusion-trainer[heic]'"})
    assert what_was_found(dataset_of([22], {".md": 1, ".heic": 14})).endswith(
        "15 other files passed over (.heic 14, .md 1; to read .heic: pip install 'latent-diffusion-trainer[heic]')"
    )
    assert what_was_found(dataset_of([30], groups=["one"] * 30)).endswith('all of them are of one group, "one"')


# ---- what may not be read


@pytest.fixture
def barred() -> Iterator[Path]:
    """A folder that one who is not root may enter, while the test is not root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    user = os.geteuid()
    yield folder
    os.seteuid(user)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_folders_and_metadata_that_may_not_be_read_are_a_traceback(barred: Path) -> None:
    write_files(barred, {"in/images/1.pgm": gray(1), "described/1.pgm": gray(1), "described/metadata.jsonl": "x"})
    write_files(barred, ["mount/cat/1.pgm", "mount/lost+found/1.pgm"])
    for name in ("in", "described/metadata.jsonl", "mount/lost+found"):
        (barred / name).chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    for name, reason in {
        "in": "in cannot be read: Permission denied$",
        "in/images": "images cannot be read: Permission denied$",
        "described": r"metadata\.jsonl cannot be read: Permission denied$",
        "mount": r"lost\+found cannot be read: Permission denied; .* --data.exclude '\[\"lost\+found\"\]'",
    }.items():
        with pytest.raises(DataError, match=reason):
            opened(barred / name)
    assert opened(barred / "mount", exclude=("lost+found",)).classes == ["cat"]
