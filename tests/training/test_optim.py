"""The optimizer step: AdamW as everybody knows it, and nothing at all from the first number that is not finite."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from ldm.training.config import AdamWConfig
from ldm.training.ema import SIGMA_RELS, PowerEMA, ema_shares, gamma_from_sigma_rel
from ldm.training.optim import GuardedOptimizer, learning_rate
from ldm.training.train_state import TrainState


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def whole(step: int) -> tuple[int, int]:
    """One schedule for a run of a hundred steps."""
    return 0, 100


def loss_of(module: nn.Module, seed: int) -> torch.Tensor:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed))
    return (module(x) - x[:, :2]).square().mean()


@pytest.mark.parametrize("clip", [1e-2, 1e3])
def test_a_step_is_clip_grad_norm_and_adamw(clip):
    ours, theirs = network(), network()
    optimizer = GuardedOptimizer(ours, AdamWConfig(clip=clip, weight_decay=0.1), None)
    reference = torch.optim.AdamW(theirs.parameters(), betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(20):
        loss = loss_of(ours, step)
        loss.backward()
        norm = optimizer.step(1e-2, loss.detach())
        loss_of(theirs, step).backward()
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs.parameters(), clip))
        reference.param_groups[0]["lr"] = 1e-2
        reference.step()
        reference.zero_grad()
        for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, their)
            assert mine.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_from_the_first_bad_number_on_no_bit_changes(bad, place):
    module = network()
    state = TrainState(module, AdamWConfig(), None, window=whole)

    def advance(number: int, *, broken: bool) -> None:
        loss = loss_of(module, number)
        loss.backward()
        if broken and place == "gradient":
            module[0].weight.grad[0, 0] = bad
        seen = torch.tensor(bad) if broken and place == "loss" else loss.detach()
        state.advance(1e-2, ema_shares(number), seen)

    for number in range(1, 4):
        advance(number, broken=False)
    before = {f"{file} {name}": t.clone() for file, tensors in state.tensors().items() for name, t in tensors.items()}
    advance(4, broken=True)
    advance(5, broken=False)
    after = {f"{file} {name}": t for file, tensors in state.tensors().items() for name, t in tensors.items()}
    assert state.optimizer.all_finite == 0
    for name, value in before.items():
        assert value.equal(after[name]), name


def test_the_learning_rate_warms_up_and_ends_at_a_hundredth():
    config = AdamWConfig(lr=2.0, warmup=10)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[10] == 2.0 and learning_rate(config, 100, 100) == pytest.approx(0.02)
    assert learning_rate(AdamWConfig(lr=2.0, warmup=10, schedule="constant"), 99, 100) == 2.0
    assert learning_rate(AdamWConfig(lr=2.0, warmup=10), 0, 3) > 0


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_exponents_are_those_of_the_paper(length, gamma):
    """Karras et al. 2024, section 3.1."""
    assert gamma_from_sigma_rel(length) == pytest.approx(gamma, abs=0.01)


def test_the_learning_rate_goes_through_its_schedule_once_in_every_window():
    config = AdamWConfig(lr=2.0, warmup=3)
    state = TrainState(network(), config, None, window=lambda step: (0, 20) if step < 20 else (20, 50))
    first = [learning_rate(config, step, 20) for step in range(20)]
    second = [learning_rate(config, step, 30) for step in range(30)]
    assert [state.lr(step) for step in range(50)] == first + second


def test_what_is_frozen_is_moved_by_no_momentum_and_no_decay_and_learns_on_afterwards():
    module = network()
    optimizer = GuardedOptimizer(module, AdamWConfig(weight_decay=0.1), None)

    def advance(number: int) -> None:
        loss = loss_of(module, number)
        loss.backward()
        optimizer.step(1e-2, loss.detach())

    for number in range(3):
        advance(number)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    module[0].requires_grad_(False)
    memory = {name: value.clone() for name, value in optimizer.tensors().items()}
    for number in range(3):
        advance(number)
    assert module[0].weight.equal(before[0]) and module[0].bias.equal(before[1])
    assert not module[2].weight.equal(before[2])
    assert all(value.equal(memory[name]) for name, value in optimizer.tensors().items() if ".0." in name)
    module[0].requires_grad_(True)
    advance(3)
    assert not module[0].weight.equal(before[0])


@pytest.mark.parametrize("length", SIGMA_RELS)
def test_an_average_has_the_relative_length_it_is_named_after(length):
    """The weight of each step in the average, found by averaging the unit vectors; its spread relative to the run."""
    steps = 1000
    weights = torch.zeros(steps, dtype=torch.float64)
    averages = PowerEMA([weights])
    for step in range(1, steps + 1):
        weights.zero_()[step - 1] = 1
        averages.update(ema_shares(step), torch.ones(()))
    profile, times = averages.averages[length][0], torch.arange(1, steps + 1, dtype=torch.float64) / steps
    mean = (profile * times).sum()
    spread = ((profile * (times - mean) ** 2).sum()).sqrt().item()
    assert profile.sum().item() == pytest.approx(1)
    assert spread == pytest.approx(float(length), rel=0.02)


def test_the_first_update_forgets_the_untrained_weights():
    weights = torch.zeros(4)
    averages = PowerEMA([weights])
    weights.fill_(3)
    averages.update(ema_shares(1), torch.ones(()))
    assert all(average[0].equal(weights) for average in averages.averages.values())


def test_looking_at_the_averaged_module_does_not_touch_training():
    module = network()
    state = TrainState(module, AdamWConfig(), None, window=whole)
    for number in range(1, 4):
        loss = loss_of(module, number)
        loss.backward()
        state.advance(1e-1, ema_shares(number), loss.detach())
    before = [p.detach().clone() for p in module.parameters()]
    average = state.ema_model("0.05")
    assert not average.training and module.training
    for mine, theirs, stored in zip(module.parameters(), average.parameters(), state.ema.averages["0.05"], strict=True):
        assert theirs.equal(stored) and not theirs.equal(mine)
    assert all(map(torch.equal, before, module.parameters()))


def test_a_checksum_sees_a_single_bit():
    one, two = (
        TrainState(network(), AdamWConfig(), None, window=whole),
        TrainState(network(), AdamWConfig(), None, window=whole),
    )
    assert one.checksum().equal(two.checksum())
    with torch.no_grad():
        two.module[0].weight.view(torch.int32)[0, 0] ^= 1
    assert not one.checksum().equal(two.checksum())
