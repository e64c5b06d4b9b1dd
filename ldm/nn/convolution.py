"""Residual convolution blocks, and the layers that change resolution."""

import math
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

Layer = TypeVar("Layer", bound=nn.Module)


def group_norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    """Group norm with up to 32 groups of at least four channels; their number is a power of two."""
    return nn.GroupNorm(math.gcd(32, max(channels // 4, 1), channels), channels, affine=affine)


def zeroed(layer: Layer) -> Layer:
    """The same layer, starting as the zero function."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def norm_silu(norm: nn.GroupNorm, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """SiLU(norm(x) · (1 + scale) + shift), in the precision of x; in half precision the norm still sums in float32."""
    h: Tensor = norm(x)
    return F.silu(h if scale is None or shift is None else h * (1 + scale) + shift)


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice, beside a skip; the condition scales and shifts the second norm.

    The second convolution starts at zero, so that the block starts as its skip (Dhariwal and Nichol 2021; Karras et
    al. 2022). `condition` is batch x condition_channels.
    """

    def __init__(self, channels: int, out_channels: int, condition_channels: int, dropout: float = 0.0):
        super().__init__()
        self.norm_in = group_norm(channels)
        self.convolution_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.condition = nn.Linear(condition_channels, 2 * out_channels)
        self.norm_out = group_norm(out_channels, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.convolution_out = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.convolution_in(norm_silu(self.norm_in, x))
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        h = norm_silu(self.norm_out, h, scale, shift)
        return self.skip(x) + self.convolution_out(self.dropout(h))


class Downsample(nn.Conv2d):
    """Halves height and width, which must be even."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbor, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
