"""Post-hoc EMA: averages of any length from snapshots equal those that were tracked."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm import checkpoint
from ldm.errors import CheckpointError, RequestError
from ldm.training.config import RunConfig
from ldm.training.ema import SIGMA_RELS, PowerEMA, ema_shares, gamma_from_sigma_rel
from ldm.training.run_folder import RunFolder
from ldm.training.snapshots import (
    Snapshots,
    bytes_of,
    coefficients,
    load_average,
    possible_lengths,
    profile_product,
    thinned,
)

STEPS = 400
EVEN = [STEPS * number // 16 for number in range(1, 17)]


def weights_at(step: int) -> Tensor:
    """A walk that settles, as weights do."""
    time = torch.tensor(step / STEPS, dtype=torch.float64)
    return torch.stack([torch.exp(-3 * time), (9 * time).sin() / (1 + 4 * time), 0.3 + 0 * time])


@cache
def tracked(length: float, end: int = STEPS) -> Tensor:
    """The average by its own recursion: EDM2, equation 1 with β = (1 − 1/t)^(γ + 1)."""
    exponent, average = gamma_from_sigma_rel(length) + 1, torch.zeros(3, dtype=torch.float64)
    for step in range(1, end + 1):
        beta = (1 - 1 / step) ** exponent
        average = beta * average + (1 - beta) * weights_at(step)
    return average


def run_with_snapshots(folder: Path, snapshots: int, steps: int = STEPS) -> Path:
    """What a run of such weights leaves."""
    parameter = torch.zeros(3)
    ema, config = PowerEMA([parameter]), RunConfig(steps=steps, snapshots=snapshots)
    writer = Snapshots(RunFolder(folder), config)
    for step in range(1, steps + 1):
        parameter.copy_(weights_at(step))
        ema.update(ema_shares(step), torch.ones(()))
        if writer.is_due(step):
            writer.write(step, {length: {"weight": ema.averages[length][0]} for length in SIGMA_RELS})
    return folder


@pytest.mark.parametrize("length", [0.03, 0.05, 0.07, 0.1, 0.13, 0.2, 0.25])
def test_an_average_from_snapshots_is_the_one_that_would_have_been_tracked(length: float) -> None:
    """The least squares alone, in float64; what the profiles cannot say is bounded by the inequality of Schwarz."""
    factors, distance = coefficients(EVEN, length)
    averages = torch.stack([torch.stack([tracked(float(each), step) for each in SIGMA_RELS]) for step in EVEN])
    found, wanted = (factors[:, :, None] * averages).sum((0, 1)), tracked(length)
    assert float(factors.sum()) == pytest.approx(1, abs=1e-12) and distance < 0.09
    gamma, end = torch.tensor(gamma_from_sigma_rel(length), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    path = torch.stack([weights_at(step) for step in range(1, STEPS + 1)])
    spread = (path - wanted).square().mean(0).sqrt()
    bound = distance * profile_product(end, gamma, end, gamma).sqrt() * spread
    assert bool(((found - wanted).abs() <= bound + 1e-4).all())
    if 0.05 <= length <= 0.13:
        assert (found - wanted).abs().max() < 1e-3


def test_the_product_of_two_profiles_is_their_integral() -> None:
    one, other = (0.6, gamma_from_sigma_rel(0.05)), (1.0, gamma_from_sigma_rel(0.2))
    tau = torch.linspace(0, 0.6, 200_001, dtype=torch.float64)
    integral = torch.trapezoid(
        (one[1] + 1) * tau ** one[1] / one[0] ** (one[1] + 1) * (other[1] + 1) * tau ** other[1], tau
    )
    given = [torch.tensor(value, dtype=torch.float64) for value in (*one, *other)]
    assert float(profile_product(*given)) == pytest.approx(float(integral), rel=1e-6)
    assert float(profile_product(*given[2:], *given[:2])) == pytest.approx(float(integral), rel=1e-6)


@pytest.mark.parametrize("snapshots", [8, 16])
def test_a_run_gives_its_averages_back_within_half_precision(snapshots: int, tmp_path: Path) -> None:
    run = run_with_snapshots(tmp_path, snapshots)
    assert checkpoint.steps(run / "snapshots") == [STEPS * each // snapshots for each in range(1, snapshots + 1)]
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(3))
    for length in (0.05, 0.08, 0.1, 0.15):
        load_average(module, run, length)
        assert (module.weight.double() - tracked(length)).abs().max() < 1e-3


def test_a_length_that_the_snapshots_do_not_give_is_refused_with_the_possible_range(tmp_path: Path) -> None:
    run, module = run_with_snapshots(tmp_path, 8), nn.Module()
    module.weight = nn.Parameter(torch.zeros(3))
    low, high = possible_lengths(checkpoint.steps(run / "snapshots"))
    assert 0.02 < low < 0.05 and 0.15 < high < 0.28
    for length in (0.005, 0.27, 0.4, -1.0, float("nan")):
        with pytest.raises(RequestError, match=f"from {low:g} to {high:g}"):
            load_average(module, run, length)
    assert not module.weight.any()
    with pytest.raises(CheckpointError, match=r"run\.snapshots"):
        load_average(module, tmp_path / "none", 0.1)


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    run, module = run_with_snapshots(tmp_path, 4), nn.Module()
    module.weight = nn.Parameter(torch.zeros(3))
    file = run / "snapshots" / "step-00000200" / "ema-0.05.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="step-00000200"):
        load_average(module, run, 0.1)


def test_snapshots_after_the_exported_step_are_not_used(tmp_path: Path) -> None:
    run, module = run_with_snapshots(tmp_path, 16), nn.Module()
    module.weight = nn.Parameter(torch.zeros(3))
    (run / "report.json").write_text(f'{{"exported_step": {STEPS // 2 + 3}}}')
    load_average(module, run, 0.1)
    assert (module.weight.double() - tracked(0.1, STEPS // 2)).abs().max() < 1e-3


def test_a_run_that_became_longer_keeps_no_more_snapshots_than_it_may(tmp_path: Path) -> None:
    run_with_snapshots(tmp_path, 8, steps=80)
    writer = Snapshots(RunFolder(tmp_path), RunConfig(steps=160, snapshots=8))
    for step in range(81, 161):
        if writer.is_due(step):
            writer.write(step, {length: {"weight": torch.ones(3)} for length in SIGMA_RELS})
    kept = checkpoint.steps(tmp_path / "snapshots")
    assert len(kept) == 8 and kept[-1] == 160 and kept == thinned(kept, 8)


def test_none_is_written_where_none_is_wanted_and_their_size_is_known() -> None:
    config = RunConfig(steps=100, snapshots=8)
    assert not any(Snapshots(RunFolder(Path("run")), RunConfig(steps=9)).is_due(step) for step in range(1, 10))
    assert bytes_of(config, nn.Linear(10, 10, bias=False)) == 8 * 2 * 2 * 100
    assert bytes_of(RunConfig(steps=3, snapshots=8), nn.Linear(10, 10, bias=False)) == 3 * 2 * 2 * 100


def test_resuming_forgets_snapshots_of_steps_that_are_made_again(tmp_path: Path) -> None:
    run = run_with_snapshots(tmp_path, 8)
    RunFolder(run).forget_after(120)
    assert checkpoint.steps(run / "snapshots") == [50, 100]


def test_a_number_that_half_precision_cannot_hold_is_kept(tmp_path: Path) -> None:
    writer, module = Snapshots(RunFolder(tmp_path), RunConfig(steps=1, snapshots=1)), nn.Module()
    module.weight = nn.Parameter(torch.zeros(1))
    writer.write(1, {length: {"weight": torch.tensor([1e6])} for length in SIGMA_RELS})
    load_average(module, tmp_path, 0.1)
    assert module.weight.item() == 1e6
