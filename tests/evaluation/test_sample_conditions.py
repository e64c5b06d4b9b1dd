"""Samples of a model of several conditions: what they are asked for, and the classes that they are read as."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.batch import Condition
from ldm.data.datasets import open_dataset
from ldm.evaluation.generation import RealData
from ldm.evaluation.sample_conditions import conditions_of_samples
from ldm.pipeline import LatentDiffusion
from ldm.script_configs import data_of_run
from ldm.shapes import to_uint8
from tests.support.conditioned_runs import conditioned_stage
from tests.support.evaluate_command import evaluated, measured
from tests.support.scripts import script, together

SAMPLING = ("--generate", 8, "--steps", 2, "--batch-size", 3)


@pytest.fixture(scope="module", autouse=True)
def classifiers_that_are_trained_for_a_few_steps() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm.evaluation.classifier.STEPS", 3)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    stage = conditioned_stage(tmp_path_factory.mktemp("conditioned"))
    assert (outcome := stage.run(out, "--data.held-out", 0.4)).code == 0, outcome.err
    return out


@pytest.fixture(scope="module")
def real(run: Path) -> RealData:
    config = data_of_run(str(run))
    assert config is not None
    return RealData.of(*open_dataset(config).split(), 5000)


def asked(model: LatentDiffusion, captions: tuple[str, ...], condition: Condition) -> list[tuple[Any, ...]]:
    """Label, tone, angle and caption of each row."""
    schema, values = model.config.schema, condition.values
    columns: list[list[Any]] = []
    for name in ("label", "tone"):
        columns.append([schema.attribute(name).classes[index] for index in values[name].tolist()])
    tokens = {caption: model.prompts(schema.text, [caption])[0].nan_to_num(-9) for caption in captions}
    columns.append(values["angle"].tolist())
    columns.append(
        [next(text for text in captions if row.equal(tokens[text])) for row in values["text"].nan_to_num(-9)]
    )
    return list(zip(*columns, strict=True))


def test_the_conditions_of_samples_are_those_of_training_images_as_often_and_together(run: Path, real) -> None:
    model, dataset, count = LatentDiffusion.load(run), real.training.dataset, len(real.trained_on)
    found = conditions_of_samples(model, real, 3 * count)
    rows = asked(model, dataset.columns[3].names, found.rows[range(3 * count)])
    lines = map(json.loads, (Path(dataset.config.path) / "metadata.jsonl").read_text().splitlines())
    metadata = {line["file_name"]: (line["label"], line["tone"], line["angle"], line["text"]) for line in lines}
    training = [metadata[dataset.names[index]] for index in real.trained_on.indices]
    assert Counter(rows) == Counter(3 * training) and rows[:count] != training
    assert [dataset.classes[label] for label in found.labels] == [label for label, *_ in rows]
    assert [("dark", "light")[tone] for tone in found.asked["tone"]] == [tone for _, tone, *_ in rows]
    fewer = conditions_of_samples(model, real, 2).rows
    assert asked(model, dataset.columns[3].names, fewer[range(2)]) == rows[:2]


def test_samples_are_those_of_the_pipeline_and_read_as_every_class_they_were_asked_for(run, real, tmp_path) -> None:
    report = measured(tmp_path / "report.json", run, *SAMPLING, "--save-images", tmp_path / "saved")
    model = LatentDiffusion.load(run)
    table = conditions_of_samples(model, real, 8).rows
    images = to_uint8(model.sample(8, conditions=table[range(8)], steps=2, batch_size=3))
    drawn = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "saved" / "samples").iterdir())]
    assert torch.equal(torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2), images)
    expected = "label, tone, angle, text: each sample those of one training image, in an order drawn once"
    assert report["protocol"]["labels"] == expected
    assert report["protocol"]["classifiers_of_conditions"].keys() == {"tone"} == report["metrics"]["conditions"].keys()
    shares = report["metrics"]["conditions"]["tone"]
    assert all(0 <= share <= 1 for share in shares.values()) and shares["largest"] >= 0.5
    assert "read_as_class" in report["metrics"]["classification"]


def test_two_processes_ask_for_the_same_and_a_sweep_has_a_column_for_each_condition(run: Path, tmp_path: Path) -> None:
    measured(tmp_path / "one.json", run, *SAMPLING)
    main = ("evaluate", run, *SAMPLING, "--out", tmp_path / "two.json")
    outcomes = together([script("ldm.cli.main", *main)] * 2)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert "samples read as their tone" in "".join(outcome.out for outcome in outcomes)
    outcome = evaluated(run, *SAMPLING, "--sweep", "guidance", "--values", "1,2")
    assert outcome.code == 0 and "read as tone" in outcome.out.splitlines()[0], outcome


def test_other_images_without_conditions_leave_all_but_the_classes_out(run: Path, real, tmp_path: Path) -> None:
    folder = real.training.dataset.config.path
    report = measured(tmp_path / "other.json", run, *SAMPLING, "--data", folder)
    assert report["protocol"]["labels"] == "as frequent as in the data; left out: tone, angle, text"
    assert "conditions" not in report["metrics"]
