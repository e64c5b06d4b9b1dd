"""Runs that cannot be lost: interrupted anywhere and started again, they end as if nothing had happened."""

import json
import os
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from ldm import checkpoint
from tests.support.runs import lose_everything_after
from tests.support.scripts import Stage, metrics, weights

SETTINGS = ("--run.steps", 12, "--run.checkpoint-every", 3, "--run.log-every", 1)

BY_TIME = ("--run.steps", 12, "--run.checkpoint-seconds", 0, "--run.log-every", 1)  # whenever the last one is written


def uninterrupted(stage: Stage, out: Path, *more: object) -> Path:
    outcome = stage.run(out, *SETTINGS, *more)
    assert outcome.code == 0, outcome.err
    return out


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wholes")


@pytest.fixture
def whole(stage: Stage, wholes: Path) -> Path:
    """The uninterrupted run of a stage, made once and only looked at."""
    out = wholes / stage.name
    return out if out.exists() else uninterrupted(stage, out)


@pytest.mark.parametrize("variant", [(), ("--run.workers", 2), ("--run.accumulation", 2)])
def test_a_run_that_restarts_in_the_middle_equals_one_that_does_not(stage, whole, tmp_path, variant):
    if variant:
        whole = uninterrupted(stage, tmp_path / "whole", *variant)
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    lose_everything_after(again, step=9)
    outcome = stage.run(again, *SETTINGS, *variant)
    assert outcome.code == 0, outcome.err
    assert "resuming from step 9" in outcome.out + outcome.err
    assert metrics(again) == metrics(whole)
    assert weights(again) == weights(whole)


def test_six_steps_equal_three_and_a_restart_and_three(stage, tmp_path):
    """Steps may change on resume; a constant learning rate and a discriminator from the start do not depend on them.

    The last step of a run has a panel, and with it a validation: here there is one after three steps in either case.
    """
    constant: tuple[object, ...] = ("--optim.schedule", "constant", "--run.sample-every", 3)
    if stage.name == "train_vae":
        constant += ("--objective.discriminator.start", 0, "--objective.discriminator.optim.schedule", "constant")
    assert stage.run(tmp_path / "six", "--run.steps", 6, *constant).code == 0
    assert stage.run(tmp_path / "three", "--run.steps", 3, *constant).code == 0
    assert stage.run(tmp_path / "three", "--run.steps", 6, *constant).code == 0
    newest = "checkpoints/step-00000006"
    six, three = (checkpoint.load(tmp_path / name / newest) for name in ("six", "three"))
    for file, tensors in six.tensors.items():
        for name, value in tensors.items():
            assert value.equal(three.tensors[file][name]), f"{file} {name}"


def kill_at_random(
    stage: Stage, whole: Path, tmp_path: Path, points: int, seed: int, settings: tuple[object, ...] = SETTINGS
) -> None:
    """Kill -9 at `points` random moments of one run, resuming after each; the end equals the uninterrupted run's."""
    rng, out, killed = random.Random(seed), tmp_path / "killed", 0
    began = time.monotonic()
    assert stage.run(tmp_path / "timed", *settings).code == 0
    length = time.monotonic() - began
    while killed < points:
        if (out / "finished.json").exists():
            assert weights(out) == weights(whole)
            assert metrics(out) == metrics(whole)
            shutil.rmtree(out)
        child, wait = stage.start(out, *settings)
        time.sleep(rng.uniform(0.0, length))
        os.kill(child, signal.SIGKILL)
        outcome = wait()
        killed += outcome.code == -signal.SIGKILL
        assert outcome.code in (0, -signal.SIGKILL), outcome.err
        if outcome.code == 0:  # done before: the machine has less to do than when the length was timed
            length *= 0.7
    outcome = stage.run(out, *settings)
    assert outcome.code == 0, outcome.err
    assert weights(out) == weights(whole)
    assert metrics(out) == metrics(whole)


def test_twenty_random_kills_lose_nothing_where_the_clock_says_when_to_save(stage, whole, tmp_path):
    kill_at_random(stage, whole, tmp_path, points=20, seed=0, settings=BY_TIME)


@pytest.mark.slow
def test_a_hundred_random_kills_lose_nothing(stage, whole, tmp_path):
    kill_at_random(stage, whole, tmp_path, points=100, seed=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_exits_75(stage, whole, tmp_path, number):
    out = tmp_path / "stopped"
    child, wait = stage.start(out, *SETTINGS)
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        time.sleep(0.01)
    os.kill(child, number)
    began = time.monotonic()
    outcome = wait()
    assert outcome.code == 75, outcome.err
    assert time.monotonic() - began < 10
    assert len([line for line in outcome.err.splitlines() if line.startswith("error:")]) == 1
    stopped_at = checkpoint.steps(out / "checkpoints")[-1]
    assert f"step {stopped_at} of 12" in outcome.err
    assert stage.run(out, *SETTINGS).code == 0
    for lines in (metrics(out), metrics(whole)):
        assert [line["step"] for line in lines if "lr" in line] == list(range(1, 13))
    assert weights(out) == weights(whole)


def wait_until_caught(child: int, number: int) -> None:
    """Return once a process has a handler for a signal: on a busy machine it may begin late."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{child}/status").read_text())
        if caught and int(caught[1], 16) >> (number - 1) & 1:
            return
        time.sleep(0.01)


def stop_at_random(stage: Stage, whole: Path, tmp_path: Path, points: int, seed: int) -> None:
    """SIGTERM at `points` random moments, also outside the loop: 75 within 10 s, unless it has just finished."""
    rng, out = random.Random(seed), tmp_path / "stopped"
    for _ in range(points):
        if (out / "finished.json").exists():
            assert weights(out) == weights(whole)
            shutil.rmtree(out)
        child, wait = stage.start(out, *SETTINGS)
        wait_until_caught(child, signal.SIGTERM)
        time.sleep(rng.uniform(0.1, 2.0))
        began = time.monotonic()
        os.kill(child, signal.SIGTERM)
        outcome = wait()
        assert outcome.code in (0, 75), outcome.err
        assert outcome.err.count("error:") == (outcome.code == 75) and "Traceback" not in outcome.err, outcome.err
        assert time.monotonic() - began < 10
    assert stage.run(out, *SETTINGS).code == 0
    assert weights(out) == weights(whole)


def test_sigterm_at_any_moment_loses_nothing(stage, whole, tmp_path):
    stop_at_random(stage, whole, tmp_path, points=6, seed=2)


@pytest.mark.slow
def test_sigterm_at_fifty_moments_loses_nothing(stage, whole, tmp_path):
    stop_at_random(stage, whole, tmp_path, points=50, seed=3)


def test_a_finished_run_says_so_and_changes_nothing(stage, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.suffix in (".safetensors", ".jsonl")}
    outcome = stage.run(run, *SETTINGS)
    assert outcome.code == 0 and "is finished" in outcome.out + outcome.err
    assert before == {file: file.read_bytes() for file in before}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(stage, whole, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    lose_everything_after(damaged, step=12)
    file = damaged / "checkpoints" / "step-00000012" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    outcome = stage.run(damaged, *SETTINGS)
    assert outcome.code == 0, outcome.err
    assert "step-00000012/model.safetensors" in outcome.out + outcome.err
    assert weights(damaged) == weights(whole)


def test_another_setting_is_refused_with_its_key(stage, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    for key, value in (("run.seed", 1), ("optim.lr", 0.5), ("run.batch_size", 4), ("data.held_out", 0.3)):
        if stage.name == "train_diffusion" and key.startswith("data"):
            continue
        outcome = stage.run(run, *SETTINGS, f"--{key}", value)
        assert outcome.code == 2 and key in outcome.err and outcome.err.count("error:") == 1


def test_a_wrong_first_try_does_not_lock_the_folder_to_its_settings(stage, tmp_path):
    """Nothing is lost before the first checkpoint, so what was wrong may be put right under the same --out."""
    out = tmp_path / "run"
    assert stage.run(out, *SETTINGS, "--run.batch-size", 1000).code == 2
    if stage.name == "train_vae":
        assert stage.run(out, *SETTINGS, "--data.path", "/nowhere").code == 3
    outcome = stage.run(out, "--run.steps", 1)
    assert outcome.code == 0, outcome.err


def test_a_second_run_in_a_live_folder_is_refused(stage, tmp_path):
    out = tmp_path / "run"
    child, wait = stage.start(out, "--run.steps", 100000)
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        time.sleep(0.01)
    second = stage.run(out, "--run.steps", 100000)
    os.kill(child, signal.SIGKILL)
    wait()
    assert second.code == 2 and "in use" in second.err and second.err.count("error:") == 1


def test_a_full_disk_exits_4_naming_the_path_and_keeps_the_previous_checkpoint(stage, tmp_path):
    """The file size limit stands in for the disk: a checkpoint file that may not grow fails as on a full one."""
    out = tmp_path / "run"
    assert stage.run(out, "--run.steps", 3, "--run.checkpoint-every", 3).code == 0
    largest = max(file.stat().st_size for file in (out / "checkpoints").rglob("*.safetensors"))
    before = weights(out)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, hard))
    try:
        outcome = stage.run(out, "--run.steps", 6, "--run.checkpoint-every", 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 4, outcome.err
    assert "checkpoints/step-00000006" in outcome.err and outcome.err.count("error:") == 1
    assert checkpoint.steps(out / "checkpoints") == [3]
    assert weights(out) == before
    assert stage.run(out, "--run.steps", 6, "--run.checkpoint-every", 3).code == 0


def test_a_disk_that_is_full_at_the_export_exits_4_and_the_same_command_tries_again(stage, tmp_path):
    out, folder = tmp_path / "run", "vae" if stage.name == "train_vae" else "unet"
    assert stage.run(out).code == 0
    before = weights(out)
    size = next((out / folder).glob("*.safetensors")).stat().st_size
    shutil.rmtree(out / folder)
    (out / "finished.json").unlink()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))
    try:
        outcome = stage.run(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 4 and "Traceback" not in outcome.err, outcome.err
    assert f"error: could not write {out / folder}" in outcome.err and not (out / f"{folder}.partial").exists()
    assert stage.run(out).code == 0 and weights(out) == before


def test_the_log_has_one_object_per_log_step_with_every_term(finished_vae, finished_diffusion):
    for run, terms in ((finished_vae, {"l1", "kl", "kl_per_latent_element"}), (finished_diffusion, {"denoising"})):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        training = [line for line in lines if "lr" in line]
        assert [line["step"] for line in training] == [2, 4, 6] or [line["step"] for line in training] == [2, 3, 4, 6]
        for line in training:
            assert terms | {"step", "images", "lr", "gradient_norm", "images_per_second", "memory_gb"} <= set(line)
        assert (run / "curves.png").stat().st_size > 1000
        assert (run / "samples" / "step-00000006.png").exists()
    assert any("held_out_sigma_1" in line for line in lines)
