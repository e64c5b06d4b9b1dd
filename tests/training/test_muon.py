"""Muon: an orthogonalized step for hidden matrices, AdamW's guard, memory and clipping, and nothing read back."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from ldm.diffusion.config import UNetConfig
from ldm.diffusion.networks.unet import UNet
from ldm.training.config import AdamWConfig, MuonConfig
from ldm.training.muon import hidden_weights, orthogonalized
from ldm.training.optim import GuardedOptimizer, learning_rate
from ldm.training.train_state import TrainState


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(32, 40, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(40 * 16, 32),
        nn.Tanh(),
        nn.Linear(32, 32),
        nn.Linear(32, 2),
    )


def loss_of(module: nn.Module, seed: int) -> torch.Tensor:
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (module(x) - x[:, :2, 0, 0]).square().mean()


def advance(module: nn.Module, optimizer: GuardedOptimizer, number: int, lr: float = 1e-2) -> None:
    loss = loss_of(module, number)
    loss.backward()
    optimizer.step(lr, loss.detach())


def test_muon_took_the_embedding_of_the_noise_level():
    names = hidden_weights(UNet(UNetConfig(widths=(32, 32), blocks=1), channels=4))
    assert "middle.0.block.condition.weight" in names and not [name for name in names if "noise_embedding" in name]


def test_muon_takes_hidden_matrices_and_filters_and_leaves_first_last_and_biases_to_adamw():
    assert hidden_weights(network()) == {"2.weight", "5.weight", "7.weight"}
    assert hidden_weights(nn.Embedding(64, 64)) == set()
    state = GuardedOptimizer(network(), MuonConfig(), None)
    assert [len(each.param_groups[0]["params"]) for each in state.optimizers] == [7, 3]


@pytest.mark.parametrize("shape", [(32, 32), (40, 96), (96, 40)])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    beside = torch.randn(2, min(shape), 100, dtype=torch.float64)  # of another shape, and iterated together
    found = left.mT @ orthogonalized([beside, matrix])[1] @ right.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert (found - diagonal.diag_embed()).abs().max() < 1e-9
    well_conditioned = values / values.norm(dim=1, keepdim=True) > 0.02
    assert diagonal[well_conditioned].min() > 0.65 and diagonal.max() < 1.25


def test_steps_on_matrices_are_those_of_torchs_muon():
    """Which takes matrices alone, and orthogonalizes in bfloat16: hence the tolerance."""
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 64)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    begun = [parameter.detach().clone() for parameter in ours.parameters()]
    optimizer = GuardedOptimizer(ours, MuonConfig(weight_decay=0.1, clip=1e9), None)
    matrices = [theirs[0].weight, theirs[2].weight]
    reference = torch.optim.Muon(matrices, lr=1e-2, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    biases = torch.optim.AdamW([theirs[0].bias, theirs[2].bias], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(5):
        x, wanted = torch.randn(256, 48), torch.randn(256, 64)
        for module in (ours, theirs):
            (module(x) - wanted).square().mean().backward()
        optimizer.step(1e-2, torch.zeros(()))
        for each in (reference, biases):
            each.step()
            each.zero_grad()
    for mine, their, before in zip(ours.parameters(), theirs.parameters(), begun, strict=True):
        assert (mine - their).norm() < 0.02 * (their - before).norm()


def test_one_learning_rate_moves_matrices_and_the_rest_alike():
    """By 0.2 times the rate, root mean square, whatever the shape: AdamW's typical update (Liu et al. 2025)."""
    module = network()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = GuardedOptimizer(module, MuonConfig(), None)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(1e-2, torch.zeros(()))
    for name in ("2.weight", "5.weight", "7.weight"):
        moved = (dict(module.named_parameters())[name] - before[name]).square().mean().sqrt().item()
        assert moved == pytest.approx(0.2 * 1e-2, rel=0.2), name


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing_for_good(bad):
    module = network()
    state = TrainState(module, MuonConfig(weight_decay=0.1), None, window=lambda step: (0, 100))
    for number in range(3):
        advance(module, state.optimizer, number)
    before = {f"{file} {name}": t.clone() for file, each in state.tensors().items() for name, t in each.items()}
    loss = loss_of(module, 3)
    loss.backward()
    module[2].weight.grad[0, 0, 0, 0] = bad
    state.optimizer.step(1e-2, loss.detach())
    advance(module, state.optimizer, 4)
    after = {f"{file} {name}": t for file, each in state.tensors().items() for name, t in each.items()}
    assert before.keys() == after.keys() and any("momentum" in name for name in before)
    assert not [name for name, value in before.items() if not value.equal(after[name])]


def test_six_steps_equal_three_a_restart_and_three():
    whole, again = network(), network()
    one = GuardedOptimizer(whole, MuonConfig(), None)
    for number in range(6):
        advance(whole, one, number)
    first = GuardedOptimizer(again, MuonConfig(), None)
    for number in range(3):
        advance(again, first, number)
    second = GuardedOptimizer(again, MuonConfig(), None)
    second.load({name: value.clone() for name, value in first.tensors().items()})
    for number in range(3, 6):
        advance(again, second, number)
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


def test_a_matrix_that_is_frozen_is_moved_by_no_momentum_and_no_decay():
    module = network()
    optimizer = GuardedOptimizer(module, MuonConfig(weight_decay=0.1), None)
    advance(module, optimizer, 0)
    module[7].requires_grad_(False)
    before, memory = module[7].weight.detach().clone(), optimizer.tensors()["momentum.7.weight"].clone()
    advance(module, optimizer, 1)
    assert module[7].weight.equal(before) and optimizer.tensors()["momentum.7.weight"].equal(memory)


def test_the_linear_schedule_is_constant_and_then_falls_to_a_hundredth():
    config = AdamWConfig(lr=2.0, warmup=10, schedule="linear", decay=0.4)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[10:60] == [2.0] * 50
    assert rates[80] == pytest.approx(2.0 * (0.01 + 0.99 * 0.5))
    assert learning_rate(config, 100, 100) == pytest.approx(0.02)
    assert all(later < earlier for earlier, later in pairwise(rates[60:]))
