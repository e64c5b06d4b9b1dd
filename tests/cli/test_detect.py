"""`ldm detect` from the command line: what it writes, what it refuses, and that nothing is lost on the way."""

import csv
import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.anomaly.config import SCORES
from ldm.anomaly.conformal import benjamini_hochberg
from ldm.anomaly.normal_images import hash_of
from ldm.cli.detect_normals import normal_images
from ldm.script_configs import vae_data_of
from tests.support.anomaly_data import SIDE, mvtec_folder, pixels_of
from tests.support.scripts import ROOT, Outcome, ran, script, together

GRAY = ("--size", SIDE, "--channels", 1)
SCORE_NAMES = ["reconstruction", "pixel-density"]  # as asked for
TWO = ("--scores", ",".join(SCORE_NAMES))


@pytest.fixture(scope="module", autouse=True)
def imported_once() -> None:
    """What every forked child would import by itself."""
    import ldm.anomaly.detector
    import ldm.anomaly.score_files  # noqa: F401


def detect(*arguments: object) -> Outcome:
    """What comes of the command."""
    return ran("ldm.cli.main", "detect", *arguments)


def done(*arguments: object) -> Outcome:
    """The same, once it has succeeded."""
    outcome = detect(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(code: int, *arguments: object) -> str:
    """The one line of a refusal."""
    outcome = detect(*arguments)
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert (outcome.code, len(lines)) == (code, 1), outcome
    return lines[0]


def rows_of(file: Path) -> dict[str, dict[str, str]]:
    """The rows of a table of scores, by path."""
    with file.open() as lines:
        return {row["path"]: row for row in csv.DictReader(lines)}


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, byte for byte."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes, and stripes with a bright patch, in MVTec's layout."""
    return mvtec_folder(tmp_path_factory.mktemp("detect") / "data", train=60)


@pytest.fixture(scope="module")
def detector(data: Path) -> Path:
    """A detector with both scores of principal components."""
    done("fit", "pca:4", "--normal", data, "--out", data.parent / "detector", *GRAY, *TWO)
    return data.parent / "detector"


@pytest.fixture(scope="module")
def scores(data: Path, detector: Path) -> Path:
    """The scores of the test images."""
    done("score", detector, data / "test", "--out", data.parent / "scores")
    return data.parent / "scores"


def labeled_folder(folder: Path, data: Path, *, normal: str = "plain") -> Path:
    """All images in sub-folders that are classes."""
    for place in ("train/good", "test/good"):
        for file in (data / place).iterdir():
            target = folder / normal / f"{place.replace('/', '-')}-{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    shutil.copytree(data / "test" / "scratch", folder / "scratched")
    return folder


# ---- what is written


def test_scores_are_a_table_with_a_verdict_on_every_image(data: Path, scores: Path) -> None:
    rows = rows_of(scores / "scores.csv")
    assert list(rows) == sorted(str(path.relative_to(data / "test")) for path in (data / "test").rglob("*.png"))
    assert list(next(iter(rows.values()))) == ["path", "pred_score", "p_value", "pred_label"]
    protocol = json.loads((scores / "scores.json").read_text())
    for name, row in rows.items():
        assert row["pred_label"] == str(int(float(row["pred_score"]) > protocol["detector"]["threshold"]))
        assert row["pred_label"] == "1" or not name.startswith("scratch/")
    assert protocol["anomalies"] == sum(row["pred_label"] == "1" for row in rows.values()) >= 6
    facts = protocol["detector"]
    assert facts["alpha"] == 0.05 and facts["scores"] == SCORE_NAMES and facts["pool"] == "mean"
    assert facts["model"] == "pca:4" and "0.05 at most" in facts["guarantee"] and protocol["versions"]["torch"]


def test_every_image_has_its_map_as_numbers_as_overlay_and_as_mask(scores: Path) -> None:
    protocol = json.loads((scores / "scores.json").read_text())
    stems = [f"{kind}-{number:03d}" for kind in ("good", "scratch") for number in range(6)]
    assert sorted(path.name for path in (scores / "maps").iterdir()) == sorted(
        f"{stem}{ending}" for stem in stems for ending in (".npy", ".png")
    )
    for stem in stems:
        found = np.load(scores / "maps" / f"{stem}.npy", allow_pickle=False)
        mask = pixels_of(scores / "masks" / f"{stem}.png")
        assert found.shape == mask.shape == (SIDE, SIDE) and found.dtype == np.float32
        assert np.array_equal(mask > 0, found > protocol["detector"]["map_threshold"])
        assert pixels_of(scores / "maps" / f"{stem}.png").shape == (SIDE, SIDE, 3)
    assert pixels_of(scores / "sheet.png").shape[1] > 100
    assert {path.name for path in scores.iterdir()} == {"maps", "masks", "scores.csv", "scores.json", "sheet.png"}


def test_without_maps_the_table_is_the_same_and_nothing_else_is_written(
    data: Path, detector: Path, scores: Path, tmp_path: Path
) -> None:
    done("score", detector, data / "test", "--out", tmp_path / "out", "--no-maps")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.csv", "scores.json", "sheet.png"}
    assert (tmp_path / "out" / "scores.csv").read_bytes() == (scores / "scores.csv").read_bytes()


def test_with_fdr_the_verdict_is_the_selection_of_benjamini_and_hochberg(
    data: Path, detector: Path, scores: Path, tmp_path: Path
) -> None:
    import torch

    done("score", detector, data / "test", "--out", tmp_path / "out", "--no-maps", "--fdr", 0.2)
    rows, before = rows_of(tmp_path / "out" / "scores.csv"), rows_of(scores / "scores.csv")
    p_values = torch.tensor([float(row["p_value"]) for row in rows.values()], dtype=torch.float64)
    assert [row["pred_label"] == "1" for row in rows.values()] == benjamini_hochberg(p_values, 0.2).tolist()
    assert [row["p_value"] for row in rows.values()] == [row["p_value"] for row in before.values()]
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["fdr"] == 0.2


def test_evaluate_measures_images_and_pixels_of_mvtecs_layout(data: Path, detector: Path, tmp_path: Path) -> None:
    out, table, panel = tmp_path / "e.json", tmp_path / "e.csv", tmp_path / "e.png"
    said = done("evaluate", detector, data, "--out", out, "--csv", table, "--panel", panel).out
    report = json.loads(out.read_text())
    assert report["count"] == {"normal": 6, "anomalous": 6, "unreadable": 0, "left_out": 0}
    metrics = report["metrics"]
    assert list(metrics) == [
        "image_auroc", "average_precision", "false_alarm_rate", "detection_rate", "pixel_auroc", "aupro",
    ]  # fmt: skip
    assert metrics["image_auroc"] > 0.9 and metrics["pixel_auroc"] > 0.8 and metrics["aupro"] > 0.5
    assert report["by_kind"]["scratch"]["count"] == 6 and set(report["by_score"]) == {
        "reconstruction",
        "pixel-density",
    }
    rows = rows_of(table)
    assert {name: row["gt_label"] for name, row in rows.items()} == {
        name: str(int("scratch" in name)) for name in rows if name.startswith("test/")
    }
    assert "6 normal, 6 anomalous" in said and "AUPRO@0.3" in said and pixels_of(panel).shape[0] > 100


@pytest.mark.parametrize("labels", ["folders", "metadata"])
def test_one_class_of_labeled_images_is_the_normal_one(data: Path, tmp_path: Path, labels: str) -> None:
    folder = labeled_folder(tmp_path / "labeled", data)
    if labels == "metadata":
        lines = [
            json.dumps({"file_name": str(path.relative_to(folder)), "label": path.parent.name, "group": path.stem})
            for path in sorted(folder.rglob("*.png"))
        ]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    more = ("--normal-class", "plain")
    fitted = done(
        "fit", "pca:4", "--normal", folder, "--out", tmp_path / "d", *GRAY, *more, "--held-out", 0.2, "--alpha", 0.1
    ).out
    assert "26 for densities" in fitted  # half of the 53 of 66 that are not held out
    done("evaluate", tmp_path / "d", folder, *more, "--out", tmp_path / "e.json")
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["count"] == {"normal": 13, "anomalous": 6, "unreadable": 0, "left_out": 53}
    assert report["normal_class"] == "plain" and report["metrics"]["image_auroc"] > 0.9
    assert not {"pixel_auroc", "aupro"} & report["metrics"].keys()


def test_a_path_is_a_bundled_set_mvtecs_layout_or_a_folder(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from ldm.cli.detect_data import data_config
    from ldm.data.config import FolderConfig, MNIST5kConfig, MVTecConfig

    monkeypatch.chdir(tmp_path)
    reading = {"size": 16, "channels": 1}
    assert data_config("mnist5k", {"size": None, "channels": None}) == MNIST5kConfig()
    assert data_config("mnist5k", reading) == MNIST5kConfig(size=16)
    assert data_config(str(data), reading, labels="none") == MVTecConfig(path=str(data), **reading)
    folder = FolderConfig(path=str(tmp_path), labels="none", **reading)
    assert data_config(str(tmp_path), reading, labels="none") == folder
    (tmp_path / "mnist5k").mkdir()
    assert data_config("mnist5k", reading) == FolderConfig(path="mnist5k", **reading)


@pytest.fixture(scope="module")
def run_detector(finished_vae: Path, data: Path) -> Path:
    """A detector of a run, with two of its scores."""
    out = data.parent / "run-detector"
    done("fit", finished_vae, "--normal", data, "--out", out, *TWO)
    return out


def test_a_run_detects_with_the_size_and_channels_that_it_was_trained_with(
    run_detector: Path, data: Path, tmp_path: Path
) -> None:
    facts = json.loads((run_detector / "detector.json").read_text())
    assert facts["shape"] == [3, 16, 16] and facts["scores"] == SCORE_NAMES
    done("score", run_detector, data / "test", "--out", tmp_path / "out", "--batch-size", 5)
    assert len(rows_of(tmp_path / "out" / "scores.csv")) == 12


def test_two_processes_write_what_one_writes_byte_for_byte(
    data: Path, detector: Path, scores: Path, tmp_path: Path
) -> None:
    fit = ("fit", "pca:4", "--normal", data, "--out", tmp_path / "detector", *GRAY, *TWO)
    score = ("score", detector, data / "test", "--out", tmp_path / "two", "--batch-size", 5)
    alone = ("score", detector, data / "test", "--out", tmp_path / "one", "--batch-size", 5)
    evaluate = ("evaluate", detector, data, "--batch-size", 5)
    for words in (fit, score, (*evaluate, "--out", tmp_path / "two.json", "--csv", tmp_path / "two.csv")):
        outcomes = together([script("ldm.cli.main", "detect", *words)] * 2)
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    done(*alone)
    done(*evaluate, "--out", tmp_path / "one.json", "--csv", tmp_path / "one.csv")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert files_of(tmp_path / "detector") == files_of(detector)
    for ending in (".json", ".csv"):
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


# ---- what cannot be read


def test_an_image_that_cannot_be_read_is_named_and_all_others_are_scored(
    data: Path, detector: Path, scores: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "test", tmp_path / "images")
    (tmp_path / "images" / "good" / "002.png").write_bytes(b"no image")
    np.save(tmp_path / "images" / "two_channels.npy", np.zeros((SIDE, SIDE, 2), np.uint8))
    outcome = detect("score", detector, tmp_path / "images", "--out", tmp_path / "out")
    assert outcome.code == 3
    table = tmp_path / "out" / "scores.csv"
    assert outcome.err.splitlines()[-1] == f"error: 2 of 13 images cannot be read, and have no score in {table}"
    assert "unreadable: " in outcome.err and "good/002.png" in outcome.err and "two_channels.npy" in outcome.err
    rows, before = rows_of(tmp_path / "out" / "scores.csv"), rows_of(scores / "scores.csv")
    for name in ("good/002.png", "two_channels.npy"):
        assert list(rows.pop(name).values()) == [name, "", "", ""]
    assert rows.keys() == before.keys() - {"good/002.png"}
    assert all(row["pred_label"] == before[name]["pred_label"] for name, row in rows.items())
    assert set(json.loads((tmp_path / "out" / "scores.json").read_text())["unreadable"]) == {
        "good/002.png",
        "two_channels.npy",
    }
    assert (tmp_path / "out" / "sheet.png").is_file() and not (tmp_path / "out" / "maps" / "good-002.png").exists()


def test_an_unreadable_image_of_evaluate_is_named_and_not_measured(data: Path, detector: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    (root / "test" / "scratch" / "002.png").write_bytes(b"no image")
    outcome = detect("evaluate", detector, root, "--out", tmp_path / "e.json", "--csv", tmp_path / "e.csv")
    assert outcome.code == 3 and "scratch/002.png" in outcome.err
    assert outcome.err.splitlines()[-1] == "error: 1 of 12 images cannot be read, and were not measured"
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["count"] == {"normal": 6, "anomalous": 5, "unreadable": 1, "left_out": 0}
    assert list(rows_of(tmp_path / "e.csv")["test/scratch/002.png"].values()) == [
        "test/scratch/002.png",
        "",
        "",
        "",
        "1",
    ]


def test_a_normal_image_that_cannot_be_read_is_left_out_and_named(data: Path, detector: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data / "train" / "good", tmp_path / "good")
    (root / "zzz.png").write_bytes(b"no image")
    outcome = done("fit", "pca:4", "--normal", root, "--out", tmp_path / "d", *GRAY)
    assert "unreadable, left out: " in outcome.err and "zzz.png" in outcome.err
    counts = [
        json.loads((folder / "detector.json").read_text())["normal_images"] for folder in (tmp_path / "d", detector)
    ]
    assert sum(counts[0].values()) == sum(counts[1].values()) == 60


def test_images_of_which_none_can_be_read_are_refused_and_nothing_is_left(detector: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    assert "none of the 1 images can be read" in refused(
        3, "score", detector, tmp_path / "images", "--out", tmp_path / "out"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


# ---- what is refused


def test_nothing_that_exists_is_overwritten(data: Path, detector: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("mine")
    (tmp_path / "folder").mkdir()
    for words in (
        ("fit", "pca:4", "--normal", data, "--out", tmp_path / "folder", *GRAY),
        ("score", detector, data / "test", "--out", tmp_path / "folder"),
        ("score", detector, data / "test", "--out", tmp_path / "mine.json"),
        ("evaluate", detector, data, "--out", tmp_path / "mine.json"),
        ("evaluate", detector, data, "--csv", tmp_path / "mine.json"),
    ):
        assert "exists, and nothing is overwritten" in refused(2, *words)
    assert (tmp_path / "mine.json").read_text() == "mine" and not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(
    ("code", "more", "says"),
    [
        (2, ("--scores", "recostruction"), "--scores recostruction is no score; did you mean reconstruction?"),
        (2, ("--scores", "denoising"), "pca:4 gives no score denoising, which needs a diffusion model"),
        (2, ("--alpha", 2), "--alpha is 2; expected a finite number (above 0 and below 1)"),
        (2, ("--pool", "maxx"), "did you mean max?"),
        (2, ("--held-out", 1), "--held-out 1 must be at least 0 and below 1"),
        (2, ("--normla", "x"), "did you mean --normal?"),
        (3, ("--alpha", 0.01), "a false-alarm rate of 0.01: give at least 99"),
        (3, ("--normal-class", "plain"), "has no classes"),
        (2, ("--out", "nowhere/at/all"), "is in no folder"),
    ],
)
def test_fit_refuses_in_one_line(data: Path, tmp_path: Path, code: int, more: tuple[object, ...], says: str) -> None:
    words = ("fit", "pca:4", "--normal", data / "train" / "good", "--out", tmp_path / "d", *GRAY, *more)
    assert says in refused(code, *words)
    assert not list(tmp_path.iterdir())


def test_fit_without_a_size_asks_for_it(data: Path, tmp_path: Path) -> None:
    assert "--size is missing" in refused(2, "fit", "pca:4", "--normal", data, "--out", tmp_path / "d")


def test_a_runs_own_training_images_set_no_threshold(finished_vae: Path, shapes_folder: Path, tmp_path: Path) -> None:
    """Named by their folder they are known: of 60 images 54 were trained on, and six are too few."""
    said = refused(3, "fit", finished_vae, "--normal", shapes_folder, "--out", tmp_path / "d", "--alpha", 0.3)
    assert "6 of 60 normal images are left" in said


def test_what_is_held_out_of_a_runs_own_images_was_what_the_run_had_held_out(
    finished_vae: Path, shapes_folder: Path
) -> None:
    """So nothing was left to calibrate with, and an evaluation took training images of the run for new ones."""
    run_data = vae_data_of(str(finished_vae))
    assert run_data is not None
    options = Namespace(run=str(finished_vae), normal=str(shapes_folder), normal_class=None, held_out=0.5)
    normal, known = normal_images(options, run_data, run_data, 0, False)
    _, held_out = normal.dataset.split()
    assert set(normal.indices) & set(held_out.indices)
    new = {index for index in range(60) if hash_of(normal.dataset.eval_view(index)) not in known.hashes}
    assert new and new == set(held_out.indices) - set(normal.indices)


@pytest.mark.parametrize("place", ["copy", "class folder", "another size"])
def test_training_images_in_another_place_set_no_threshold(
    finished_vae: Path, shapes_folder: Path, tmp_path: Path, place: str
) -> None:
    more: tuple[object, ...] = ("--size", 32) if place == "another size" else ()
    folder = {"class folder": shapes_folder / "disc", "another size": shapes_folder, "copy": tmp_path / "copy"}[place]
    if place == "copy":
        shutil.copytree(shapes_folder, folder)
    outcome = detect("fit", finished_vae, "--normal", folder, "--out", tmp_path / "d", *more)
    left_out = 26 if place == "class folder" else 54  # the others are too few for a threshold
    assert outcome.code == 3 and "normal images are left" in outcome.err
    assert f"left out, as {finished_vae} was trained on them: {left_out} images" in outcome.out


def test_changed_data_of_a_run_hide_its_training_images_and_are_refused(
    finished_vae: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    run, own = shutil.copytree(finished_vae, tmp_path / "run"), shutil.copytree(shapes_folder, tmp_path / "data")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(shapes_folder), str(own)))
    shutil.copy(own / "disc" / "00.png", own / "disc" / "new.png")
    said = refused(3, "fit", run, "--normal", own, "--out", tmp_path / "d")
    assert f"the data changed since the run in {run} began" in said
    outcome = detect("fit", run, "--normal", own / "disc", "--out", tmp_path / "d", "--scores", "reconstruction")
    assert outcome.code == 0 and "cannot be told: its own images are gone or changed" in outcome.out


def test_fit_with_other_channels_than_the_model_takes_is_refused(
    finished_vae: Path, data: Path, tmp_path: Path
) -> None:
    said = refused(3, "fit", finished_vae, "--normal", data, "--out", tmp_path / "d", "--channels", 1)
    assert "the images have 1 channels, and" in said and "takes 3" in said


def test_a_normal_class_that_does_not_exist_is_answered_with_the_nearest(
    data: Path, detector: Path, tmp_path: Path
) -> None:
    folder = labeled_folder(tmp_path / "labeled", data)
    for words in (
        ("fit", "pca:4", "--normal", folder, "--out", tmp_path / "d", *GRAY, "--normal-class", "plian"),
        ("evaluate", detector, folder, "--normal-class", "plian"),
    ):
        assert "--normal-class plian is no class of" in (said := refused(2, *words)) and "did you mean plain?" in said


def test_evaluate_refuses_what_says_nothing_on_detection(data: Path, detector: Path, tmp_path: Path) -> None:
    folder = labeled_folder(tmp_path / "labeled", data)
    assert "name the class that is normal with --normal-class, of plain, scratched" in refused(
        2, "evaluate", detector, folder
    )
    shutil.rmtree(folder / "scratched")
    assert "all 66 images are of class plain" in refused(3, "evaluate", detector, folder, "--normal-class", "plain")
    assert "it has no classes" in refused(2, "evaluate", detector, data / "test" / "good")
    unlabeled = ("evaluate", detector, data / "test" / "good", "--normal-class", "good")
    assert "has no classes" in refused(3, *unlabeled)


def test_images_that_the_detector_was_made_with_do_not_count_as_normal_ones(
    data: Path, detector: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "labeled"
    shutil.copytree(data / "train" / "good", folder / "plain")
    shutil.copytree(data / "test" / "scratch", folder / "scratched")
    said = refused(3, "evaluate", detector, folder, "--normal-class", "plain")
    assert "the detector was made with all 60 normal images: fit it with --held-out" in said


def test_masks_of_another_count_are_named(data: Path, detector: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    (root / "ground_truth" / "scratch" / "003_mask.png").unlink()
    assert "has no mask of test/scratch/003.png" in refused(3, "evaluate", detector, root)


def test_mvtecs_layout_without_good_test_images_is_refused(data: Path, detector: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(root / "test" / "good")
    assert "test has no folder good" in refused(3, "evaluate", detector, root)


def test_score_of_the_root_of_mvtecs_layout_names_what_is_meant(data: Path, detector: Path, tmp_path: Path) -> None:
    assert f"score {data}/test" in refused(2, "score", detector, data, "--out", tmp_path / "out")


def test_a_model_of_other_weights_is_refused(
    finished_vae: Path, run_detector: Path, data: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(finished_vae, tmp_path / "run")
    (weights,) = (other / "vae").glob("*.safetensors")
    save_file({name: value * 1.001 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    for words in (("score", run_detector, data / "test", "--out", tmp_path / "out"), ("evaluate", run_detector, data)):
        assert "was fitted with other weights" in refused(4, *words, "--model", other)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fti",), "did you mean fit?"),
        (("fit", "pca:4"), "--normal"),
        (("score", "nowhere", "x", "--out", "y"), "nowhere is not a detector"),
        (("score", "d", "x", "--out", "y", "--fdr", "1.5"), "--fdr 1.5 must be above 0 and below 1"),
        (("evaluate", "d", "x", "--panel", "sheet.jpg"), "must end in .png"),
        (("evaluate", "d", "x", "--out", "e", "--csv", "e"), "--csv e is the file of --out too"),
        (("evaluate", "d", "x", "--batch-size", "0"), "--batch-size 0 must be at least 1"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(
    words: tuple[object, ...], says: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = detect(*words)
    assert outcome.code in (2, 4) and says in outcome.err and outcome.err.count("\n") == 1, outcome


def test_help_is_answered_without_torch_and_names_every_score() -> None:
    code = (
        "import sys\nfrom ldm.cli.main import main\n"
        "for words in (['detect'], *(['detect', name, '--help'] for name in ('fit', 'score', 'evaluate'))):\n"
        "    try: main(words)\n    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'PIL', 'diffusers'} & sys.modules.keys()"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert all(f"  {name} " in answer.stdout for name in (*SCORES, "fit", "score", "evaluate"))
    assert max(map(len, answer.stdout.splitlines())) <= 120
    assert "--alpha" in answer.stdout and "[0.05]" in answer.stdout and "--fdr" in answer.stdout
