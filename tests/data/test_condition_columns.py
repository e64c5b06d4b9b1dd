"""Conditions of a data set: columns and captions become classes, numbers and texts, or one line says why not."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.batch import ClassAttribute, NumberAttribute
from ldm.data.condition_columns import EmbeddedCaptions, columns_of
from ldm.data.config import ClassConditionConfig, FolderConfig, NumberConditionConfig, TextConditionConfig
from ldm.data.datasets import Dataset, open_dataset
from ldm.data.layouts.listing import Entry
from ldm.data.summary import describe
from ldm.errors import ConfigError, DataError
from ldm.text.captions import attribute_of
from ldm.text.encoder import encoded, open_encoder
from tests.support.word_vectors import word_vectors

ANGLES = [0.0, 90.0, 180.0, 271.5]
TONE, ANGLE, TEXT = ClassConditionConfig(), NumberConditionConfig(period=360.0), TextConditionConfig()


def images(folder: Path, count: int = 4) -> list[str]:
    """Single-colored images in two folders of classes."""
    names = [f"{'cat' if number % 2 else 'dog'}/{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (40 * number, 0, 0)).save(folder / name)
    return names


def described(folder: Path, kind: str = "jsonl", **columns: list[Any]) -> None:
    """Metadata with these columns; None leaves a value out."""
    names = images(folder)
    rows = [
        {"file_name": name, **{key: each[place] for key, each in columns.items() if each[place] is not None}}
        for place, name in enumerate(names)
    ]
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        lines = [",".join(["file_name", *columns])] + [",".join(map(str, row.values())) for row in rows]
        (folder / "metadata.csv").write_text("\n".join(lines))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")


def opened(folder: Path, **conditions: Any) -> Dataset:
    return open_dataset(FolderConfig(path=str(folder), size=4, held_out=0.0, conditions=conditions))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_of_metadata_are_conditions(tmp_path: Path, kind: str) -> None:
    described(tmp_path, kind, tone=["dark", "light", "light", "dark"], angle=ANGLES, other=[1, 2, 3, 4])
    dataset = opened(tmp_path, tone=TONE, angle=ANGLE, count=NumberConditionConfig(column="other"))
    order = [Path(name).stem for name in dataset.names]
    tone, angle, count = dataset.schema.attributes
    assert tone == ClassAttribute("tone", ("dark", "light")) and isinstance(angle, NumberAttribute)
    assert (angle.low, angle.high, angle.period) == (0.0, 271.5, 360.0) and count.mean == 2.5
    values = dataset.condition([order.index("1"), order.index("3")]).values
    assert values["tone"].tolist() == [1, 0] and values["angle"].tolist() == [90.0, 271.5]
    assert values["count"].tolist() == [2.0, 4.0]
    line = describe(dataset)
    assert "tone: 2 classes (dark 2, light 2)" in line and "angle: numbers from 0 to 271.5, period 360" in line


def test_a_class_of_a_condition_that_is_only_held_out_was_offered_untrained_without_a_word(tmp_path: Path) -> None:
    described(tmp_path, tone=["dark", "light", "rare", "dark"])
    config = FolderConfig(path=str(tmp_path), size=4, held_out=0.25, conditions={"tone": TONE})
    lines = [describe(open_dataset(replace(config, split_seed=seed))) for seed in range(20)]
    found = ["tone rare: held-out images alone, so never trained" in line for line in lines]
    held_out = [open_dataset(replace(config, split_seed=seed)).split()[1].indices for seed in range(20)]
    names = open_dataset(config).names
    rare = next(place for place, name in enumerate(names) if name.endswith("2.png"))
    assert found == [indices == [rare] for indices in held_out] and any(found) and not all(found)


def test_label_is_the_class_of_the_folder_and_without_conditions_the_only_one(tmp_path: Path) -> None:
    images(tmp_path)
    plain, named = opened(tmp_path), opened(tmp_path, label=TONE)
    assert plain.schema == named.schema and plain.fingerprint == named.fingerprint
    assert plain.condition([0, 3]).values["label"].equal(named.condition([0, 3]).values["label"])
    assert plain.with_conditions("data") == "data" != named.with_conditions("data")


def test_captions_beside_the_images_and_in_metadata_are_texts(tmp_path: Path) -> None:
    names = images(tmp_path / "beside")
    for number, name in enumerate(names):
        (tmp_path / "beside" / name).with_suffix(".txt").write_text(f"a {'cat' if number % 2 else 'dog'}\n")
    described(tmp_path / "inside", caption=["a dog", "a cat", "a dog", "a cat"])
    for folder in ("beside", "inside"):
        (column,) = opened(tmp_path / folder, words=TEXT).columns
        assert column.names == ("a cat", "a dog") and sorted(column.values.tolist()) == [0, 0, 1, 1]
    assert "words: 2 distinct captions" in describe(opened(tmp_path / "beside", words=TEXT))


def test_a_caption_in_another_encoding_than_utf8_is_read_as_other_letters(tmp_path: Path) -> None:
    for name in images(tmp_path):
        (tmp_path / name).with_suffix(".txt").write_text("a grün disc", encoding="utf-16")
    assert "captions (.txt) are not used: 4" in describe(opened(tmp_path))
    with pytest.raises(DataError, match=r"cat/1.txt: the caption is no text in UTF-8: save it as one"):
        opened(tmp_path, words=TEXT)


def test_captions_whose_ending_is_in_capitals_are_counted_and_not_found(tmp_path: Path) -> None:
    for name in images(tmp_path):
        (tmp_path / name).with_suffix(".TXT").write_text("a disc")
    assert "captions (.txt) are not used: 4" in describe(opened(tmp_path))
    assert opened(tmp_path, words=TEXT).columns[0].names == ("a disc",)


def test_another_value_of_one_image_is_another_fingerprint_of_the_run_and_not_of_the_images(tmp_path: Path) -> None:
    found = []
    for number, last in enumerate((271.5, 272.0)):
        described(tmp_path / str(number), angle=[*ANGLES[:3], last])
        found.append(opened(tmp_path / str(number), angle=ANGLE))
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].with_conditions("") != found[1].with_conditions("")


@pytest.mark.parametrize(
    ("columns", "conditions", "words"),
    [
        ({"tone": ["dark", None, "dark", None]}, {"tone": TONE}, "2 of 4 images have none, for instance cat/1.png"),
        ({"tone": [1, 2, 3, 4]}, {"tome": TONE}, r"none of the images has one; .*\(columns of the metadata: tone\)"),
        ({"angle": [1.0, float("nan"), 2.0, 3.0]}, {"angle": ANGLE}, "angle is NaN: not a finite number"),
        ({"angle": [1, 10**400, 2, 3]}, {"angle": ANGLE}, "angle is 10+: not a finite number"),
        (
            {"angle": [1.0, 1e39, 2.0, 3.0]},
            {"angle": ANGLE},
            r"angle is 1e\+39: larger than the largest number of single precision",
        ),
        ({"angle": [1.0, "up", 2.0, 3.0]}, {"angle": ANGLE}, 'angle is "up": not a number'),
        ({"tone": [0.5] * 4}, {"tone": TONE}, "tone is 0.5: neither text nor a whole number"),
        ({"text": [["a"]] * 4}, {"text": TEXT}, r'text is \["a"\]: not a text'),
    ],
    ids=[
        "missing",
        "no such column",
        "not finite",
        "huge",
        "infinite in single precision",
        "no number",
        "no class",
        "no text",
    ],
)
def test_a_condition_that_an_image_lacks_or_that_is_none_is_refused(tmp_path, columns, conditions, words) -> None:
    described(tmp_path, **columns)
    with pytest.raises(DataError, match=words) as caught:
        opened(tmp_path, **conditions)
    assert "\n" not in str(caught.value)


def test_a_name_that_torch_uses_is_refused(tmp_path: Path) -> None:
    described(tmp_path, type=["a", "b", "a", "b"])
    with pytest.raises(ConfigError, match="choose another name, with column: type"):
        opened(tmp_path, type=TONE)
    assert opened(tmp_path, sort=replace(TONE, column="type")).schema.choices == ("a", "b")


def test_texts_are_given_out_by_image_with_the_tokens_of_their_caption(tmp_path: Path) -> None:
    described(tmp_path / "data", text=["a dog", "a cat", "a dog", "a red cat"])
    dataset = opened(tmp_path / "data", text=TextConditionConfig(length=3))
    encoder = open_encoder(str(word_vectors(tmp_path / "words")))
    (column,) = dataset.columns
    tokens = encoded(encoder, column.names, 3)
    dataset.captions["text"] = EmbeddedCaptions(attribute_of("text", column.config, encoder), tokens)
    for index, name in enumerate(dataset.names):
        text = column.names[column.values[index]]
        expected = encoded(encoder, [text], 3)[0].float()
        assert torch.allclose(dataset.condition([index]).values["text"][0], expected, equal_nan=True), name
    assert dataset.condition([0]).dropped(torch.tensor([True])).values["text"].isnan().all()


@pytest.mark.parametrize("config", [TONE, TEXT], ids=["class", "text"])
def test_one_long_text_does_not_make_every_other_one_as_large_in_memory(config: Any) -> None:
    texts = ["x" * 100_000, *(f"caption {number}" for number in range(200))]
    entries = [Entry(str(place), None, str(place), row={"text": text}) for place, text in enumerate(texts)]
    tracemalloc.start()
    (column,) = columns_of(FolderConfig(path="anywhere", conditions={"text": config}), entries, "anywhere")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [column.names[value] for value in column.values] == texts and peak < 2**20
