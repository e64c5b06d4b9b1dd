"""Gradient (activation) checkpointing: the backward pass computes again what a block kept, and memory gets smaller."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm.errors import ConfigError
from ldm.nn.repeatable_dropout import DropoutMasks


def checkpoint_blocks(network: nn.Module) -> None:
    """Let every block of a network, in place, keep its input alone (Chen et al. 2016).

    A block is an element of an outermost list or sequence of modules that consists of several. The gradients are the
    same, bit for bit, for a third more of the time. ConfigError for a network without blocks.
    """
    found = list(blocks(network))
    if not found:
        raise ConfigError("run.gradient_checkpointing true: this network has no blocks; set it to false")
    for block in found:
        block.__class__ = checkpointed(type(block))


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a module."""
    if isinstance(module, nn.ModuleList | nn.Sequential):
        yield from (each for each in module if any(True for _ in each.children()))
        return
    for child in module.children():
        yield from blocks(child)


def checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """The same class, whose forward is checkpointed in training."""

    class Checkpointed(kind):  # type: ignore[valid-type, misc]
        def forward(self, *inputs: Any, **options: Any) -> Any:
            forward = super().forward
            if not (self.training and torch.is_grad_enabled()):
                return forward(*inputs, **options)
            if torch.compiler.is_compiling():  # which takes care of the generator
                return checkpoint(forward, *inputs, use_reentrant=False, **options)
            masks = DropoutMasks(self)
            how: dict[str, Any] = {"context_fn": lambda: (masks.drawn(), masks.repeated())} if masks.dropouts else {}
            return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **how, **options)

    Checkpointed.__name__ = kind.__name__
    return Checkpointed
