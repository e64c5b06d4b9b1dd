"""The run folder: what it says of itself stays true."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from ldm import checkpoint
from ldm.autoencoder.model import Autoencoder
from ldm.component.versions import SOURCES, versions_of
from ldm.errors import ConfigError, DataError
from ldm.pipeline import LatentDiffusion
from ldm.script_configs import TrainVAEConfig
from ldm.training.run_folder import RunFolder
from tests.support.scripts import Outcome, Stage, forked, ran, script


def test_a_finished_run_started_with_fewer_steps_keeps_the_record_of_what_it_did(
    stage_one: Stage, finished_vae, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    outcome = stage_one.run(run, "--run.steps", 4)
    assert outcome.code == 0 and "is finished: 6 steps" in outcome.out, outcome
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_weights_of_a_later_checkpoint_were_exported_as_of_fewer_steps(
    stage_one: Stage, finished_vae: Path, tmp_path: Path
) -> None:
    """A run that was stopped at step 6 of many: fewer steps are refused, and with just 6 it is what it says it is."""
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    (run / "finished.json").unlink()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("steps: 6", "steps: 10000"))
    before = files(run)
    outcome = stage_one.run(run, "--run.steps", 5)
    assert outcome.code == 2 and "give at least 6" in outcome.err and files(run) == before, outcome
    assert stage_one.run(run).code == 0
    assert (run / "config.yaml").read_text() == config
    Autoencoder.load(run)


@pytest.mark.parametrize("text", ['{"format": 2}', "[]", '{"format": 2, "data": 1, "step": null}'])
@pytest.mark.parametrize("name", ["environment.json", "finished.json"])
def test_a_note_that_lacks_its_entry_is_no_traceback(stage_one: Stage, finished_vae: Path, tmp_path, name, text):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    (run / name).write_text(text)
    outcome = stage_one.run(run, "--run.steps", 8)
    assert outcome.code == 4 and f"{name} is damaged" in outcome.err and "Traceback" not in outcome.err, outcome


def test_a_log_cut_short_by_a_crash_is_read_and_cut_back(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step, "l1": 1 / step})
    with open(folder.metrics, "a") as file:
        file.write('{"step": 4, "l1": 0.')
    assert [line["step"] for line in folder.lines()] == [1, 2, 3]
    folder.forget_after(2)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2]


def test_a_log_with_a_byte_or_a_line_of_something_else_is_no_traceback(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    good = [{"step": 1, "l1": 0.5}, {"step": 2, "l1": 0.25}]
    lines = [json.dumps(line).encode() for line in good]
    strange = [b"\xff\xfe", b"7", b"[1]", b"null", b'{"l1": 3}', b'{"step": "2"}', b"[" * 100_000]
    folder.metrics.write_bytes(b"\n".join([lines[0], *strange, lines[1]]) + b"\n")
    assert folder.lines() == good
    folder.forget_after(1)
    assert folder.lines() == good[:1]


LONGER = ("--run.steps", 12)


def files(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != ".lock"}


def test_an_attempt_to_train_a_finished_run_longer_that_was_refused_made_it_unusable(
    stage_one: Stage, stage_two: Stage, finished_vae: Path, tmp_path: Path
) -> None:
    """The data are gone, or are others, or do not fit into memory: whatever it met, the run is what it was."""
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(finished_vae, run)
    before = files(run)
    shutil.copytree(data_of(finished_vae), other)
    (other / "disc" / "new.png").write_bytes((other / "disc" / "00.png").read_bytes())
    assert stage_one.run(run, *LONGER, "--data.path", tmp_path / "nowhere").code == 3
    assert stage_one.run(run, *LONGER, "--data.path", other).code == 3
    assert out_of_memory(stage_one, run).code == 1
    assert files(run) == before
    Autoencoder.load(run)
    assert ran("ldm.cli.main", "evaluate", run, "--images", 2).code == 0
    diffusion = Stage(stage_two.name, (*stage_two.arguments[:-1], run)).run(tmp_path / "two", "--dry-run")
    assert diffusion.code == 0, diffusion


def test_a_stale_cache_made_a_finished_run_of_stage_two_unusable(
    stage_two: Stage, finished_diffusion: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_diffusion, run)
    cache = run / "latents" / "cache.json"
    cache.write_text(cache.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    before = files(run)
    outcome = stage_two.run(run, *LONGER)
    assert outcome.code == 4 and "stale" in outcome.err, outcome
    assert files(run) == before
    LatentDiffusion.load(run)


def test_a_finished_run_that_is_trained_longer_says_so_and_the_former_command_brings_it_back(
    stage_one: Stage, finished_vae: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "finished.json")}
    child, wait = stage_one.start(run, "--run.steps", 10_000, "--run.log-every", 1)
    while checkpoint.steps(run / "checkpoints")[-1] == 6:
        if b"steps: 10000" in (run / "config.yaml").read_bytes():  # with the first new step
            os.kill(child, signal.SIGTERM)
            break
    assert wait().code == 75
    assert len((run / "command.txt").read_text().splitlines()) == 2
    evaluated = ran("ldm.cli.main", "evaluate", run, "--images", 2)
    assert evaluated.code == 4, evaluated
    assert "6 of its 10000 steps are in vae/" in evaluated.err and "train it with --run.steps 6" in evaluated.err
    assert "is finished" in stage_one.run(run).out
    assert before == {name: (run / name).read_bytes() for name in before}
    assert ran("ldm.cli.main", "evaluate", run, "--images", 2).code == 0


def test_a_run_of_stage_two_that_is_trained_longer_was_given_the_advice_of_stage_one(
    finished_diffusion: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_diffusion, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("steps: 6", "steps: 12"))
    outcome = ran("sample", run, "--out", tmp_path / "grid.png")
    assert outcome.code == 4 and "6 of its 12 steps are in unet/" in outcome.err, outcome
    assert "train it with --run.steps 6" in outcome.err and "ldm export" not in outcome.err, outcome


def test_images_that_were_moved_were_called_another_setting(
    stage_one: Stage, finished_vae: Path, tmp_path: Path
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished_vae, run)
    shutil.copytree(data_of(finished_vae), moved)
    outcome = stage_one.run(run, "--run.steps", 7, "--data.path", moved)
    assert outcome.code == 0 and "resuming from step 6" in outcome.out, outcome
    assert data_of(run) == moved
    (moved / "disc" / "00.png").unlink()
    outcome = stage_one.run(run, "--run.steps", 8, "--data.path", moved)
    assert outcome.code == 3 and "the data changed" in outcome.err, outcome


def test_another_autoencoder_was_called_other_data_and_other_data_a_stale_cache(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "finished.json").write_text('{"step": 6}')
    began = {"data": "latents", "images": "images", "perceptual_weights": ""}
    (tmp_path / "environment.json").write_text(json.dumps(began))
    folder.check_same_images("images")
    folder.describe_environment("latents", "", images="images")
    with pytest.raises(DataError, match="the data changed since the run"):  # before anything is encoded
        folder.check_same_images("others")
    with pytest.raises(DataError, match="--autoencoder, its weights or the conditions of the images changed"):
        folder.describe_environment("others", "", images="images")
    with pytest.raises(DataError, match="the data changed since the run"):
        folder.describe_environment("others", "", images="others")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems want names in UTF-8")
def test_a_path_with_a_byte_that_is_not_utf_8_is_no_traceback(stage_one: Stage, tmp_path: Path) -> None:
    data, run = tmp_path / os.fsdecode(b"caf\xe9"), tmp_path / "run"
    shutil.copytree(data_of_stage(stage_one), data)
    (data / "disc" / "00.png").write_bytes(b"not a picture")
    flags = ("--run.steps", 2, "--data.path", data, "--data.max-unreadable", 0.05)
    outcome = stage_one.run(run, *flags)
    assert outcome.code == 0 and "Traceback" not in outcome.err, outcome
    assert "caf\\udce9/disc/00.png" in outcome.out
    assert os.fsencode(data) in (run / "command.txt").read_bytes()
    assert "is finished" in stage_one.run(run, *flags).out
    exported = ran("ldm.cli.main", "export", run, "--format", "diffusers", "--out", tmp_path / "exported")
    assert exported.code == 0, exported
    outcome = stage_one.run(tmp_path / os.fsdecode(b"r\xe9seau"), *flags)
    assert outcome.code == 2 and "is not in UTF-8" in outcome.err and "Traceback" not in outcome.err, outcome


def data_of(run: Path) -> Path:
    """Where the images of a run lie, as its config.yaml says."""
    from ldm.config import reader

    return Path(reader.load(TrainVAEConfig, run / "config.yaml", {}).data.path)  # type: ignore[union-attr]


def data_of_stage(stage: Stage) -> Path:
    """Where the images of a stage lie, as its config file says."""
    from ldm.config import reader

    return Path(reader.load(TrainVAEConfig, Path(str(stage.arguments[0])), {}).data.path)  # type: ignore[union-attr]


def out_of_memory(stage: Stage, run: Path) -> Outcome:
    """A longer run whose first backward finds no memory on the GPU."""
    action = script(stage.name, *stage.arguments, "--out", run, *LONGER)

    def starved() -> int:
        import torch

        def fails(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        torch.Tensor.backward = fails  # type: ignore[method-assign, assignment]
        return action()

    return forked(starved)[1]()


def test_sources_that_were_never_installed_crashed_a_run() -> None:
    found = versions_of(["numpy", "surely-not-installed"])
    assert found == {"numpy": np.__version__, "surely-not-installed": SOURCES}


def test_a_folder_that_other_machines_do_not_see_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not the same folder for every process: several machines need one"):
        RunFolder(tmp_path / "elsewhere").check_shared()
