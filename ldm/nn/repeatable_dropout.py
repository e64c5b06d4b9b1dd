"""Dropout whose masks are drawn once and used twice, for a forward pass that is made again.

To draw them again would take the generator back to where it was, which is not possible while a CUDA graph is recorded.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


class RepeatableDropout(nn.Dropout):
    """Dropout that can be given its masks; without any it draws them."""

    masks: "DropoutMasks | None" = None

    def forward(self, input: Tensor) -> Tensor:
        if self.masks is None or not self.training:
            return super().forward(input)
        return masked(input, self.masks.next(input, self.p), self.p)


class DropoutMasks:
    """The masks of one forward pass of a module, in their order.

        masks = DropoutMasks(module)
        with masks.drawn():
            once = module(x)
        with masks.repeated():
            again = module(y)

    What is drawn is what `nn.Dropout` would draw. A module inside may keep masks of its own meanwhile.
    """

    def __init__(self, module: nn.Module):
        found = [each for each in module.modules() if isinstance(each, nn.Dropout) and each.p > 0]
        self.dropouts = [repeatable(each) for each in found]
        self.kept: list[Tensor] = []
        self.given: Iterator[Tensor] | None = None  # where they are used again
        self.outer: DropoutMasks | None = None

    def next(self, input: Tensor, p: float) -> Tensor:
        """The mask of the next dropout."""
        if self.given is not None:
            return next(self.given)
        self.kept.append(drawn_mask(input, p) if self.outer is None else self.outer.next(input, p))
        return self.kept[-1]

    def drawn(self) -> AbstractContextManager[None]:
        """Where the masks are drawn."""
        return self.used(None)

    def repeated(self) -> AbstractContextManager[None]:
        """Where they are used again, in the same order."""
        return self.used(iter(self.kept))

    @contextmanager
    def used(self, given: Iterator[Tensor] | None) -> Iterator[None]:
        """Where the module takes its masks from here: these, or new ones."""
        before = [each.masks for each in self.dropouts]
        self.given, self.outer = given, next(iter(before), None)
        for each in self.dropouts:
            each.masks = self
        try:
            yield
        finally:
            self.outer = None
            for each, masks in zip(self.dropouts, before, strict=True):
                each.masks = masks


def repeatable(dropout: nn.Dropout) -> RepeatableDropout:
    """The same module, changed in place."""
    dropout.__class__ = RepeatableDropout
    assert isinstance(dropout, RepeatableDropout)
    return dropout


def drawn_mask(input: Tensor, p: float) -> Tensor:
    """What `nn.Dropout` draws: truth values, which the kernel of GPUs scales afterwards, elsewhere factors."""
    if input.is_cuda:
        return torch.native_dropout(input.detach(), p, True)[1]
    return torch.empty_like(input).bernoulli_(1 - p).div_(1 - p)


def masked(input: Tensor, mask: Tensor, p: float) -> Tensor:
    """What `nn.Dropout` makes of it."""
    return input * mask * (1 / (1 - p)) if mask.dtype == torch.bool else input * mask
