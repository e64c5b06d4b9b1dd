"""`ldm evaluate` of generated images says which of them are copies of training images."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.support.scripts import ran

pytestmark = pytest.mark.usefixtures("short_classifier")


def test_samples_of_a_model_are_compared_with_the_images_that_it_was_trained_on(
    finished_diffusion: Path, tmp_path: Path
) -> None:
    """Of a barely trained model nothing is a copy."""
    sheet, out = tmp_path / "pairs.png", tmp_path / "metrics.json"
    asked = ("evaluate", finished_diffusion, "--generate", 12, "--steps", 2, "--out", out)
    outcome = ran("ldm.cli.main", *asked, "--memorization-sheet", sheet)
    assert outcome.code == 0, outcome.err
    found = json.loads(out.read_text())["memorization"]
    assert found["flagged"] is False and list(found["spaces"]) == ["pixels", "latents", "features"]
    assert found["protocol"]["training_images"] == 54 and found["protocol"]["mirror_images"]
    for space in found["spaces"].values():
        assert len(space["pairs"]) == 12 and {pair["sample"] for pair in space["pairs"]} == set(range(12))
        assert space["near_distance"] > 0 and 0 <= space["copies"] <= 1 and 0 < space["held_out"]["near"] < 0.5
        assert all(pair["training_image"].endswith(".png") for pair in space["pairs"])
    assert "copies of 54 training images and their mirror images" in outcome.out
    assert "memorization: none found" in outcome.out
    with Image.open(sheet) as drawn:
        assert drawn.width >= 12 * 16 and drawn.height > 6 * 16


def test_a_folder_of_training_images_was_taken_for_samples(
    finished_diffusion: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    samples = shutil.copytree(shapes_folder, tmp_path / "samples")
    out = tmp_path / "metrics.json"
    outcome = ran("ldm.cli.main", "evaluate", finished_diffusion, "--samples", samples, "--out", out)
    assert outcome.code == 0, outcome.err
    found = json.loads(out.read_text())["memorization"]
    assert found["flagged"] is True and "memorization: FOUND" in outcome.out
    assert found["spaces"]["pixels"]["copies"] >= 0.9 and found["spaces"]["pixels"]["copied_images"] == 54
    assert found["spaces"]["pixels"]["pairs"][0]["distance"] == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--memorization-sheet", "x.png"), "--memorization-sheet is for --generate"),
        (("--generate", 4, "--memorization-sheet", "x.jpg"), "--memorization-sheet x.jpg must end in .png"),
        (
            ("--generate", 4, "--sweep", "steps", "--values", "1,2", "--memorization-sheet", "x.png"),
            "--memorization-sheet is for one set of samples",
        ),
    ],
)
def test_a_sheet_of_pairs_that_cannot_be_is_refused_in_a_line(
    arguments: tuple[object, ...], problem: str, finished_vae: Path, finished_diffusion: Path
) -> None:
    run = finished_diffusion if "--generate" in arguments else finished_vae
    outcome = ran("ldm.cli.main", "evaluate", run, *arguments)
    assert outcome.code == 2 and problem in outcome.err and len(outcome.err.splitlines()) == 1, outcome
