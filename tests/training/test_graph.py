"""A step that is replayed, with numbers in memory of their own, equals the one that is computed anew, bit for bit."""

import shutil
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ldm import checkpoint
from ldm.config.yaml_file import read_yaml
from ldm.errors import ConfigError
from ldm.nn.repeatable_dropout import DropoutMasks
from ldm.script_configs import TrainDiffusionConfig
from ldm.training import recorder
from ldm.training.config import RunConfig
from ldm.training.graph import WARM_UP
from ldm.training.graph_setting import why_not
from ldm.training.recorder import RecordingError, recording_error
from ldm.training.run import Run
from ldm.training.step import TrainingStep
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
        "--run.gradient-checkpointing",
        "true",
    ),
}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def on_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps can be recorded on the CPU."""
    monkeypatch.setitem(recorder.RECORDERS, "cpu", TapeRecorder)


# Whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Stage], Path]:
    """A folder with a run of a stage without graphs and one that takes them by itself, by setting."""

    @cache
    def made(stage: Stage) -> Path:
        folder = tmp_path_factory.mktemp("runs")
        for setting in ("off", "auto"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(recorder.RECORDERS, "cpu", TapeRecorder)
                outcome = stage.run(folder / setting, *settings_of(stage), "--run.graph", setting)
            assert outcome.code == 0, outcome.err
            assert ("run.graph auto is on: a step is one CUDA graph" in outcome.out) == (setting == "auto")
        return folder

    return made


def settings_of(stage: Stage) -> tuple[object, ...]:
    """With dropout, corruptions, a posterior, a discriminator that begins in between, warm-up and both averages."""
    return (*STEPS, *CAN_BE_RECORDED[stage.name])


def numbers(run: Path) -> tuple[object, object]:
    return metrics(run), weights(run)


def graph_in(run: Path) -> str:
    """What config.yaml of a run says."""
    return str(read_yaml(run / "config.yaml")["run"]["graph"])


def test_a_run_whose_steps_are_replayed_equals_one_whose_steps_are_not(stage: Stage, runs):
    folder = runs(stage)
    assert numbers(folder / "auto") == numbers(folder / "off")
    assert graph_in(folder / "auto") == "on" and graph_in(folder / "off") == "off"


def test_a_resumed_run_goes_on_with_graphs(stage_two: Stage, runs, on_tape: None, tmp_path):
    shutil.copytree(runs(stage_two) / "auto", run := tmp_path / "run")
    lose_everything_after(run, step=6)
    assert (outcome := stage_two.run(run, *settings_of(stage_two), "--run.graph", "on")).code == 0, outcome.err
    assert numbers(run) == numbers(runs(stage_two) / "off")
    kept = checkpoint.load(run / "checkpoints/step-00000012").tensors["model"]
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("began", ["off", "auto"])
def test_what_auto_became_is_kept_when_a_run_is_resumed(began: str, stage_two: Stage, runs, tmp_path, monkeypatch):
    """One without graphs stays without; one with graphs goes on without them where there are none, and says so."""
    shutil.copytree(runs(stage_two) / began, run := tmp_path / "run")
    lose_everything_after(run, step=6)
    if began == "off":
        monkeypatch.setitem(recorder.RECORDERS, "cpu", TapeRecorder)
    outcome = stage_two.run(run, *settings_of(stage_two))
    assert outcome.code == 0, outcome.err
    assert f"run.graph auto is off: {'the run began without' if began == 'off' else 'training on cpu'}" in outcome.out
    assert numbers(run) == numbers(runs(stage_two) / "off") and graph_in(run) == "off"


def test_a_run_with_graphs_cannot_be_told_to_go_on_without(stage_two: Stage, runs):
    outcome = stage_two.run(runs(stage_two) / "auto", *settings_of(stage_two), "--run.graph", "off")
    assert outcome.code == 2 and "was started with another run.graph" in outcome.err


def test_a_recording_that_fails_when_a_discriminator_begins_costs_nothing(stage_one, runs, monkeypatch, tmp_path):
    """The first phase is replayed; of the second one the recording ends in the midst of a step."""

    class Fails(TapeRecorder):
        ends_at = None, 900

    monkeypatch.setitem(recorder.RECORDERS, "cpu", Fails)
    outcome = stage_one.run(run := tmp_path / "run", *settings_of(stage_one))
    assert outcome.code == 0, outcome.err
    assert "run.graph auto is on" in outcome.out
    assert "warning: run.graph auto is off from here on, with the same numbers: this step cannot be" in outcome.out
    assert numbers(run) == numbers(runs(stage_one) / "off") and graph_in(run) == "off"
    assert len((run / "command.txt").read_text().splitlines()) == 1


def test_a_step_that_cannot_be_a_graph_is_refused_in_one_line(stage_one: Stage, on_tape: None, tmp_path):
    outcome = stage_one.run(tmp_path / "run", *STEPS, "--run.graph", "on")
    assert outcome.code == 2 and "(objective.equivariance): set run.graph off" in outcome.err
    outcome = stage_one.run(tmp_path / "run", *STEPS, "--run.graph", "on", "--run.accumulation", 2)
    assert outcome.code == 2 and "not run.accumulation 2: set run.graph off" in outcome.err


def test_without_a_gpu_there_is_no_graph(stage_two: Stage, tmp_path):
    outcome = stage_two.run(tmp_path / "run", *STEPS, "--run.graph", "on")
    assert outcome.code == 2 and "run.graph on needs one GPU" in outcome.err, outcome.err


# Steps


@dataclass(frozen=True)
class TwoPhases:
    """A second phase begins with the eighth step."""

    def window(self, step: int) -> tuple[int, int]:
        return 0, 20

    def phase(self, step: int) -> Hashable:
        return step >= 7

    def begin_step(self, step: int) -> None:
        pass


class Inputs(NamedTuple):
    x: Tensor


class Training:
    """A few steps of a small network with dropout; `odd` may make a step of the loss something that no graph can do."""

    def __init__(self, out: Path, graph: str, odd: Callable[[TrainingStep], Tensor | float] = lambda step: 0.0):
        config = TrainDiffusionConfig(run=RunConfig(steps=20, batch_size=4, precision="fp32", graph=graph))
        self.run, self.odd = Run(config, out, dry=True), odd
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.objective = self.run.prepare(self.network, trains=self.network, schedule=TwoPhases())
        self.run.resume("")
        self.do = self.run.graphed(self.learn)

    def learn(self, step: TrainingStep) -> None:
        noise = step.rng.normal("noise", 6, device=step.batch.x.device)[: len(step.batch.x)]
        loss = (self.objective(step.batch.x + noise) * (1 + step.now) / 50).square().mean() + self.odd(step)
        step.update(loss)
        step.log({"loss": loss})

    def weights(self, sizes: dict[int, int] | None = None) -> list[Tensor]:
        """After fourteen steps; `sizes` are those of some batches, by step."""
        for number in range(14):
            self.run.begin_step(number)
            size = (sizes or {}).get(number, 4)
            x = torch.randn(size, 6, generator=torch.Generator().manual_seed(number))
            self.do(self.run.step(number, 0, Inputs(x)))
        assert len(self.run.metrics.rows) == 14
        state = self.run.trained.main
        return [*self.network.state_dict().values(), *state.ema.averages["0.05"], *state.optimizer.tensors().values()]


class DropsTwice(Training):
    """With the same masks, as consistency tuning does."""

    def learn(self, step: TrainingStep) -> None:
        masks, x = DropoutMasks(self.network), step.batch.x
        with masks.drawn():
            first = self.objective(x)
        with torch.no_grad(), masks.repeated():
            second = self.objective(x + 0.1)
        loss = (first - second - 0.1).square().mean()
        step.update(loss)
        step.log({"loss": loss})


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def drawn_on_host(step: TrainingStep) -> Tensor:
    return torch.rand((), generator=step.rng.generator("size"))


def drawn_late(step: TrainingStep) -> Tensor:
    return step.rng.uniform("late", device="cpu").mean() if step.number > WARM_UP - 1 else torch.zeros(())


def asked_for_late(step: TrainingStep) -> Any:
    return step.value("late", float) if step.number > WARM_UP - 1 else 0.0


ODD = {
    "the host decides by random numbers what a step does (size)": drawn_on_host,
    "not every step draws the same numbers (late)": drawn_late,
    "not every step needs the same numbers (late)": asked_for_late,
}


@pytest.mark.parametrize("reason", ODD)
def test_a_step_that_turns_out_to_be_no_graph_is_made_without_one(reason: str, on_tape: None, tmp_path, capfd):
    expected = Training(tmp_path, "off", ODD[reason]).weights()
    training = Training(tmp_path, "auto", ODD[reason])
    assert training.run.run_config.graph == "on" and equal(training.weights(), expected)
    assert training.run.run_config.graph == training.run.config.run.graph == "off"
    assert f"from here on, with the same numbers: {reason}" in capfd.readouterr().out
    with pytest.raises(ConfigError) as refused:
        Training(tmp_path, "on", ODD[reason]).weights()
    assert str(refused.value) == f"run.graph on: {reason}: set run.graph off"


@pytest.mark.parametrize("ends_at", [(5,), (21,), (45,), (75,), (None, 45)])
def test_a_recording_that_ends_anywhere_leaves_nothing_behind(ends_at, monkeypatch, tmp_path):
    """In the forward pass, among gradients, in the update, in the averages; and in the second phase."""
    expected = Training(tmp_path, "off").weights()
    monkeypatch.setattr(TapeRecorder, "ends_at", ends_at)
    monkeypatch.setitem(recorder.RECORDERS, "cpu", TapeRecorder)
    training = Training(tmp_path, "auto")
    assert equal(training.weights(), expected) and training.run.run_config.graph == "off"


def test_a_mask_of_dropout_that_is_used_twice_is_drawn_anew_in_every_replay(on_tape: None, tmp_path):
    replayed = DropsTwice(tmp_path, "on").weights()
    assert equal(replayed, DropsTwice(tmp_path, "off").weights())
    assert not equal(replayed, Training(tmp_path, "off").weights())


def test_a_batch_of_another_shape_is_made_by_itself(on_tape: None, tmp_path):
    sizes = {1: 3, 5: 2, 9: 3}
    expected = Training(tmp_path, "off").weights(sizes)
    training = Training(tmp_path, "auto")
    assert equal(training.weights(sizes), expected) and training.run.run_config.graph == "on"
    with pytest.raises(
        ConfigError, match=r"^run\.graph on: a batch of another shape, \[\(3, 6\)\]: set run\.graph off$"
    ):
        Training(tmp_path, "on").weights(sizes)


def test_a_gpu_out_of_memory_was_called_a_step_that_cannot_be_recorded():
    error = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    assert str(recording_error(error).refusal()).startswith(
        "run.graph on: this step cannot be recorded (CUDA error: op"
    )
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    refused = recording_error(error).refusal()
    assert refused.exit_code == 1 and "out of memory as a step is recorded: lower run.batch_size, or" in str(refused)
    error.__context__ = RecordingError("not every step draws the same numbers (late)")
    assert str(recording_error(error)) == "not every step draws the same numbers (late)"
    assert "RuntimeError" in str(recording_error(RuntimeError()))


def test_what_a_recording_that_failed_is_cleaned_up_by_is_in_this_torch():
    """Two of these names are private to PyTorch, and without a GPU nothing here calls them."""
    assert callable(torch.cuda.memory._cuda_endAllocateToPool) and callable(torch.cuda.memory._cuda_releasePool)
    assert callable(torch.cuda.graph_pool_handle) and callable(torch.Generator.graphsafe_set_state)
    assert isinstance(torch.cuda.default_generators, tuple)


# What a run may do


def test_auto_is_on_where_one_gpu_trains_and_nothing_is_in_the_way():
    plain, draws = nn.Linear(2, 2), nn.Linear(2, 2)
    draws.draws_on_host = "objective.corruption"  # type: ignore[assignment]
    assert why_not(RunConfig(precision="bf16"), GPU, 1, [plain], "") == ""
    assert why_not(RunConfig(precision="bf16"), GPU, 1, [plain], "on") == ""
    reasons = {
        "training on cpu": (RunConfig(), CPU, 1, [plain], ""),
        "2 processes": (RunConfig(), GPU, 2, [plain], ""),
        "run.accumulation 2": (RunConfig(accumulation=2), GPU, 1, [plain], ""),
        "run.precision fp16": (RunConfig(precision="fp16"), GPU, 1, [plain], ""),
        "run.compile on": (RunConfig(compile="on"), GPU, 1, [plain], ""),
        "decides by random numbers what a step does (objective.corruption)": (RunConfig(), GPU, 1, [draws], ""),
        "the run began without": (RunConfig(), GPU, 1, [plain], "off"),
    }
    for reason, given in reasons.items():
        assert reason in why_not(*given)
