"""bf16 weights with float32 masters: small updates add up, checkpoints and averages are in float32."""

import pytest
import torch
from torch import nn

from ldm.checkpoint import Checkpoint
from ldm.training.config import AdamWConfig, MuonConfig, OptimConfig
from ldm.training.ema import ema_shares
from ldm.training.master_weights import lower_weights
from ldm.training.train_state import TrainState


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
        self.scale = nn.Parameter(torch.ones(()))


def state_of(optim: OptimConfig) -> TrainState:
    model = Model()
    return TrainState(model, optim, None, window=lambda step: (0, 100), masters=lower_weights(model, "network"))


def advance(state: TrainState, number: int, lr: float = 1e-4) -> torch.Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    loss = (state.module.scale * state.module.network(x.bfloat16()).float() - x).square().mean()
    loss.backward()
    return state.advance(lr, ema_shares(number), loss.detach())


OPTIMIZERS = pytest.mark.parametrize("optim", [AdamWConfig(clip=0.1, weight_decay=0.1), MuonConfig()])


@OPTIMIZERS
def test_the_network_is_the_rounded_master_after_every_step(optim):
    state = state_of(optim)
    for number in range(1, 4):
        advance(state, number)
        assert all(p.grad is None for p in state.module.parameters())
        for name, parameter in state.module.named_parameters():
            assert parameter.dtype == (torch.float32 if name == "scale" else torch.bfloat16)
            if name != "scale":
                assert parameter.equal(state.masters[name].to(torch.bfloat16))


def test_updates_below_the_resolution_of_bf16_add_up():
    state = state_of(AdamWConfig(schedule="constant"))
    before = {name: master.detach().clone() for name, master in state.masters.items()}
    for number in range(1, 21):
        advance(state, number, lr=1e-6)
    assert all(not master.equal(before[name]) for name, master in state.masters.items())
    moved = state.masters["network.2.weight"] - before["network.2.weight"]
    assert 3e-6 < moved.abs().median() < 3e-5


@OPTIMIZERS
def test_six_steps_equal_three_a_restart_and_three_with_masters(optim, tmp_path):
    whole, first = state_of(optim), state_of(optim)
    for number in range(1, 7):
        advance(whole, number)
    for number in range(1, 4):
        advance(first, number)
    saved = {file: {name: value.clone() for name, value in each.items()} for file, each in first.tensors().items()}
    assert {value.dtype for each in saved.values() for value in each.values()} == {torch.float32}
    second = state_of(optim)
    second.load(Checkpoint(3, saved, {}, tmp_path))
    for number in range(4, 7):
        advance(second, number)
    for file, tensors in whole.tensors().items():
        for name, value in tensors.items():
            assert value.equal(second.tensors()[file][name]), f"{file} {name}"
    assert whole.checksum().equal(second.checksum())


def test_the_averaged_model_is_in_float32():
    state = state_of(AdamWConfig())
    advance(state, 1)
    model = state.ema_model("0.05")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.network[0].weight.equal(state.masters["network.0.weight"])  # the first update is the weights
