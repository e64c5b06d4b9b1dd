"""Stages: what one trains moves, what it leaves alone keeps its bytes, and a run of stages is a run like any other."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm import checkpoint
from ldm.autoencoder.config import (
    AutoencoderConfig,
    GaussianConfig,
    IdentityConfig,
    KLNetworkConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    ReconstructionObjectiveConfig,
    SparseConfig,
    StageConfig,
    TinyNetworkConfig,
)
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.penalty import (
    AuxKLoss,
    ClassificationLoss,
    JacobianPenalty,
    KLSparsity,
    L1Penalty,
    L2Penalty,
    PenaltiesConfig,
)
from ldm.autoencoder.stages import StageSchedule
from ldm.batch import ImageBatch, Losses
from ldm.corruption import GaussianNoise, Mask
from ldm.errors import ConfigError
from ldm.randomness import seed_weights
from ldm.training.config import AdamWConfig
from ldm.training.optim import learning_rate
from tests.support.losses import checked_objective, losses_of
from tests.support.runs import lose_everything_after, train_alike
from tests.support.scripts import forked, metrics, ran, script, weights

MLP = MLPNetworkConfig(widths=(8, 6))
STEPS = 12


def built(network: Any = MLP, bottleneck: Any = None, classes: int = 0) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(network=network, bottleneck=bottleneck or IdentityConfig(channels=4))
    return create_trainable(config, image=(2, 4, 4), classes=classes).double()


def staged(
    *stages: StageConfig, network: Any = MLP, bottleneck: Any = None, classes: int = 0, **objective: Any
) -> ReconstructionObjective:
    config = ReconstructionObjectiveConfig(**{"distance": "mse", "stages": stages, **objective})
    return checked_objective(built(network, bottleneck, classes), config, steps=STEPS, classes=classes)


def batch() -> ImageBatch:
    images = torch.rand(6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return ImageBatch(images, torch.arange(6) % 2)


def losses(objective: ReconstructionObjective, step: int = 0) -> Losses:
    """A training step but for the update of the weights."""
    objective.schedule.begin_step(step)
    found = losses_of(objective, batch(), step)
    if "code" in found.outputs:
        objective.autoencoder.bottleneck.update_usage(found.outputs["code"], step)
    return found


def trained(objective: ReconstructionObjective, step: int) -> set[str]:
    """The parameters that a step has a gradient for, of any size."""
    objective.zero_grad(set_to_none=True)
    losses(objective, step).total.backward()
    return {name for name, each in objective.autoencoder.named_parameters() if each.grad is not None}


def layer(number: int, *sides: str) -> set[str]:
    """The parameters of one layer of a fully connected network."""
    names = sides or ("encoder", "decoder")
    return {f"network.{side}.{number - 1}.{kind}" for side in names for kind in ("weight", "bias")}


def layer_stage(number: int, **more: Any) -> StageConfig:
    return StageConfig(layer=number, **more)


# ---- when


def test_stages_divide_the_steps_of_the_run_and_follow_each_other():
    schedule = StageSchedule(built(), [StageConfig(fraction=1), StageConfig(fraction=2), StageConfig(fraction=1)], 12)
    assert [schedule.number(step) for step in range(12)] == [0] * 3 + [1] * 6 + [2] * 3
    assert [schedule.window(step) for step in (0, 2, 3, 8, 9, 11)] == [(0, 3), (0, 3), (3, 9), (3, 9), (9, 12), (9, 12)]


@pytest.mark.parametrize("fractions", [(1,), (1, 1), (3, 1, 2), (0.1, 0.2, 0.3), (1, 1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("steps", [7, 100, 1001])
def test_every_step_belongs_to_one_stage_whatever_the_fractions(fractions, steps):
    schedule = StageSchedule(built(), [StageConfig(fraction=fraction) for fraction in fractions], steps)
    windows = list(dict.fromkeys(schedule.window(step) for step in range(steps)))
    assert [first for first, _ in windows] == [0, *(end for _, end in windows[:-1])] and windows[-1][1] == steps
    assert len(windows) == len(fractions) and schedule.ends == [end for _, end in windows]
    for (first, end), fraction in zip(windows, fractions, strict=True):
        assert abs(end - first - steps * fraction / sum(fractions)) <= 1


def test_without_stages_everything_is_one_stage():
    objective = staged()
    assert objective.schedule.window(5) == (0, STEPS)
    assert trained(objective, 5) == layer(1) | layer(2) | layer(3)


# ---- what


def test_a_stage_about_a_layer_trains_that_layer_alone():
    objective = staged(*(layer_stage(number) for number in (1, 2, 3)), StageConfig())
    for number in (1, 2, 3):
        assert trained(objective, 3 * (number - 1)) == layer(number)
    assert trained(objective, 9) == layer(1) | layer(2) | layer(3)
    assert trained(objective, 0) == layer(1), "going back is possible too: nothing but the step decides"


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_stage_may_train_one_side(side: str):
    objective = staged(StageConfig(trains=side), layer_stage(2, trains=side), StageConfig())
    assert trained(objective, 0) == layer(1, side) | layer(2, side) | layer(3, side)
    assert trained(objective, 4) == layer(2, side)


def test_stages_of_decoders_alone_would_leave_the_encoder_random():
    with pytest.raises(ConfigError, match="as random as it begins"):
        staged(StageConfig(trains="decoder"), layer_stage(2, trains="decoder"))


def test_one_side_of_a_tied_network_cannot_be_trained_alone():
    with pytest.raises(ConfigError, match="tied makes one matrix of both sides"):
        staged(StageConfig(), StageConfig(trains="encoder"), network=MLPNetworkConfig(widths=(8, 6), tied=True))


def test_a_variance_per_channel_is_for_stages_that_give_images():
    with pytest.raises(ConfigError, match="distance gaussian is for images"):
        staged(layer_stage(2), StageConfig(), distance="gaussian")
    staged(layer_stage(1), layer_stage(2, target="images"), distance="gaussian")


@pytest.mark.parametrize(
    "network", [KLNetworkConfig(widths=(4, 4), norm_groups=2), TinyNetworkConfig(width=4, levels=1, blocks=1)]
)
def test_every_network_has_two_sides(network: Any):
    objective = staged(StageConfig(trains="encoder"), StageConfig(trains="decoder"), network=network)
    names = {name for name, each in objective.autoencoder.network.named_parameters()}
    sides = [{name.removeprefix("network.") for name in trained(objective, step)} for step in (0, 6)]
    assert sides[0] | sides[1] == names and not sides[0] & sides[1]
    assert all(name.startswith(("encoder", "quant_conv")) for name in sides[0])


def test_the_target_of_a_layer_is_its_input():
    objective = staged(*(layer_stage(number) for number in (1, 2, 3)))
    network = objective.autoencoder.network
    for number in (1, 2, 3):
        found, given = losses(objective, 4 * (number - 1)), network.layer_input(number, batch().images)
        again = network.decode_layer(number, network.encode_layer(number, given))
        assert found.outputs["images"].equal(given) and not found.outputs["images"].requires_grad
        torch.testing.assert_close(found.outputs["reconstruction"], again, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.terms["mse"], (given - again).square().mean(), rtol=1e-12, atol=0)


def test_the_target_of_a_layer_may_be_the_images_through_the_layers_below_it():
    objective = staged(*(layer_stage(number, target="images") for number in (1, 2, 3)))
    network = objective.autoencoder.network
    for number in (1, 2, 3):
        found, x = losses(objective, 4 * (number - 1)), network.layer_input(number + 1, batch().images)
        if number == 3:
            x = network.encode(batch().images)
        for below in range(number, 0, -1):
            x = network.decode_layer(below, x)
        assert found.outputs["images"].equal(batch().images)
        torch.testing.assert_close(found.terms["mse"], (batch().images - x).square().mean(), rtol=1e-12, atol=0)
        assert trained(objective, 4 * (number - 1)) == layer(number)


def test_the_last_layer_has_the_bottleneck_and_its_kl_and_the_others_have_none():
    objective = staged(layer_stage(1), layer_stage(3), bottleneck=GaussianConfig(channels=4), kl=0.1)
    assert "kl" not in losses(objective, 0).terms and "kl" in losses(objective, 6).terms


def test_a_tied_layer_is_one_matrix():
    objective = staged(layer_stage(1), layer_stage(2), network=MLPNetworkConfig(widths=(8,), tied=True))
    expected = {"network.encoder.1.weight", "network.encoder.1.bias", "network.decoder.1.bias"}
    assert trained(objective, 6) == expected


def test_a_corruption_of_a_stage_is_its_own_and_layers_do_not_inherit_that_of_the_objective():
    noisy = staged(
        layer_stage(1),
        layer_stage(2, corruption=Mask(unit="element", fraction=0.5)),
        StageConfig(),
        corruption=GaussianNoise(),
    )
    plain = staged(layer_stage(1), layer_stage(2), StageConfig())
    same = [losses(noisy, step).terms["mse"].equal(losses(plain, step).terms["mse"]) for step in (0, 4, 8)]
    assert same == [True, False, False]


def test_the_code_of_a_whole_stage_sees_the_corruption_of_that_stage_in_place_of_the_objectives():
    found = staged(StageConfig(), StageConfig(corruption=GaussianNoise(sigma=0.1)), corruption=GaussianNoise(sigma=1.0))
    alone = staged(corruption=GaussianNoise(sigma=0.1))
    assert losses(found, 6).terms["mse"].equal(losses(alone, 6).terms["mse"])
    assert not losses(found, 0).terms["mse"].equal(losses(alone, 0).terms["mse"])


def test_a_head_learns_where_a_stage_says_so():
    stages = (layer_stage(1), StageConfig(classification=False), StageConfig())
    objective = staged(*stages, classes=2, penalties=PenaltiesConfig(classification=ClassificationLoss()))
    head = {"head.weight", "head.bias"}
    for step, learns in ((0, False), (4, False), (8, True)):
        assert ("classification" in losses(objective, step).terms) == learns
        assert (head <= trained(objective, step)) == learns


def test_a_penalty_on_the_code_is_on_the_code_of_the_layer():
    objective = staged(layer_stage(1), layer_stage(3), penalties=PenaltiesConfig(l1=L1Penalty(weight=1.0)))
    network = objective.autoencoder.network
    code = network.encode_layer(1, batch().images)
    found = losses(objective, 0).terms["l1_sparsity"] * batch().images[0].numel()
    torch.testing.assert_close(found, code.abs().sum() / 6, rtol=1e-9, atol=0)


def test_l2_in_a_stage_about_a_layer_reaches_no_other():
    objective = staged(layer_stage(1), layer_stage(2), penalties=PenaltiesConfig(l2=L2Penalty(weight=1.0)))
    assert trained(objective, 6) == layer(2)


@pytest.mark.parametrize(
    ("name", "penalty", "activation"), [("kl_sparsity", KLSparsity(), "sigmoid"), ("aux_k", AuxKLoss(), "relu")]
)
def test_a_penalty_on_units_rests_in_a_stage_about_a_layer_that_has_none(name: str, penalty: Any, activation: Any):
    """Only the last layer has the sparse code; that of the others is neither a rate nor a unit that could be dead."""
    sparse, penalties = SparseConfig(channels=4, activation=activation), PenaltiesConfig(**{name: penalty})
    stages = (layer_stage(1), layer_stage(2), layer_stage(3))
    objective = staged(*stages, bottleneck=sparse, penalties=penalties)
    assert name not in losses(objective, 0).terms and name in losses(objective, 8).terms


@pytest.mark.parametrize("channels", [5, 7])
def test_a_layer_below_a_sparse_code_does_not_count_as_its_activity(channels: int):
    """Neither where it is as wide as the code, nor where it is not."""
    network, bottleneck = MLPNetworkConfig(widths=(5,)), SparseConfig(channels=channels)
    objective = staged(layer_stage(1), layer_stage(2), network=network, bottleneck=bottleneck)
    found = losses(objective, 3)
    assert "code" not in found.outputs and "l0" not in found.terms
    assert not objective.autoencoder.bottleneck.last_active.any()
    found = losses(objective, 7)
    assert "l0" in found.terms and objective.autoencoder.bottleneck.last_active.max() == 7
    assert "l0" not in losses(objective, 3).terms


def test_at_the_first_step_of_a_stage_that_trains_the_code_all_units_count_as_alive():
    sparse = SparseConfig(channels=4, dead_after=1)
    objective = staged(layer_stage(1), layer_stage(3), StageConfig(trains="decoder"), bottleneck=sparse)
    bottleneck = objective.autoencoder.bottleneck
    for step, expected in ((0, [0] * 4), (3, [0] * 4), (4, [4] * 4), (5, [4] * 4), (8, [8] * 4)):
        objective.schedule.begin_step(step)
        assert bottleneck.last_active.tolist() == expected


# ---- what is refused


@pytest.mark.parametrize(
    ("network", "stages", "says"),
    [
        (MLP, (layer_stage(4),), r"^objective\.stages\.0\.layer 4 is not there: the network has 3$"),
        (
            LinearNetworkConfig(),
            (StageConfig(), layer_stage(2)),
            r"^objective\.stages\.1\.layer 2 is not there: the network has 1$",
        ),
        (
            TinyNetworkConfig(width=4, levels=1),
            (layer_stage(1),),
            r"^objective\.stages\.0\.layer 1 needs .*kind linear or mlp$",
        ),
        (
            MLP,
            (StageConfig(), StageConfig(fraction=1e-6)),
            r"^objective\.stages\.1 has no step of the 12: give it a larger fraction$",
        ),
        (MLP, (StageConfig(fraction=1e-6), StageConfig()), r"^objective\.stages\.0 has no step of the 12"),
        (
            MLP,
            (StageConfig(), layer_stage(2, corruption=Mask())),
            r"^objective\.stages\.1\.corruption\.unit patch .*layer 2 has none: use element$",
        ),
    ],
)
def test_a_stage_that_cannot_be_is_refused_in_one_line(network: Any, stages: tuple[StageConfig, ...], says: str):
    with pytest.raises(ConfigError, match=says) as refused:
        staged(*stages, network=network)
    assert "\n" not in str(refused.value)


def test_a_stage_that_trains_nothing_is_refused():
    autoencoder = built()
    for name, each in autoencoder.named_parameters():
        each.requires_grad_("decoder" in name)
    with pytest.raises(ConfigError, match=r"^objective\.stages\.1 trains nothing: its encoder is frozen or empty$"):
        checked_objective(
            autoencoder, ReconstructionObjectiveConfig(stages=(StageConfig(), StageConfig(trains="encoder"))), steps=12
        )


@pytest.mark.parametrize("wrong", [{"fraction": 0.0}, {"fraction": -1.0}, {"fraction": float("nan")}, {"layer": -1}])
def test_a_stage_without_a_meaning_is_refused_by_name(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
        StageConfig(**wrong)


# ---- in a run


CONFIG = """
data: {{kind: folder, path: "{data}", size: 8}}
autoencoder: {{network: {{kind: mlp, widths: [12]}}, bottleneck: {{kind: {bottleneck}, channels: 4}}}}
objective:
  distance: mse
  stages: {stages}
optim: {{lr: 1e-2, warmup: 2, weight_decay: 0.1, clip: 1e6}}
run: {{steps: 12, batch_size: 8, log_every: 1, checkpoint_every: {every}, sample_every: 100, precision: fp32}}
"""
# The checkpoints that a run of 12 steps keeps are, of every third, 3, 9 and 12; of every second, 2, 10 and 12.
THIRDS = "[{fraction: 1, layer: 1}, {fraction: 2, layer: 2}, {fraction: 1, trains: decoder}]"
INSIDE = "[{fraction: 3, layer: 1}, {fraction: 8, layer: 2, target: images}, {fraction: 1}]"


def config(folder: Path, data: Path, stages: str, every: int, bottleneck: str = "identity") -> Path:
    file = folder / f"stages-{every}.yaml"
    file.write_text(CONFIG.format(data=data, stages=stages, every=every, bottleneck=bottleneck))
    return file


@pytest.fixture(scope="module")
def in_thirds(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    outcome = ran("train_vae", config(folder, shapes_folder, THIRDS, 3), "--out", folder / "run")
    assert outcome.code == 0, outcome.err
    return folder / "run"


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The parameters of which any bit differs."""
    return {name for name, value in before.items() if name.startswith("network.") and not value.equal(after[name])}


def test_what_another_stage_trains_keeps_its_bytes_in_a_real_run(in_thirds: Path):
    """Weight decay and momentum included, which reach whatever has a gradient or once had one."""
    seed_weights(0)
    config = AutoencoderConfig(network=MLPNetworkConfig(widths=(12,)), bottleneck=IdentityConfig(channels=4))
    untrained = create_trainable(config, image=(3, 8, 8)).state_dict()
    saved = {step: checkpoint.load(in_thirds / "checkpoints" / f"step-{step:08d}").tensors for step in (3, 9, 12)}
    assert changed(untrained, saved[3]["model"]) == layer(1)
    assert changed(saved[3]["model"], saved[9]["model"]) == layer(2)
    assert changed(saved[9]["model"], saved[12]["model"]) == layer(1, "decoder") | layer(2, "decoder")
    for name, value in saved[3]["optimizer"].items():
        if name.partition(".")[2] in layer(1):
            assert value.equal(saved[9]["optimizer"][name]), name


def test_the_learning_rate_goes_through_its_schedule_in_every_stage(in_thirds: Path):
    found = [line["lr"] for line in metrics(in_thirds) if "lr" in line]
    optim = AdamWConfig(lr=1e-2, warmup=2)
    expected = [learning_rate(optim, step, steps) for steps in (3, 6, 3) for step in range(steps)]
    assert found == pytest.approx(expected, rel=1e-12) and len(found) == 12


def test_a_run_of_stages_ends_like_any_other(in_thirds: Path):
    assert json.loads((in_thirds / "report.json").read_text())["held_out_psnr"] > 0
    found = Autoencoder.load(in_thirds)
    assert found.latent_channels == 4


@pytest.fixture(scope="module")
def whole(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config whose checkpoints lie inside stages, and its run without interruption."""
    folder = tmp_path_factory.mktemp("inside")
    file = config(folder, shapes_folder, INSIDE, 2, "sparse")
    outcome = ran("train_vae", file, "--out", folder / "run")
    assert outcome.code == 0, outcome.err
    return file, folder / "run"


@pytest.mark.parametrize("step", [2, 10])
def test_a_restart_inside_a_stage_is_bit_exact(whole: tuple[Path, Path], step: int, tmp_path: Path):
    file, run = whole
    shutil.copytree(run, tmp_path / "again")
    lose_everything_after(tmp_path / "again", step=step)
    outcome = ran("train_vae", file, "--out", tmp_path / "again")
    assert outcome.code == 0 and f"resuming from step {step}" in outcome.out + outcome.err, outcome.err
    assert weights(tmp_path / "again") == weights(run) and metrics(tmp_path / "again") == metrics(run)


def test_a_signal_in_a_run_of_stages_loses_nothing(shapes_folder: Path, tmp_path: Path):
    file = config(tmp_path, shapes_folder, INSIDE, 100)
    arguments = ("train_vae", file, "--run.steps", 120, "--out")
    assert ran(*arguments, tmp_path / "whole").code == 0
    child, wait = forked(script(*arguments, tmp_path / "stopped"))
    log = tmp_path / "stopped" / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < 32:
        time.sleep(0.002)
    os.kill(child, signal.SIGTERM)
    assert (outcome := wait()).code in (0, 75), outcome.err
    assert ran(*arguments, tmp_path / "stopped").code == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_two_processes_equal_one_with_stages(shapes_folder: Path, tmp_path: Path):
    file = config(tmp_path, shapes_folder, THIRDS, 100)
    train_alike(tmp_path, "train_vae", file)


def test_two_processes_of_two_micro_batches_equal_one_with_stages(shapes_folder: Path, tmp_path: Path):
    file = config(tmp_path, shapes_folder, THIRDS, 100)
    train_alike(tmp_path, "train_vae", file, cut=("--run.accumulation", 2))


def test_the_jacobian_penalty_of_a_layer_is_computed_in_full_precision():
    """A code far from 0 has a variance that bfloat16 cannot tell from rounding."""
    objective = staged(
        layer_stage(1), StageConfig(), penalties=PenaltiesConfig(jacobian=JacobianPenalty(probes=0))
    ).float()
    with torch.no_grad():
        objective.autoencoder.network.encoder[0].bias.add_(5.0)
    given = ImageBatch(batch().images.float(), batch().labels)
    exact = losses_of(objective, given).terms["jacobian"].item()
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_of(objective, given).terms["jacobian"].item()
    assert found == pytest.approx(exact, rel=0.3)
