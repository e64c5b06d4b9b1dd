"""A magnitude-preserving U-Net (EDM2): no norms, no biases, weights of unit rows, activations of unit variance.

Its levels are those of our U-Net. In an encoder each position is first brought to unit magnitude:

    encoder block   x -> [halve] -> 1 x 1 -> unit magnitude ---------------------------------> + -> attention
                                                  |                                            |
                                                  SiLU, 3 x 3, times condition, SiLU, 3 x 3 ---+
    decoder block   x, skip -> [double] -> the same without unit magnitude

Karras et al. 2024, config G, re-derived.
"""

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.diffusion.config import EDM2Config
from ldm.diffusion.network import DenoiserNetwork, check_divisible, check_halvings
from ldm.nn.embedding import FourierFeatures
from ldm.nn.magnitude_preserving import (
    OuterUnitConv2d,
    OuterUnitLinear,
    UnitConv2d,
    preserving_concatenation,
    preserving_silu,
    preserving_sum,
    unit_magnitude,
)

BRANCH = 0.3  # share of a residual branch, or of attention, in the sum with its skip


class UnitAttention(nn.Module):
    """Multi-head attention of every position to every other by cosine similarity, beside a skip."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        most = max(channels // head_channels, 1)
        self.heads = next(heads for heads in range(most, 0, -1) if channels % heads == 0)
        self.to_qkv = UnitConv2d(channels, 3 * channels, 1)
        self.to_out = UnitConv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = self.to_qkv(x).view(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = unit_magnitude(parts, 3).permute(1, 0, 2, 4, 3).contiguous().unbind()
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(2, 3).reshape(batch, channels, height, width)
        return preserving_sum(x, self.to_out(attended), BRANCH)


class PreservingBlock(nn.Module):
    """Two convolutions beside a skip, the condition scaling what is between them; at some levels attention after it."""

    def __init__(
        self,
        config: EDM2Config,
        channels: int,
        level: int,
        *,
        encodes: bool = False,
        resizes: Literal["halve", "double"] | None = None,
    ):
        super().__init__()
        width = config.widths[level]
        self.encodes, self.resizes = encodes, resizes
        self.skip = nn.Identity() if channels == width else UnitConv2d(channels, width, 1)
        self.convolution_in = UnitConv2d(width if encodes else channels, width, 3)
        self.condition = OuterUnitLinear(max(config.widths), width)
        self.condition_gain = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(config.dropout)
        self.convolution_out = UnitConv2d(width, width, 3)
        attends = level in config.attention
        self.attention = UnitAttention(width, config.head_channels) if attends else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        if self.resizes == "halve":
            x = F.avg_pool2d(x, 2)
        if self.resizes == "double":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.encodes:
            x = unit_magnitude(self.skip(x))
        h = self.convolution_in(preserving_silu(x))
        scale = 1 + self.condition_gain.to(h.dtype) * self.condition(condition)
        h = self.convolution_out(self.dropout(preserving_silu(h * scale[:, :, None, None])))
        return self.attention(preserving_sum(x if self.encodes else self.skip(x), h, BRANCH))


class PreservingUNet(DenoiserNetwork):
    """F(x; noise, vector): batch c h w -> batch c h w, h and w divisible by 2 ** (levels - 1).

    The output starts at zero, where the EDM loss is 1 at every noise level.
    """

    def __init__(self, config: EDM2Config, *, channels: int):
        super().__init__()
        widths = config.widths
        self.vector_channels, self.factor = max(widths), 2 ** (len(widths) - 1)
        self.noise_features = FourierFeatures(widths[0])
        self.noise_embedding = OuterUnitLinear(widths[0], max(widths))
        self.first = OuterUnitConv2d(channels + 1, widths[0], 3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, current = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for number in range(config.blocks + (level > 0)):
                halves = level > 0 and number == 0
                self.down.append(
                    PreservingBlock(config, current, level, encodes=True, resizes="halve" if halves else None)
                )
                skips.append(current := width)
        deepest = len(widths) - 1
        self.middle = nn.ModuleList([PreservingBlock(config, current, deepest) for _ in range(2)])
        for level in reversed(range(len(widths))):
            if level < deepest:
                self.up.append(PreservingBlock(config, current, level, resizes="double"))
                current = widths[level]
            for _ in range(config.blocks + 1):
                self.up.append(PreservingBlock(config, current + skips.pop(), level))
                current = widths[level]
        self.last = OuterUnitConv2d(current, channels, 3)
        self.gain = nn.Parameter(torch.zeros(1))

    @classmethod
    def create(cls, config: EDM2Config, *, latent_shape: tuple[int, int, int], token_channels: int = 0) -> Self:
        return cls(config, channels=latent_shape[0])

    @classmethod
    def check(cls, config: EDM2Config, latent_shape: tuple[int, int, int]) -> None:
        check_halvings(config.widths, latent_shape)

    def forward(
        self, x: Tensor, noise_condition: Tensor, vector: Tensor | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        check_divisible(x, self.factor)
        condition = self.noise_embedding(self.noise_features(noise_condition).to(x.dtype))
        condition = preserving_silu(condition if vector is None else preserving_sum(condition, vector))
        x = self.first(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))  # the ones are in place of a bias
        skips = [x]
        for block in self.down:
            x = block(x, condition)
            skips.append(x)
        for block in self.middle:
            x = block(x, condition)
        for block in self.up:
            x = block(x if block.resizes else preserving_concatenation(x, skips.pop()), condition)
        return self.gain.to(x.dtype) * self.last(x)
