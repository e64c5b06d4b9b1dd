"""A run folder of version 0.1, whose settings had other names: refused by name, with what to do instead."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.scripts import Outcome, Stage, ran


@pytest.fixture(scope="module")
def old(finished_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run as version 0.1 left it: no format in environment.json, and a setting of another name."""
    run = tmp_path_factory.mktemp("old") / "run"
    shutil.copytree(finished_vae, run)
    environment = json.loads((run / "environment.json").read_text())
    assert environment.pop("format") == 2
    environment["judges"] = environment.pop("perceptual_weights")
    (run / "environment.json").write_text(json.dumps(environment))
    config = (run / "config.yaml").read_text()
    assert "  discriminator:\n" in config
    (run / "config.yaml").write_text(config.replace("  discriminator:\n", "  critic:\n"))
    assert list((run / "checkpoints").iterdir())
    return run


def refusal(outcome: Outcome, old: Path) -> str:
    """What to do instead, from the one line that names the run and its version."""
    assert outcome.code == 2, outcome
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    start = f"error: {old} is a run of an earlier version of ldm, whose settings have other names: "
    assert line.startswith(start) and "Traceback" not in outcome.err, outcome
    return line.removeprefix(start)


def test_run_of_an_earlier_version_is_not_trained_further(stage_one: Stage, old: Path) -> None:
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    for steps in (6, 8):  # finished, or not yet
        advice = refusal(stage_one.run(old, "--run.steps", steps), old)
        assert advice == "its vae/ is still read; to train, choose another --out"
    assert {file: file.read_bytes() for file in old.rglob("*") if file.is_file()} == before


def test_run_of_an_earlier_version_is_not_evaluated_but_its_autoencoder_is(old: Path, shapes_folder: Path) -> None:
    assert refusal(ran("ldm.cli.main", "evaluate", old), old) == f"give {old / 'vae'}, which is still read"
    outcome = ran("ldm.cli.main", "evaluate", old / "vae", "--data", shapes_folder, "--size", 16, "--images", 4)
    assert outcome.code == 0 and "PSNR" in outcome.out, outcome


def test_data_of_a_run_of_an_earlier_version_are_not_taken_over_but_its_autoencoder_is(
    stage_two: Stage, old: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    config, flag, _ = stage_two.arguments
    outcome = Stage("train_diffusion", (config, flag, old)).run(tmp_path / "run")
    assert refusal(outcome, old) == f"give --autoencoder {old / 'vae'} and a data section in the config"
    data = ("--data.kind", "folder", "--data.path", shapes_folder, "--data.size", 16)
    outcome = Stage("train_diffusion", (config, flag, old / "vae")).run(tmp_path / "run", *data, "--dry-run")
    assert outcome.code == 0 and "latent" in outcome.out, outcome
