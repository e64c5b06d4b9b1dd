"""A step that is replayed, with numbers in memory of their own, equals the one that is computed anew, bit for bit."""

import pytest
import torch
from torch import nn

from ldm import checkpoint
from ldm.errors import ConfigError
from ldm.training import graph
from ldm.training.config import RunConfig
from tests.support.graphs import TapeRecorder
from tests.support.runs import lose_everything_after
from tests.support.scripts import Stage, metrics, weights

STEPS = ("--run.steps", 12, "--run.checkpoint-every", 6, "--run.log-every", 3, "--run.sample-every", 12)
CAN_BE_RECORDED = {
    "train_vae": (
        "--objective.equivariance",
        "null",
        "--objective.discriminator.warmup",
        0.5,
        "--run.gradient-checkpointing",
        "true",
    ),
    "train_diffusion": (
        "--optim.kind",
        "muon",
        "--denoiser.network.widths",
        "[32, 32]",
        "--run.precision",
        "bf16-weights",
    ),
}


@pytest.fixture
def on_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps can be recorded on the CPU."""
    monkeypatch.setitem(graph.RECORDERS, "cpu", TapeRecorder)


def test_a_run_whose_steps_are_replayed_equals_one_whose_steps_are_not(stage: Stage, on_tape: None, tmp_path):
    """With dropout, corruptions, a posterior, a discriminator that begins in between, warm-up and both averages."""
    settings, runs = (*STEPS, *CAN_BE_RECORDED[stage.name]), {}
    for setting in ("off", "on"):
        outcome = stage.run(tmp_path / setting, *settings, "--run.graph", setting)
        assert outcome.code == 0, outcome.err
        runs[setting] = metrics(tmp_path / setting), weights(tmp_path / setting)
    assert runs["on"] == runs["off"]
    if stage.name == "train_vae":
        return
    lose_everything_after(tmp_path / "on", step=6)
    assert (outcome := stage.run(tmp_path / "on", *settings, "--run.graph", "on")).code == 0, outcome.err
    assert (metrics(tmp_path / "on"), weights(tmp_path / "on")) == runs["off"]
    kept = checkpoint.load(tmp_path / "on/checkpoints/step-00000012").tensors["model"]
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float32}


def test_a_step_that_cannot_be_a_graph_is_refused_in_one_line(stage_one: Stage, on_tape: None, tmp_path):
    outcome = stage_one.run(tmp_path / "run", *STEPS, "--run.graph", "on")
    assert outcome.code == 2 and "(equivariance): set run.graph off" in outcome.err
    outcome = stage_one.run(tmp_path / "run", *STEPS, "--run.graph", "on", "--run.accumulation", 2)
    assert outcome.code == 2 and "not run.accumulation 2: set run.graph off" in outcome.err


def test_a_number_that_a_step_asks_for_only_once_it_is_recorded_is_refused():
    scalars = graph.StepScalars(torch.device("cpu"))
    scalars.fill(3)
    assert scalars.value("twice", lambda step: 2 * step) == 6
    scalars.is_complete = True
    scalars.fill(4)
    assert scalars.value("twice", lambda step: 2 * step) == 8
    with pytest.raises(ConfigError, match=r"not every step needs the same numbers \(late\): set run\.graph off"):
        scalars.value("late", float)


def test_a_dropout_mask_that_would_be_drawn_twice_is_refused_before_a_step_is_made():
    objective = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    graph.check_dropout(objective, RunConfig(graph="on"))
    graph.check_dropout(objective, RunConfig(gradient_checkpointing=True))
    with pytest.raises(ConfigError, match=r"gradient_checkpointing true a mask of dropout is drawn twice"):
        graph.check_dropout(objective, RunConfig(graph="on", gradient_checkpointing=True))
    objective.repeats_dropout = True
    with pytest.raises(ConfigError, match=r"objective\.kind consistency a mask .* set denoiser\.network\.dropout 0"):
        graph.check_dropout(objective, RunConfig(graph="on"))


def test_a_gpu_out_of_memory_was_called_a_step_that_cannot_be_recorded():
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    assert str(graph.recording_failure(error)).startswith("run.graph on: this step cannot be recorded (CUDA error: op")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    assert "out of memory as a step is recorded: lower run.batch_size, or" in str(graph.recording_failure(error))


def test_without_a_gpu_there_is_no_graph(stage_two: Stage, tmp_path):
    outcome = stage_two.run(tmp_path / "run", *STEPS, "--run.graph", "on")
    assert outcome.code == 2 and "run.graph on needs one GPU" in outcome.err, outcome.err


def test_a_run_whose_steps_could_be_graphs_says_so():
    gpu = torch.device("cuda")
    assert "--run.graph on" in graph.graph_hint(RunConfig(precision="bf16"), gpu, 1)
    there_is_none = [(RunConfig(), torch.device("cpu"), 1), (RunConfig(), gpu, 2), (RunConfig(graph="on"), gpu, 1)]
    assert not any(graph.graph_hint(*each) for each in there_is_none)
