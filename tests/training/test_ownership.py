"""Ownership of a run folder: what is somebody's is refused and not touched; what a run left is a run's."""

import json
import shutil
from pathlib import Path

import pytest

from ldm.training.ownership import in_the_way
from tests.support.scripts import Outcome, Stage


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, byte for byte."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(outcome: Outcome) -> str:
    """The one line of a refused folder."""
    assert outcome.code == 2 and "Traceback" not in outcome.err, outcome
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    "files",
    [
        ("vae/sd.safetensors",),  # where ComfyUI keeps its autoencoders
        ("unet/diffusion_pytorch_model.fp16.safetensors", "model_index.json", "scheduler/scheduler_config.json"),
        ("config.yaml", "report.json", "curves.png"),
    ],
)
def test_a_run_deleted_somebodys_files(stage: Stage, tmp_path: Path, files: tuple[str, ...]) -> None:
    out = tmp_path / "mine"
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    before = contents(out)
    said = refusal(stage.run(out))
    assert f"--out {out}" in said and min(files).split("/")[0] in said and "choose an empty or a new folder" in said
    assert contents(out) == before


EARLIER_CONFIG = "data: {kind: mnist5k}\nrun: {steps: 3, seed: 0}\n"
TAKEN = {
    "new": None,
    "empty": {},
    "hidden files": {".DS_Store": "x", ".git/config": "x", "Thumbs.db": "x"},
    "a log of the shell": {"train.log": "Mon", "slurm-17.out": "node 3", "output.txt": ""},
    "a cache of latents": {"latents/cache.json": "{}", "latents/moments.npy": "x", "latents/.lock": ""},
    "a cache that is not finished": {
        "latents/building.json": "{}",
        "latents/moments.npy": "x",
        "latents/shards/0.json": "[]",
    },
    "captions that kill -9 left half embedded": {".lock": "", "latents/.captions-754998912654554a.npy.31824": "x"},
    "an interrupted start": {".lock": "", "notes.txt": "mine, and in nobody's way"},
    "an interrupted start of version 0.1": {".lock": "", "config.yaml": EARLIER_CONFIG, "command.txt": "train_vae.py"},
    "one with panels": {".lock": "", "samples/step-00000003.png": "x", "config.yaml": EARLIER_CONFIG},
    "a run of version 0.1": {
        "environment.json": '{"data": "a", "judges": "", "processes": 1, "precision": "fp32", "packages": {}}',
        "vae/config.json": "{}",
    },
    "a run whose notes are damaged": {"environment.json": "{", "checkpoints/step-00000003/manifest.json": "{}"},
}
REFUSED = {
    "notes.txt": {"notes.txt": "mine"},
    "samples/": {"samples/cat.png": "x"},
    "vae/": {".lock": "", "vae/sd.safetensors": "x"},
    "config.yaml": {".lock": "", "config.yaml": "training: {lr: 1}\n"},
    "environment.json": {".lock": "", "environment.json": '{"name": "conda"}'},
    "command.txt": {".lock": "", "command.txt": "make everything"},
    "cache.json": {".lock": "", "cache.json": "{}", "moments.npy": "x"},
    "latents/": {"latents/mine.npy": "x"},
    "checkpoints/": {"checkpoints/epoch=3.ckpt": "x"},
}


def made(folder: Path, files: dict[str, str] | None) -> Path:
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if files == {}:
        folder.mkdir()
    return folder


@pytest.mark.parametrize("what", TAKEN)
def test_a_folder_in_which_nothing_can_be_lost_was_refused(what: str, tmp_path: Path) -> None:
    assert in_the_way(made(tmp_path / "run", TAKEN[what])) is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_of_somebodys_was_taken_for_a_runs(name: str, tmp_path: Path) -> None:
    assert in_the_way(made(tmp_path / "run", REFUSED[name])) == name


def test_a_wrong_first_try_is_put_right_in_the_same_folder_although_it_left_a_log(
    stage_one: Stage, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert stage_one.run(out, "--run.batch-size", 1000).code == 2
    (out / "log.txt").write_text("error: run.batch_size 1000 is larger than ...")
    assert stage_one.run(out, "--run.steps", 1).code == 0


def test_a_run_of_the_other_stage_was_said_to_have_wrong_settings(stage_two: Stage, finished_vae: Path) -> None:
    said = refusal(stage_two.run(finished_vae))
    assert said.endswith(f"--out {finished_vae} is a run of train_vae.py: choose another --out")


def test_a_cache_overwrote_somebodys_moments(stage_two: Stage, tmp_path: Path) -> None:
    cache = tmp_path / "physics"
    cache.mkdir()
    (cache / "moments.npy").write_text("of inertia")
    assert f"--cache {cache} holds a moments.npy" in refusal(stage_two.run(tmp_path / "run", "--cache", cache))
    assert contents(cache) == {"moments.npy": b"of inertia"}


def test_a_cache_was_written_among_the_images(stage_two: Stage, shapes_folder: Path, tmp_path: Path) -> None:
    """And its moments were an image of the next run."""
    outcome = stage_two.run(tmp_path / "run", "--cache", shapes_folder / "cache")
    assert outcome.code == 2 and "among the images: choose another --cache" in outcome.err, outcome
    assert not (shapes_folder / "cache").exists()


def test_a_cache_became_an_image_of_other_images(stage_two: Stage, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.JPG").write_text("an image")
    said = refusal(stage_two.run(tmp_path / "run", "--cache", tmp_path / "photos"))
    assert "photos holds a.JPG, and arrays beside images would be read as some" in said
    assert contents(tmp_path / "photos") == {"a.JPG": b"an image"}


def test_a_cache_in_the_runs_own_folder_waited_for_the_runs_own_lock(stage_two: Stage, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "the run's own folder" in refusal(stage_two.run(out, "--cache", out))


def test_a_run_that_lost_its_checkpoints_and_its_mark_started_anew_over_its_export(
    stage_one: Stage, finished_vae: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_vae, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    (run / "finished.json").unlink()
    before = (run / "vae" / "config.json").stat().st_mtime_ns
    outcome = stage_one.run(run)
    assert outcome.code == 4 and "holds the vae/ of a run whose checkpoints/ are gone" in outcome.err, outcome
    assert (run / "vae" / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("steps", [6, 8])
def test_a_finished_run_without_its_checkpoints_started_anew_over_itself(
    stage_one: Stage, finished_vae: Path, tmp_path: Path, steps: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    outcome = stage_one.run(run, "--run.steps", steps)
    assert outcome.code == (0 if steps == 6 else 4), outcome
    if steps > 6:
        assert "finished 6 steps" in outcome.err and "restore them, or choose another --out" in outcome.err
    assert contents(run) == before
    outcome = stage_one.run(run, "--run.steps", steps, "--run.seed", 1)
    assert outcome.code == 2 and "run.seed" in outcome.err, outcome
    assert json.loads((run / "finished.json").read_text()) == {"step": 6}
