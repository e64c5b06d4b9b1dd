"""Parquet, NumPy and idx files of images, and the formats that are named and refused."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from ldm.data.summary import what_was_found
from ldm.errors import DataError
from tests.data.layouts.test_layouts import names_of, opened
from tests.support.image_files import gray, write_files


def levels(dataset: Any) -> list[int]:
    return [int(dataset.image(index)[0, 0, 0]) for index in range(len(dataset))]


# ---- Parquet


def write_table(file: Path, *, count: int = 10, classes: tuple[str, ...] = (), **columns: Any) -> Path:
    """A table of images in row groups of three, as Hugging Face's datasets write it."""
    images = [{"bytes": gray(n), "path": None} for n in range(count)]
    table = pyarrow.table({"image": images, "label": [n % 2 for n in range(count)], **columns})
    feature = {"info": {"features": {"label": {"names": list(classes), "_type": "ClassLabel"}}}}
    if classes:
        table = table.replace_schema_metadata({"huggingface": json.dumps(feature)})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=3)
    return file


def test_the_tables_of_a_hub_data_set_cannot_be_read(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_table(
            tmp_path / "data" / f"{name}.parquet", classes=("cat", "dog"), group=[f"{name} {n // 2}" for n in range(10)]
        )
    write_files(tmp_path, {"README.md": "x"})
    dataset = opened(tmp_path, held_out_split="test")
    assert dataset.classes == ["cat", "dog"] and levels(dataset) == [*range(10)] * 3
    assert names_of(dataset, 1)[3] == "data/test-00000-of-00001.parquet/0000003"
    assert what_was_found(dataset) == (
        "30 images in 2 classes (cat 15, dog 15), 10 held out (test) in 5 groups; split train is trained on;"
        " 1 other file passed over (.md 1)"
    )
    alone = opened(tmp_path / "data" / "train-00000-of-00002.parquet", cache_gb=0)
    assert levels(alone) == [*range(10)] and alone.names[0] == "0000000"
    assert opened(tmp_path / "data" / "train-*.parquet", labels="none").classes == []


def test_captions_in_a_table_are_dropped_without_a_word(tmp_path: Path) -> None:
    dataset = opened(write_table(tmp_path / "a.parquet", text=["a cat"] * 10))
    assert "; captions (text in Parquet) are not used: 10" in what_was_found(dataset)


def test_a_table_of_other_images_has_the_same_fingerprint(tmp_path: Path) -> None:
    first = opened(write_table(tmp_path / "a.parquet"))
    assert opened(write_table(tmp_path / "b.parquet")).fingerprint == first.fingerprint
    images = [{"bytes": gray(n + (n == 9)), "path": None} for n in range(10)]
    assert opened(write_table(tmp_path / "c.parquet", image=images)).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("columns", "config", "reason"),
    [
        ({"image": [1] * 10}, {}, r"no column of images, .*; its columns: image \(int64\), label \(int64\)"),
        ({"image": [1] * 10, "x": [b""] * 10, "y": [b""] * 10}, {}, r"several columns of images \(x, y\)"),
        ({}, {"label_column": "breed"}, r"no column breed; its columns: image, label"),
        ({"label": [0.5] * 10}, {}, "row 0: label is neither text nor a whole number"),
        ({"label": [None, *range(9)]}, {}, "has a label and 0000000 has none"),
        ({"image": [{"bytes": gray(0)}, *[{"bytes": None}] * 9]}, {}, "image has no bytes"),
    ],
)
def test_a_wrong_table_is_a_traceback(tmp_path: Path, columns: Any, config: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        opened(write_table(tmp_path / "a.parquet", **columns), **config)


def test_a_damaged_table_or_a_missing_pyarrow_is_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:300])
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as Parquet"):
        opened(tmp_path / "b.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'latent-diffusion-trainer\[parquet\]'"):
        opened(tmp_path / "a.parquet")


# ---- stacks


def test_a_medmnist_file_cannot_be_read(tmp_path: Path) -> None:
    sizes = {"train": 5, "val": 3, "test": 2}
    arrays: dict[str, np.ndarray] = {}
    for split, size in sizes.items():
        arrays[f"{split}_images"] = np.arange(size, dtype=np.uint8)[:, None, None].repeat(16, 1).reshape(-1, 4, 4)
        arrays[f"{split}_labels"] = np.arange(size)[:, None] % 2
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    dataset = opened(tmp_path / "x.npz")
    assert levels(dataset) == [0, 1, 2, 3, 4, 0, 1, 2] and dataset.classes == ["0", "1"]
    assert names_of(dataset, 1) == ["val/0000000", "val/0000001", "val/0000002"]
    assert what_was_found(dataset).endswith("3 held out (val); split train is trained on; not used: test 2")
    assert opened(tmp_path).fingerprint == dataset.fingerprint
    with pytest.raises(DataError, match=r"an array for each split .*train, val, test.*--data\.split"):
        opened(tmp_path / "x.npz", split="none")


@pytest.mark.parametrize(
    ("array", "channels", "expected"),
    [
        (np.full((2, 4, 4, 3), 200, np.uint8), 3, [200, 200, 200]),
        (np.full((2, 3, 5, 6), 0.5, np.float32), 3, [128, 128, 128]),
        (np.full((2, 4, 4), 200), 1, [200]),  # int64, as NumPy makes of a list
        (np.full((2, 4, 4), 65535, np.uint16), 3, [255, 255, 255]),
        (np.full((2, 4, 4, 4), 0, np.uint8), 3, [255, 255, 255]),  # transparent
        (np.full((2, 4, 4, 13), 7, np.uint8), 13, [7] * 13),
    ],
)
def test_a_stack_of_arrays_has_other_pixels(
    tmp_path: Path, array: np.ndarray, channels: int, expected: list[int]
) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", images=array, labels=np.array(["cat", "dog"]))
    for file in ("a.npy", "a.npz"):
        dataset = opened(tmp_path / file, channels=channels)
        assert len(dataset) == 2 and dataset.image(1)[:, 2, 2].tolist() == expected
    assert dataset.classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("arrays", "config", "reason"),
    [
        ({"foo": np.zeros(3), "bar": np.zeros(3)}, {}, r"holds the arrays foo, bar; expected images \(and labels\)"),
        ({"images": np.zeros((3, 4))}, {}, "3 x 4 values are no stack of images"),
        ({"images": np.array([None, "x"], dtype=object)}, {}, "Python objects, which is never unpickled"),
        ({"images": np.zeros((3, 4, 4), bool)}, {}, "images of type bool"),
        ({"images": np.zeros((3, 4, 4)), "labels": np.zeros((3, 14), int)}, {}, "3 x 14 .*--data.labels none"),
        ({"images": np.zeros((3, 4, 4))}, {"labels": "metadata"}, "has no labels, as data.labels metadata asks"),
        ({"images": np.zeros((3, 16, 16, 13), np.uint8)}, {}, "13 channels where data.channels is 1"),
    ],
)
def test_a_wrong_stack_is_a_traceback(tmp_path: Path, arrays: dict[str, Any], config: Any, reason: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=reason):
        opened(tmp_path / "x.npz", **config)


def test_the_files_of_mnist_cannot_be_read(tmp_path: Path) -> None:
    for part, count in {"train": 3, "t10k": 2}.items():
        pixels = struct.pack(">IIII", 2051, count, 4, 4) + bytes(range(count)) * 16
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">II", 2049, count) + bytes([7, 3, 7][:count]))
        )
    dataset = opened(tmp_path)
    assert dataset.classes == ["3", "7"] and dataset.labels.tolist() == [1, 0, 1] and not dataset.passed_over
    assert "not used: t10k 2" in what_was_found(dataset)
    assert dataset.image(0)[0, 0].tolist() == [0, 1, 2, 0]
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(pixels[:-1])
    with pytest.raises(DataError, match="values, not 2 x 4 x 4"):
        opened(tmp_path)


# ---- what is named and refused


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data_batch_1", "a pickled batch of CIFAR, and unpickling runs .*--data.kind torchvision"),
        ("cifar-100-python/train", "a pickled batch of CIFAR"),
        ("faces.pkl", "a pickle, and unpickling runs .*np.savez"),
        ("latents.pt", "a pickled file of PyTorch"),
        ("data-00000-of-00001.arrow", "datasets.load_from_disk.*to_parquet"),
        ("a.tfrecord-00000-of-00010", "a TFRecord file"),
        ("data.mdb", "an LMDB database"),
        ("images.h5", "a file of HDF5 or MATLAB"),
        ("images.7z", "unpack it into a folder"),
        ("clip.mp4", "a video, .*ffmpeg"),
    ],
)
def test_another_format_is_an_empty_folder_without_advice(tmp_path: Path, name: str, words: str) -> None:
    write_files(tmp_path, {name: "x"})
    with pytest.raises(DataError, match=words):
        opened(tmp_path)
    with pytest.raises(DataError, match=words if "/" not in name else "is not a folder of images, .zip"):
        opened(tmp_path / name)


def test_a_single_image_or_a_text_is_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"a.pgm": gray(1), "b.md": "x", "none/b.xyz": "x", "none/c.xyz": "x"})
    with pytest.raises(DataError, match=r"a\.pgm is one image: give the folder that it lies in"):
        opened(tmp_path / "a.pgm")
    np.save(tmp_path / "a.npy", np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(DataError, match=r"a\.npy is one image of 5 x 6 x 3 values: give the folder"):
        opened(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"b\.md is not a folder of images, \.zip, \.tar, \.parquet, \.npz, \.npy"):
        opened(tmp_path / "b.md")
    with pytest.raises(DataError, match=r"holds no images; looked for .*; found \.xyz 2"):
        opened(tmp_path / "none")
    monkeypatch.setattr("ldm.data.layouts.tree_listing.NEEDS", {".xyz": "pip install 'latent-diffusion-trainer[xyz]'"})
    with pytest.raises(DataError, match=r"found \.xyz 2; to read \.xyz: pip install 'latent-diffusion-trainer\[xyz\]'"):
        opened(tmp_path / "none")
