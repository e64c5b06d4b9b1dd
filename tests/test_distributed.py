"""Two processes train what one process trains; everything that several processes could get wrong."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from ldm import checkpoint
from tests.support.runs import newest_checkpoint, train_alike
from tests.support.scripts import ROOT, Stage, metrics, script, together

SETTINGS = ("--run.log-every", 1, "--run.checkpoint-every", 1000, "--run.sample-every", 1000)


def without_dropout(stage: Stage) -> tuple[object, ...]:
    """Network dropout is the one thing that may differ between processes."""
    return ("--denoiser.network.dropout", 0) if stage.name == "train_diffusion" else ()


def discriminator_from_the_start(stage: Stage) -> tuple[object, ...]:
    """When it starts follows from the number of steps, which these runs change."""
    whole = ("--objective.discriminator.start", 0, "--objective.discriminator.optim.schedule", "constant")
    return whole if stage.name == "train_vae" else ()


def test_two_processes_equal_one_to_1e_9_over_fifty_steps_in_float64(stage, tmp_path):
    config = (*SETTINGS, *without_dropout(stage), "--run.steps", 50, "--optim.clip", 1e6)
    train_alike(tmp_path, stage.name, *stage.arguments, *config)
    one = newest_checkpoint(tmp_path / "one").tensors
    for file in {"model", "discriminator-model"} & one.keys():
        for name, value in one[file].items():
            assert value.dtype == torch.float64 or name == "_extra_state"
    for mine, theirs in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert set(mine) == set(theirs)
        for key in set(mine) & {
            "l1",
            "kl",
            "denoising",
            "gradient_norm",
            "discriminator",
            "discriminator_weight",
            "discriminator_lecam",
        }:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-6)


DENSE = "network: {kind: mlp, widths: [16]}"
VIT = "network: {kind: vit, patch: 2, width: 8, depth: 1, heads: 2, decoder_width: 8, decoder_depth: 1}"
RESIDUAL = "network: {kind: residual, downsampling: 2, width: 32, blocks: 1}"
CODE = "bottleneck: {kind: identity, channels: 4}"
OBJECTIVES = {
    "emphasis on elements": (DENSE, CODE, "corruption: {kind: salt-and-pepper}, emphasis: 0.9"),
    "emphasis on some patches": (DENSE, CODE, "corruption: {kind: mask, patch: 2, fraction: [0, 0.6]}, emphasis: 0.9"),
    "a masked autoencoder": (VIT, CODE, "corruption: {kind: mask}, emphasis: 1, target: normalized-patches"),
    "a transformer with noise": (VIT, CODE, "corruption: {kind: gaussian, sigma: [0.1, 1]}"),
    "a corrupted code": (DENSE, CODE, "latent_corruption: {kind: interpolation}"),
    "a learned variance": (DENSE, "bottleneck: {channels: 4}", "distance: gaussian, kl: 1"),
    "classes": (DENSE, CODE, "penalties: {classification: {weight: 1}, l1: {weight: 1}, l2: {weight: 1e-3}}"),
    "a linear start, noise that is set": (RESIDUAL, "bottleneck: {channels: 2, noise: 0.1}", "distance: rmse"),
    "k of many": (DENSE, "bottleneck: {kind: sparse, channels: 24, k: 3}", "kl: 0"),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("what", OBJECTIVES)
def test_whatever_is_asked_of_an_autoencoder_the_cut_of_the_batch_does_not_matter(
    what, accumulation, shapes_folder, tmp_path
):
    network, bottleneck, objective = OBJECTIVES[what]
    distance = "" if "distance" in objective else "distance: mse, "
    file = tmp_path / "config.yaml"
    file.write_text(f"""
data: {{kind: folder, path: "{shapes_folder}", size: 8}}
autoencoder: {{{network}, {bottleneck}}}
objective: {{{distance}{objective}}}
optim: {{lr: 1e-2, warmup: 1, clip: 1e6}}
run: {{steps: 8, batch_size: 8, log_every: 1, checkpoint_every: 100, sample_every: 100, precision: fp32}}
""")
    count = 3 - accumulation  # two processes, or one of two micro-batches
    train_alike(tmp_path, "train_vae", file, cut=("--run.accumulation", accumulation), count=count)


@pytest.mark.parametrize("split", ["two processes", "two micro-batches", "two processes of two micro-batches"])
def test_the_gradient_of_a_step_does_not_depend_on_how_the_batch_is_cut(stage, tmp_path, split):
    """After one step AdamW's first moment is the gradient, times a constant."""
    config = (*SETTINGS, *without_dropout(stage), "--run.steps", 1)
    assert stage.run(tmp_path / "one", *config).code == 0
    if "micro-batches" in split:
        config = (*config, "--run.accumulation", 2)
    outcomes = stage.processes(2 if "processes" in split else 1, tmp_path / "cut", *config)
    assert all(outcome.code == 0 for outcome in outcomes), outcomes
    one, cut = (
        newest_checkpoint(tmp_path / "one").tensors["optimizer"],
        newest_checkpoint(tmp_path / "cut").tensors["optimizer"],
    )
    moments = [name for name in one if name.startswith("exp_avg.")]
    difference = torch.cat([(one[name] - cut[name]).flatten() for name in moments]).norm()
    assert difference < 1e-5 * torch.cat([one[name].flatten() for name in moments]).norm()


def test_two_processes_resume_bit_equal(stage, tmp_path):
    constant = (
        "--run.checkpoint-every",
        2,
        "--optim.schedule",
        "constant",
        *discriminator_from_the_start(stage),
        "--run.steps",
    )
    for name, steps in (("whole", 6), ("again", 4), ("again", 6)):
        outcomes = stage.processes(2, tmp_path / name, *constant, steps)
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    whole, again = newest_checkpoint(tmp_path / "whole"), newest_checkpoint(tmp_path / "again")
    for file, tensors in whole.tensors.items():
        for name, value in tensors.items():
            assert value.equal(again.tensors[file][name]), f"{file} {name}"


def test_two_processes_stop_at_the_same_step_when_one_gets_a_signal(stage_two, tmp_path):
    out = tmp_path / "run"

    def signalled() -> int:
        """The script, in a process that sends itself SIGTERM while training if it is rank 1."""
        import signal
        import threading

        def send() -> None:
            while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        if os.environ["RANK"] == "1":
            threading.Thread(target=send, daemon=True).start()
        return script(stage_two.name, *stage_two.arguments, "--out", out, "--run.steps", 5000)()

    outcomes = together([signalled] * 2)
    assert [outcome.code for outcome in outcomes] == [75, 75], outcomes
    assert len(checkpoint.steps(out / "checkpoints")) >= 1


def test_an_error_of_the_main_process_ends_every_process_and_is_said_once(stage, tmp_path):
    (tmp_path / "run").write_text("a file")
    outcomes = stage.processes(2, tmp_path / "run")
    assert [outcome.code for outcome in outcomes] == [2, 2], outcomes
    assert sum(outcome.err.count("error:") for outcome in outcomes) == 1


def test_an_unexpected_error_of_the_main_process_does_not_leave_the_others_waiting(stage_one, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("never heard of")

    monkeypatch.setattr("ldm.training.run_folder.RunFolder.claim", fails)
    main, other = sorted(stage_one.processes(2, tmp_path / "run"), key=lambda outcome: outcome.code, reverse=True)
    assert main.code == 70 and "never heard of" in main.err
    assert other.code == 1 and "error:" not in other.err


def test_a_batch_that_does_not_divide_by_the_processes_is_refused(stage, tmp_path):
    outcomes = stage.processes(2, tmp_path / "run", "--run.batch_size", 7)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert all("run.batch_size 7 is not divisible by 2" in outcome.err for outcome in outcomes if outcome.err)
    assert not (tmp_path / "run" / "config.yaml").exists()


def launched(*command: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = list(map(str, command))
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_torchrun_starts_two_processes(stage_one, tmp_path):
    out = tmp_path / "run"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", 29517)
    done = launched(*torchrun, "train_vae.py", *stage_one.arguments, "--out", out, "--run.steps", 2)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "environment.json").read_text())["processes"] == 2


def test_accelerate_launch_works_and_the_number_of_processes_is_printed(stage_one, tmp_path):
    """On CPUs `accelerate launch --num_processes 2` may run one process: the first line of a run says how many."""
    out = tmp_path / "run"
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2)
    done = launched(*launch, "train_vae.py", *stage_one.arguments, "--out", out, "--run.steps", 2)
    assert done.returncode == 0, done.stderr
    came_up = json.loads((out / "environment.json").read_text())["processes"]
    assert f"{came_up} process(es) on " in done.stdout + done.stderr
