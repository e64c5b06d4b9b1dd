"""A module's `lr_factor` multiplies the learning rate of what is in it, of AdamW and of Muon."""

import pytest
import torch
from torch import nn

from ldm.training.config import AdamWConfig, MuonConfig, OptimConfig
from ldm.training.optim import GuardedOptimizer, lr_factors


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 40), nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)), nn.Linear(40, 1))


def moved(module: nn.Module, config: OptimConfig, lr: float) -> dict[str, torch.Tensor]:
    """How far one step takes each parameter."""
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    loss = module(torch.ones(3, 40)).square().mean()
    loss.backward()
    GuardedOptimizer(module, config, None).step(lr, loss.detach())
    return {name: parameter.detach() - before[name] for name, parameter in module.named_parameters()}


def test_the_innermost_module_that_has_a_factor_counts():
    module = network()
    module[1].lr_factor, module[1][1].lr_factor = 0.5, 0.25
    assert set(lr_factors(module).values()) == {1.0, 0.5, 0.25}
    assert lr_factors(module)["1.0.bias"] == 0.5 and lr_factors(module)["1.1.weight"] == 0.25
    assert lr_factors(module)["2.weight"] == lr_factors(module)["0.bias"] == 1


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
def test_a_step_is_so_many_times_as_long(config):
    plain, slow = network(), network()
    slow[1].lr_factor = 0.125
    expected, found = moved(plain, config, 1e-2), moved(slow, config, 1e-2)
    for name, step in expected.items():
        factor = 0.125 if name.startswith("1.") else 1
        assert step.abs().max() > 0
        torch.testing.assert_close(found[name], factor * step, rtol=1e-3, atol=1e-7)


def test_the_memory_of_every_optimizer_comes_back():
    ours, theirs = network(), network()
    for module in (ours, theirs):
        module[1].lr_factor = 0.125
    optimizers = [GuardedOptimizer(module, MuonConfig(), None) for module in (ours, theirs)]

    def advance(module: nn.Module, optimizer: GuardedOptimizer, seed: int) -> None:
        loss = module(torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))).square().mean()
        loss.backward()
        optimizer.step(1e-2, loss.detach())

    for seed in range(3):
        advance(ours, optimizers[0], seed)
    theirs.load_state_dict(ours.state_dict())
    optimizers[1].load({name: value.clone() for name, value in optimizers[0].tensors().items()})
    for module, optimizer in zip((ours, theirs), optimizers, strict=True):
        advance(module, optimizer, 3)
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.equal(their)
