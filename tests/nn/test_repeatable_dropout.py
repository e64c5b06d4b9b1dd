"""Dropout whose masks are drawn once and used twice draws what nn.Dropout draws."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ldm.nn.repeatable_dropout import DropoutMasks, masked


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.3), nn.SiLU(), nn.Dropout(0.0), nn.Sequential(nn.Dropout(0.8)))


def drawn_twice(module: nn.Module, x: Tensor) -> list[Tensor]:
    """As it is where the generator can be taken back."""
    with torch.random.fork_rng():
        first = module(x)
    return [first, module(2 * x)]


def drawn_once(module: nn.Module, x: Tensor) -> list[Tensor]:
    masks = DropoutMasks(module)
    with masks.drawn():
        first = module(x)
    with masks.repeated():
        return [first, module(2 * x)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_that_are_used_again_are_those_that_would_be_drawn_again(dtype: torch.dtype) -> None:
    """Values, gradients, and the generator's state afterwards; and whoever does not ask for it draws as ever."""
    found = []
    for twice in (drawn_twice, drawn_once):
        module = network().to(dtype)
        x = torch.randn(5, 6, dtype=dtype, requires_grad=True)
        torch.manual_seed(1)
        answers = twice(module, x)
        sum(answer.square().sum() for answer in answers).backward()
        weights = [p.grad for p in module.parameters() if p.grad is not None]
        found.append([*answers, x.grad, *weights, torch.rand(1), module(x), module.eval()(x)])
    assert all(map(torch.equal, *found)) and (found[0][0] == 0).any()


def test_a_part_with_masks_of_its_own_uses_those_of_the_whole() -> None:
    """As a checkpointed block does in consistency tuning: its masks are needed again by itself, later, and by both."""
    module = network()
    part, x = module[4], torch.randn(5, 6)
    whole, inner, seen = DropoutMasks(module), DropoutMasks(part), list[Tensor]()
    forward = part.forward

    def with_masks_of_its_own(given: Tensor) -> Tensor:
        with inner.drawn():
            seen.append(forward(given))
        return seen[-1]

    part.forward = with_masks_of_its_own
    with whole.drawn():
        first = module(x)
    with whole.repeated():
        assert torch.equal(module(x), first)
    with inner.repeated():
        assert torch.equal(forward(torch.ones_like(first)) != 0, inner.kept[0] != 0)
    assert len(whole.kept) == 2 and inner.kept[0] is inner.kept[1] is whole.kept[1]
    del part.forward
    before = copy.deepcopy(module)(x)
    assert not torch.equal(before, first)


def test_truth_values_as_the_kernel_of_gpus_draws_them_scale_as_it_does() -> None:
    x = torch.randn(50, 40)
    expected, mask = torch.native_dropout(x, 0.3, True)
    assert mask.dtype == torch.bool and torch.equal(masked(x, mask, 0.3), expected)
