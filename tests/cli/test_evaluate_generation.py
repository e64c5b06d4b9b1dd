"""`ldm evaluate` of generated images from the command line: what it measures, writes, resumes and refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.diffusion.model import save_denoiser
from ldm.pipeline import LatentDiffusion
from ldm.shapes import to_float, to_uint8
from tests.support.backbones import random_alexnet
from tests.support.diffusion_models import diffusion_model
from tests.support.evaluate_command import evaluated, measured
from tests.support.scripts import script, together

SAMPLING = ("--generate", 12, "--steps", 3, "--batch-size", 5)


@pytest.fixture(scope="module", autouse=True)
def imported_once_and_trained_for_a_few_steps() -> Any:
    """What every forked child would import by itself; its classifiers need not be good ones."""
    import ldm.evaluation.sample_sheet
    import ldm.evaluation.sweep  # noqa: F401

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm.evaluation.classifier.STEPS", 3)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the images of the report are."""
    return tmp_path_factory.mktemp("generation") / "saved"


@pytest.fixture(scope="module")
def report(finished_diffusion: Path, saved: Path) -> dict[str, Any]:
    """The report on twelve samples, which are saved."""
    fid = ("--fid", "alex", "--fid-weights", random_alexnet())
    files = ("--save-images", saved, "--panel", saved.parent / "sheet.png")
    return measured(saved.parent / "report.json", finished_diffusion, *SAMPLING, *fid, *files)


def pixels(folder: Path) -> torch.Tensor:
    """The images of a folder, uint8."""
    return torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])).permute(
        0, 3, 1, 2
    )


def test_samples_are_those_of_the_pipeline_of_classes_as_frequent_as_in_the_data(finished_diffusion, report, saved):
    """Two classes of thirty images each: they take turns."""
    images = LatentDiffusion.load(finished_diffusion).sample(12, steps=3, batch_size=5)
    assert torch.equal(pixels(saved / "samples"), to_uint8(images))
    names = [file.name for file in sorted((saved / "samples").iterdir())]
    assert names[:3] == ["00000-disc.png", "00001-square.png", "00002-disc.png"]
    sampling = {"sampler": "heun", "steps": 3, "guidance": 2.0, "seed": 0}
    assert report["protocol"]["sampling"] == sampling and report["samples"]["count"] == 12
    assert report["protocol"]["labels"] == "as frequent as in the data"


def test_saved_images_have_the_distances_precision_and_recall_of_torch_fidelity(report, saved):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    from ldm.evaluation.feature_networks import open_extractor

    extractor = open_extractor("alex", str(random_alexnet()), 3, torch.device("cpu"))
    assert extractor is not None
    with torch.no_grad():
        samples, training, held_out = (
            extractor.features(to_float(pixels(saved / name))).double() for name in ("samples", "training", "held-out")
        )
    assert (len(training), len(held_out)) == (54, 6)
    found = report["metrics"]["against_training"]["samples"]
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, (samples, training)), verbose=False)
    assert found["frechet"] == pytest.approx(fid["frechet_inception_distance"], rel=1e-4)
    prc = prc_features_to_metric(samples, training, prc_neighborhood=3, verbose=False)
    assert (found["precision"], found["recall"]) == pytest.approx((prc["precision"], prc["recall"]), abs=1e-6)
    rows = {"kid_subset_size": 6, "kid_subsets": 1, "rng_seed": 2020, "verbose": False}
    kid = kid_features_to_metric(samples[:6], held_out, **rows)["kernel_inception_distance_mean"]
    again = report["metrics"]["against_held_out"]["samples"]["kernel"]
    assert np.sign(kid) == np.sign(again) and report["protocol"]["features"]["kernel"] == "kernel_distance_alex"
    assert "fid" not in json.dumps(report["protocol"]["features"])


def test_the_report_has_what_can_be_reached_beside_the_samples(report, saved):
    against_training = report["metrics"]["against_training"]
    names = {"samples", "samples_as_many_as_held_out", "held_out", "reconstructions", "gaussian"}
    assert against_training.keys() == names
    assert [against_training[name]["images"] for name in ("samples", "held_out", "gaussian")] == [12, 6, 12]
    assert report["metrics"]["against_held_out"].keys() == {"samples", "training", "gaussian"}
    classification = report["metrics"]["classification"]
    assert all(0 <= value <= 1 for value in classification.values()) and "largest_class" in classification
    denoising = report["metrics"]["denoising"]
    assert denoising["sigma"] == [0.1, 0.3, 1, 3, 10]
    expected = np.array(denoising["loss"]) / np.array(denoising["gaussian"])
    assert denoising["fraction"] == pytest.approx(expected.tolist())
    with Image.open(saved.parent / "sheet.png") as sheet:
        assert sheet.width > 300 and sheet.height > 300


def test_held_out_losses_are_those_of_the_log_of_the_run(finished_diffusion, report):
    lines = map(json.loads, (finished_diffusion / "metrics.jsonl").read_text().splitlines())
    (last,) = (line for line in lines if line["step"] == 6 and "held_out_sigma_1" in line)
    logged = [last[f"held_out_sigma_{sigma:g}"] for sigma in (0.1, 0.3, 1, 3, 10)]
    assert report["metrics"]["denoising"]["loss"] == pytest.approx(logged, rel=1e-4)


def test_two_processes_write_what_one_writes(finished_diffusion, tmp_path):
    """Byte for byte, with the features of a classifier that one of them trains."""
    measured(tmp_path / "one.json", finished_diffusion, *SAMPLING)
    main = ("evaluate", finished_diffusion, *SAMPLING, "--out", tmp_path / "two.json")
    outcomes = together([script("ldm.cli.main", *main)] * 2)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert sum("through the autoencoder" in outcome.out for outcome in outcomes) > 0
    assert min(len(outcome.out) for outcome in outcomes) == 0


def test_the_table_names_the_features_and_every_set(finished_diffusion):
    outcome = evaluated(finished_diffusion, *SAMPLING)
    assert outcome.code == 0, outcome
    assert re.search(r"^features +128 of classifier$", outcome.out, re.MULTILINE), outcome.out
    for words in ("against 54 training images", "against 6 held-out images", "samples of the latents' Gaussian"):
        assert words in outcome.out
    assert "no more images than the 128 features" in outcome.out
    assert re.search(r"^  model / Gaussian( +\d\S*){5}$", outcome.out, re.MULTILINE), outcome.out


def test_a_sweep_resumes_after_the_values_that_are_measured(finished_diffusion, tmp_path):
    sweep = (finished_diffusion, "--generate", 6, "--sweep", "steps", "--values")
    found = measured(tmp_path / "sweep.json", *sweep, "1,2", "--panel", tmp_path / "plot.png")
    assert [row["value"] for row in found["rows"]] == [1, 2] and (tmp_path / "plot.png").stat().st_size > 1000
    assert [row["protocol"]["sampling"]["steps"] for row in found["rows"]] == [1, 2]
    assert found["rows"][0]["samples"]["sha256"] != found["rows"][1]["samples"]["sha256"]
    found["rows"][0]["metrics"]["against_training"]["samples"]["frechet"] = 123456.0  # would be lost if measured again
    (tmp_path / "sweep.json").write_text(json.dumps(found))
    outcome = evaluated(*sweep, "3,1", "--out", tmp_path / "sweep.json")
    assert outcome.code == 0, outcome
    resumed = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["value"] for row in resumed["rows"]] == [1, 2, 3] and resumed["rows"][:2] == found["rows"]
    assert re.search(r"^1 +1\.235e\+05", outcome.out, re.MULTILINE), outcome.out
    assert not re.search(r"^2 ", outcome.out, re.MULTILINE)


def test_a_sweep_over_lengths_of_the_average_measures_each_and_resumes(finished_diffusion, tmp_path):
    drawn = (finished_diffusion, "--generate", 6, "--steps", 1)
    sweep = (*drawn, "--sweep", "ema", "--values")
    rows = measured(tmp_path / "sweep.json", *sweep, "0.06,0.1")["rows"]
    assert rows[0]["samples"]["denoiser"] != rows[1]["samples"]["denoiser"]
    once = measured(tmp_path / "once.json", *drawn, "--ema", 0.1)
    for part in ("samples", "protocol"):
        assert rows[1][part] == once[part]
    for part in ("against_training", "classification", "denoising"):
        assert rows[1]["metrics"][part] == once["metrics"][part] != rows[0]["metrics"][part]
    resumed = measured(tmp_path / "sweep.json", *sweep, "0.08,0.06")["rows"]
    assert [row["value"] for row in resumed] == [0.06, 0.1, 0.08] and resumed[:2] == rows
    refused = evaluated(*sweep, "0.06,0.9")
    assert refused.code == 2 and "--ema 0.9 is outside what the 6 snapshots" in refused.err, refused


def test_a_sweep_is_not_resumed_with_other_settings(finished_diffusion, tmp_path):
    sweep = (finished_diffusion, "--generate", 6, "--steps", 1, "--sweep", "sampler", "--values", "euler")
    measured(tmp_path / "sweep.json", *sweep)
    before = (tmp_path / "sweep.json").read_bytes()
    outcome = evaluated(*sweep, "--seed", 1, "--out", tmp_path / "sweep.json")
    assert outcome.code == 2 and "a sweep with another protocol.sampling.seed" in outcome.err, outcome
    outcome = evaluated(
        finished_diffusion, "--generate", 6, "--sweep", "steps", "--values", 1, "--out", tmp_path / "sweep.json"
    )
    assert outcome.code == 2 and "is no sweep over steps" in outcome.err, outcome
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_copies_of_training_images_are_precise_and_are_read_as_their_class(finished_diffusion, shapes_folder, tmp_path):
    """Anybody's images, in sub-folders by class and of another size, beside the images of a run and of a folder."""
    for kind in ("disc", "square"):
        (tmp_path / "copies" / kind).mkdir(parents=True)
        for number in range(10):
            name = Path(kind) / f"{number:02d}.png"
            Image.open(shapes_folder / name).resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / "copies" / name)
    found = measured(tmp_path / "run.json", finished_diffusion, "--samples", tmp_path / "copies")
    assert found["samples"] == {"source": str(tmp_path / "copies"), "count": 20, "sha256": found["samples"]["sha256"]}
    assert found["metrics"]["against_training"]["samples"]["precision"] > 0.7
    assert "reconstructions" in found["metrics"]["against_training"] and "denoising" not in found["metrics"]
    assert found["protocol"]["sampling"] is None and "read_as_class" in found["metrics"]["classification"]
    flags = ("--samples", tmp_path / "copies", "--data", shapes_folder, "--size", 16)
    alone = measured(tmp_path / "alone.json", *flags)
    names = {"samples", "samples_as_many_as_held_out", "held_out"}
    assert alone["metrics"]["against_training"].keys() == names
    assert alone["samples"]["sha256"] == found["samples"]["sha256"]


def test_samples_in_a_folder_are_measured_as_when_they_were_drawn(finished_diffusion, report, saved, tmp_path):
    """Their classes are in their names, as sample.py has it."""
    fid = ("--fid", "alex", "--fid-weights", random_alexnet())
    found = measured(tmp_path / "a.json", finished_diffusion, "--samples", saved / "samples", *fid)
    assert found["samples"]["sha256"] == report["samples"]["sha256"]
    for name in ("read_as_class", "classification_accuracy_score"):
        assert found["metrics"]["classification"][name] == report["metrics"]["classification"][name]
    expected = report["metrics"]["against_training"]["samples"]
    assert found["metrics"]["against_training"]["samples"] == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model without classes, and images without classes."""
    folder, model = tmp_path_factory.mktemp("unconditional"), diffusion_model("tiny", classes=())
    save_denoiser(model.denoiser, model.config, folder / "model" / "unet")
    model.autoencoder.save(folder / "model" / "vae")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
    return folder


def test_a_model_without_classes_is_measured_with_what_a_classifier_of_quarter_turns_sees(unconditional, tmp_path):
    flags = ("--generate", 4, "--steps", 2, "--data", unconditional / "images", "--images", 6)
    found = measured(tmp_path / "a.json", unconditional / "model", *flags)
    assert "quarter turns" in found["protocol"]["classifier"]["classes"] and "classification" not in found["metrics"]
    assert found["protocol"]["training_images"] == 6 and found["protocol"]["held_out_images"] == 2
    assert found["protocol"]["sampling"]["guidance"] == 1.0 and found["protocol"]["labels"] is None
    outcome = evaluated(unconditional / "model", *flags, "--guidance", 2)
    assert outcome.code == 2 and "--guidance needs a model with classes" in outcome.err, outcome


def test_where_nothing_is_held_out_every_second_training_image_takes_its_place(shapes_folder):
    from ldm.data.config import FolderConfig
    from ldm.data.datasets import open_dataset
    from ldm.evaluation.generation import RealData

    dataset = open_dataset(FolderConfig(path=str(shapes_folder), size=16, held_out=0.0))
    real = RealData.of(*dataset.split(), 20)
    assert real.are_halves and (len(real.training), len(real.held_out)) == (20, 20)
    assert not set(real.training.indices) & set(real.held_out.indices) and real.class_counts == [30, 30]


def test_data_that_changed_since_the_run_began_are_refused(finished_diffusion, shapes_folder, tmp_path):
    run, images = tmp_path / "run", tmp_path / "images"
    shutil.copytree(finished_diffusion, run)
    shutil.copytree(shapes_folder, images)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(shapes_folder), str(images)))
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(
        json.dumps({key: value for key, value in environment.items() if key != "images"})
    )
    assert evaluated(run, *SAMPLING).code == 0  # an earlier run did not say which images, but which latents
    (images / "disc" / "00.png").unlink()
    for facts in (environment, {key: value for key, value in environment.items() if key != "images"}):
        (run / "environment.json").write_text(json.dumps(facts))
        outcome = evaluated(run, *SAMPLING)
        assert outcome.code == 3 and "the data changed since the run" in outcome.err, outcome


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "RUN is missing: name a run, or a folder of --samples"),
        (("{ldm}",), 2, "say how many images to draw with --generate N, or give {ldm}/vae"),
        (("{ldm}", "--generate", 1), 2, "--generate 1 must be at least 2"),
        (("{ldm}", "--generate", 4, "--images", 1), 2, "--images 1 must be at least 2"),
        (("{ldm}", "--generate", 4, "--samples", "{shapes}"), 2, "give one of them"),
        (("--generate", 4), 2, "RUN is missing"),
        (("{vae}", "--generate", 4), 4, "is not a finished run of train_diffusion.py"),
        (("{vae}", "--steps", 4), 2, "--steps is for --generate: leave it out"),
        (("{ldm}", "--generate", 4, "--probe", "mean"), 2, "--probe is of autoencoders: leave it out"),
        (("{ldm}", "--generate", 4, "--lpips", "alex"), 2, "--lpips is of autoencoders"),
        (("{ldm}", "--generate", 4, "--steps", 0), 2, "--steps 0 must be at least 1"),
        (("{ldm}", "--generate", 4, "--sampler", "hein"), 2, "invalid choice"),
        (("{ldm}", "--generate", 4, "--guidance", "nan"), 2, "--guidance nan must be a finite number"),
        (("{ldm}", "--generate", 4, "--size", 16), 2, "--size is that of the images of"),
        (("{ldm}", "--generate", 4, "--fid", "none"), 2, "--fid none leaves nothing to compare images by"),
        (("{ldm}", "--generate", 4, "--fid-weights", "x"), 2, "name it with --fid"),
        (("{ldm}", "--generate", 4, "--sweep", "steps"), 2, "--sweep steps needs --values"),
        (("{ldm}", "--generate", 4, "--values", "1,2"), 2, "--values are those of a --sweep"),
        (("{ldm}", "--generate", 4, "--sweep", "steps", "--values", "1,x"), 2, "'x' is not a number"),
        (("{ldm}", "--generate", 4, "--sweep", "steps", "--values", "1,1"), 2, "1 is there twice"),
        (("{ldm}", "--generate", 4, "--sweep", "steps", "--values", "0"), 2, "0 must be at least 1"),
        (("{ldm}", "--generate", 4, "--sweep", "sampler", "--values", "heun,x"), 2, "'x' is not one of euler"),
        (("{ldm}", "--generate", 4, "--sweep", "steps", "--values", "1", "--steps", 2), 2, "what is swept over"),
        (("{ldm}", "--generate", 4, "--sweep", "guidance", "--values", "inf"), 2, "inf must be a finite number"),
        (("--samples", "{shapes}"), 2, "--samples without a RUN needs --data PATH"),
        (("--samples", "{tmp}", "--data", "{shapes}", "--size", 16), 3, "holds no images"),
        (("{ldm}", "--samples", "{shapes}", "--seed", 2), 2, "--seed is for --generate, and not for --samples"),
        (("{ldm}", "--generate", 4, "--out", "{tmp}"), 2, "it is a folder"),
        (("{ldm}", "--generate", 4, "--data", "{tmp}"), 3, "holds no images"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    finished_vae, finished_diffusion, shapes_folder, tmp_path, arguments, code, words
):
    places = {"vae": finished_vae, "ldm": finished_diffusion, "shapes": shapes_folder, "tmp": tmp_path}
    outcome = evaluated(*(str(argument).format(**places) for argument in arguments))
    assert outcome.code == code, outcome
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert words.format(**places) in line and "Traceback" not in outcome.err
