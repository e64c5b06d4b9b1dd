"""The held-out loss over a run: since when a model overfits is said once, and the best model can be kept."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm import checkpoint
from ldm.pipeline import LatentDiffusion
from ldm.training.validation import Validation, mean_and_standard_error
from tests.support.runs import lose_everything_after
from tests.support.scripts import Stage, metrics, weights

ALONE = [str(number) for number in range(64)]  # every image a group of its own


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images_alike(mean: float, seed: int, spread: float = 0.002) -> dict[str, Tensor]:
    """Losses at two noise levels of images that are hard or easy for every model; the mean is that of this one."""
    hard = drawn(2, 64)
    losses = mean + 0.1 * (hard - hard.mean(1, keepdim=True)) + spread * drawn(2, 64, seed=seed + 1)
    return {"held_out_sigma_0.3": losses[0], "held_out_sigma_1": losses[1]}


def followed(means: Iterable[float], validation: Validation, first: int = 1) -> list[dict[str, float]]:
    """What is logged for a run with these means, one validation every 100 steps."""
    return [
        validation.update(100 * step, images_alike(mean, step), ALONE, {"weight": torch.full((2,), float(step))})
        for step, mean in enumerate(means, first)
    ]


def test_the_standard_error_of_a_mean_is_that_of_its_groups() -> None:
    values = drawn(64)
    mean, error = mean_and_standard_error(values, ALONE)
    assert mean == pytest.approx(values.mean().item()) and error == pytest.approx(values.std().item() / 8)
    again = mean_and_standard_error(values.repeat(5), ALONE * 5)
    assert again == pytest.approx((mean, error))  # five variants of each image say no more than one
    assert mean_and_standard_error(values, ["one"] * 64)[1] == float("inf")


def test_the_standard_error_covers_the_mean_as_often_as_it_should() -> None:
    """Groups of one to three images that share most of their difference: .3 % of trials exceed 3 errors."""
    groups = [str(number) for number in range(100) for _ in range(1 + number % 3)]
    place, shared = torch.tensor([int(group) for group in groups]), drawn(2000, 100)
    trials = shared[:, place] + 0.3 * drawn(2000, len(groups), seed=1)
    exceeded = sum(abs(mean) > 3 * error for mean, error in (mean_and_standard_error(each, groups) for each in trials))
    assert exceeded <= 2000 * 0.01
    naive = (trials.mean(1).abs() > 3 * trials.std(1) / len(groups) ** 0.5).sum()
    assert naive > 2000 * 0.02  # what images that are taken for independent would give


def test_overfitting_is_said_once_and_since_the_step_of_the_lowest_loss() -> None:
    validation, said, lines = Validation(keeps_best=False), [], []
    for step, mean in enumerate((0.8, 0.6, 0.5, 0.53, 0.56, 0.7, 0.9), 1):
        lines += followed([mean], validation, first=step)
        if warning := validation.warning():
            said.append((step, warning))
    ((step, warning),) = said
    assert step == 5 and "overfitting since step 300: the held-out loss was 0.5" in warning
    assert len(warning.splitlines()) == 1 and "run.keep best" in warning
    assert [line.get("overfitting_since") for line in lines] == [None] * 4 + [300, None, None]
    assert lines[0]["held_out_loss"] == pytest.approx(0.8, abs=1e-3)
    report = validation.report()
    assert report["lowest_held_out_step"] == 300 and report["overfitting_since"] == 300
    assert report["held_out_loss"] == pytest.approx(0.9, abs=1e-3) and report["held_out_sigma_1"] > 0.8


@pytest.mark.parametrize(
    "means",
    [
        (0.8, 0.6, 0.5, 0.45, 0.42, 0.41),  # it learns
        (0.8, 0.5, 0.53, 0.49, 0.52, 0.48),  # it goes up once, and on
        (0.8, 0.5, 0.503, 0.504, 0.502),  # beyond chance, and of no consequence
    ],
)
def test_a_model_that_still_learns_was_called_overfitted(means: tuple[float, ...]) -> None:
    validation = Validation(keeps_best=False)
    assert not any("overfitting_since" in line for line in followed(means, validation))
    assert validation.warning() is None and validation.report()["overfitting_since"] is None


def test_noise_of_few_images_was_called_overfitting() -> None:
    """Losses whose mean stays the same, and whose differences are as noisy as the losses: no rise is beyond chance."""
    flagged = 0
    for trial in range(100):
        validation = Validation(keeps_best=False)
        for step in range(10):
            validation.update(step + 1, images_alike(0.5, 10 * trial + step, spread=0.2), ALONE, {})
        flagged += bool(validation.overfitting_since)
    assert flagged <= 3


def test_a_loss_that_falls_again_ends_the_overfitting() -> None:
    validation = Validation(keeps_best=False)
    followed((0.8, 0.5, 0.55, 0.56, 0.4), validation)
    assert validation.report()["overfitting_since"] is None and validation.report()["lowest_held_out_step"] == 500


def test_a_loss_that_is_not_a_number_was_the_lowest() -> None:
    validation = Validation(keeps_best=True)
    followed((0.8, 0.5), validation)
    (line,) = followed([float("nan")], validation, first=3)
    assert line == {} and validation.lowest_step == 200 and validation.best["weight"].tolist() == [2, 2]


def test_a_validation_that_is_saved_and_read_again_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    means = (0.8, 0.5, 0.55, 0.56, 0.57, 0.3, 0.4)
    whole = Validation(keeps_best=True)
    expected = followed(means, whole)
    for cut in range(len(means) + 1):
        before, after = Validation(keeps_best=True), Validation(keeps_best=True)
        followed(means[:cut], before)
        said = before.warning() is not None
        after.load(checkpoint.load(checkpoint.save(tmp_path, cut, before.tensors(), before.host_state())))
        assert followed(means[cut:], after, first=cut + 1) == expected[cut:]
        assert after.best["weight"].equal(whole.best["weight"]) and after.report() == whole.report()
        assert not (said and after.warning())


# Whole runs. At this learning rate the held-out loss rises after a few steps.

RISING = ("--run.keep", "best", "--run.steps", 12, "--run.sample-every", 2, "--run.checkpoint-every", 3)
RISING += ("--optim.lr", 2.0, "--optim.warmup", 30, "--optim.schedule", "constant", "--run.log-every", 1)


@pytest.fixture(scope="module")
def best(stage_two: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its best model, which is not its last."""
    out = tmp_path_factory.mktemp("best") / "run"
    outcome = stage_two.run(out, *RISING)
    assert outcome.code == 0, outcome.err
    (kept,) = [line for line in outcome.out.splitlines() if line.startswith("kept step ")]
    report = json.loads((out / "report.json").read_text())
    assert kept.startswith(f"kept step {report['exported_step']} of 12: held-out loss "), kept
    return out


def test_the_best_model_is_exported_and_is_that_of_the_lowest_held_out_loss(best: Path) -> None:
    losses = {line["step"]: line["held_out_loss"] for line in metrics(best) if "held_out_loss" in line}
    report, lowest = json.loads((best / "report.json").read_text()), min(losses, key=losses.__getitem__)
    assert list(losses) == [2, 4, 6, 8, 10, 12] and lowest < 12
    assert report["exported_step"] == report["lowest_held_out_step"] == lowest
    assert report["lowest_held_out_loss"] == pytest.approx(losses[lowest])
    newest = checkpoint.load(best / "checkpoints" / "step-00000012").tensors
    exported = dict(LatentDiffusion.load(best).denoiser.named_parameters())
    assert exported.keys() == newest["best"].keys()
    assert all(value.equal(newest["best"][name]) for name, value in exported.items())
    assert not all(value.equal(newest["ema-0.05"][name]) for name, value in exported.items())


@pytest.mark.parametrize("step", [3, 9])
def test_a_resumed_run_lost_its_best_model(best: Path, stage_two: Stage, tmp_path: Path, step: int) -> None:
    """Its log reaches further than its checkpoint, as after kill -9; the best model may lie on either side."""
    again = shutil.copytree(best, tmp_path / "again")
    newest = checkpoint.load(again / "checkpoints" / "step-00000012")
    lose_everything_after(again, step=step)
    if step not in checkpoint.steps(again / "checkpoints"):  # pruned: the run begins anew
        shutil.rmtree(again / "checkpoints")
    outcome = stage_two.run(again, *RISING)
    assert outcome.code == 0, outcome.err
    assert metrics(again) == metrics(best) and weights(again) == weights(best)
    assert (again / "report.json").read_bytes() == (best / "report.json").read_bytes()
    assert checkpoint.load(again / "checkpoints" / "step-00000012").state == newest.state


def test_two_processes_keep_the_best_model_too(stage_two: Stage, tmp_path: Path) -> None:
    outcomes = stage_two.processes(2, tmp_path / "run", *RISING)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["exported_step"] == report["lowest_held_out_step"] < 12
    assert sum(outcome.out.count("kept step") for outcome in outcomes) == 1


def test_the_best_of_no_held_out_images_was_kept(stage_one: Stage, stage_two: Stage, shapes_folder, tmp_path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{kind: folder, path: '{shapes_folder}', size: 16, held_out: 0}}\nrun: {{keep: best}}")
    outcome = Stage("train_diffusion", (file,)).run(tmp_path / "run")
    assert outcome.code == 2 and "run.keep best needs held-out images" in outcome.err, outcome
    assert outcome.err.count("error:") == 1 and not (tmp_path / "run" / "checkpoints").exists()
    outcome = stage_one.run(tmp_path / "vae", "--run.keep", "best")
    assert outcome.code == 2 and "run.keep best is for train_diffusion.py" in outcome.err, outcome
    assert len(outcome.err.splitlines()) == 1
    outcome = stage_two.run(tmp_path / "two", "--run.keep", "first")
    assert outcome.code == 2 and "--run.keep is first; expected last|best" in outcome.err, outcome
