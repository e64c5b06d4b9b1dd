"""Magnitude-preserving layers: of inputs of unit variance they make outputs of unit variance.

Re-derived from Karras et al. 2024 (EDM2), section 2 and appendix B. Where nothing can grow, neither norms nor biases
are needed, and a learning rate is the relative change of a weight per step, in every layer and from the first step to
the last.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.outer_convolution import OuterConv2d
from ldm.nn.outer_linear import OuterLinear
from ldm.shapes import full_precision

SILU_MAGNITUDE = 0.5965  # √E[silu(z)²] for z of unit variance
EPSILON = 1e-4


def unit_magnitude(x: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
    """x divided by its root mean square over some dimensions, by default the channels of each position (pixel norm)."""
    square = full_precision(x).square().mean(dim, keepdim=True)
    return x / (square.sqrt() + EPSILON).to(x.dtype)


def preserving_silu(x: Tensor) -> Tensor:
    """SiLU of a unit variance."""
    return F.silu(x) / SILU_MAGNITUDE


def preserving_sum(a: Tensor, b: Tensor, share: float = 0.5) -> Tensor:
    """A mixture of two independent tensors, of which `share` is the second."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def preserving_concatenation(a: Tensor, b: Tensor) -> Tensor:
    """Two tensors beside each other, which contribute equally however many channels they have."""
    total = (a.shape[1] + b.shape[1]) / 2
    return torch.cat([a * math.sqrt(total / a.shape[1]), b * math.sqrt(total / b.shape[1])], dim=1)


class UnitWeight(nn.Module):
    """What has a weight of unit rows: each output's weights have norm 1, however long the stored ones are.

    Training keeps their root mean square at 1 (forced weight normalization): its updates are at right angles to the
    stored weights, which would grow and so learn ever more slowly.
    """

    weight: Tensor

    def unit_rows(self) -> Tensor:
        """The weight as it is used; its gradient has no part along the stored one."""
        weight = full_precision(self.weight)
        rows = unit_magnitude(weight, tuple(range(1, weight.ndim)))
        return rows / math.sqrt(weight[0].numel())


@torch.no_grad()
def force_magnitude(weight: Tensor, applies: Tensor) -> None:
    """Give the rows of a stored weight a root mean square of 1, in place, where `applies` is above 0."""
    rows = unit_magnitude(weight, tuple(range(1, weight.ndim)))
    weight.copy_(torch.where(applies > 0, rows, weight))


class UnitConv2d(UnitWeight, nn.Conv2d):
    """A convolution of unit rows, without a bias, that keeps height and width."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int):
        super().__init__(channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.unit_rows().to(x.dtype), padding=self.padding)


class OuterUnitConv2d(UnitConv2d, OuterConv2d):
    """Such a convolution that faces latents on one of its sides."""


class OuterUnitLinear(UnitWeight, OuterLinear):
    """A linear layer of unit rows, without a bias, that faces noise level or condition."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, bias=False)
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.unit_rows().to(x.dtype))
