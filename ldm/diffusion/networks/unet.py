"""A small U-Net, conditioned on the noise level, on a vector that embeds the condition, and on the words of a text.

       noisy latents                                  output
            |                                            |
level 0   [block]x2 ------------- skips ------------> [block]x2
            | halve                                      | double
level 1   [block, attention]x2 -- skips --> [block, attention]x2
            |                                            |
            +------------- [block, attention, block] ----+

Attention is among the positions and, where there is text, from the positions to its tokens.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.diffusion.config import UNetConfig
from ldm.diffusion.network import DenoiserNetwork, check_divisible, check_halvings
from ldm.errors import ConfigError
from ldm.nn.attention import SelfAttention
from ldm.nn.convolution import Downsample, ResidualBlock, Upsample, group_norm, norm_silu, zeroed
from ldm.nn.cross_attention import CrossAttention
from ldm.nn.embedding import FourierFeatures, NoiseEmbedding
from ldm.nn.outer_convolution import OuterConv2d


class Level(nn.Module):
    """One residual block and, at the levels that have it, attention: to itself and to the tokens of a text."""

    def __init__(
        self, block: ResidualBlock, attention: SelfAttention | nn.Identity, cross_attention: CrossAttention | None
    ):
        super().__init__()
        self.block = block
        self.attention = attention
        self.cross_attention = cross_attention

    def forward(self, x: Tensor, condition: Tensor, tokens: Tensor | None) -> Tensor:
        x = self.attention(self.block(x, condition))
        if self.cross_attention is None or tokens is None:
            return x
        attended: Tensor = self.cross_attention(x, tokens)
        return attended


class UNet(DenoiserNetwork):
    """F(x; noise, vector, tokens): batch c h w -> batch c h w, h and w divisible by 2 ** (levels - 1).

    The output starts at zero, where the EDM loss is 1 at every noise level.
    """

    takes_tokens = True

    def __init__(self, config: UNetConfig, *, channels: int, token_channels: int = 0):
        super().__init__()
        widths, condition = config.widths, 4 * config.widths[0]
        self.vector_channels, self.factor = condition, 2 ** (len(widths) - 1)
        self.noise_features = FourierFeatures(widths[0])
        self.noise_embedding = NoiseEmbedding(widths[0], condition)

        def layer(inputs: int, level: int) -> Level:
            width = widths[level]
            attends = level in config.attention
            attention: SelfAttention | nn.Identity = nn.Identity()
            cross = None
            if attends:
                attention = SelfAttention(width, config.head_channels, qk_norm=config.qk_norm)
                cross = CrossAttention(width, token_channels, config.head_channels) if token_channels else None
            return Level(ResidualBlock(inputs, width, condition, config.dropout), attention, cross)

        self.first = OuterConv2d(channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, current = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            if level > 0:
                self.down.append(Downsample(current))
                skips.append(current)
            for _ in range(config.blocks):
                self.down.append(layer(current, level))
                current = width
                skips.append(current)

        deepest = len(widths) - 1
        self.middle = nn.ModuleList([layer(current, deepest), layer(current, deepest)])
        for level in reversed(range(len(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(layer(current + skips.pop(), level))
                current = widths[level]
            if level > 0:
                self.up.append(Upsample(current))

        self.norm = group_norm(current)
        self.last = zeroed(OuterConv2d(current, channels, 3, padding=1))

    @classmethod
    def create(cls, config: UNetConfig, *, latent_shape: tuple[int, int, int], token_channels: int = 0) -> Self:
        if token_channels and not config.attention:
            raise ConfigError("a text needs attention to it: name a level or more in denoiser.network.attention")
        return cls(config, channels=latent_shape[0], token_channels=token_channels)

    @classmethod
    def check(cls, config: UNetConfig, latent_shape: tuple[int, int, int]) -> None:
        """Every level after the first halves the latent."""
        check_halvings(config.widths, latent_shape)

    def forward(
        self, x: Tensor, noise_condition: Tensor, vector: Tensor | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        check_divisible(x, self.factor)
        condition = self.noise_embedding(self.noise_features(noise_condition).to(x.dtype))
        condition = F.silu(condition if vector is None else condition + vector)
        x = self.first(x)
        skips = [x]
        for module in self.down:
            x = module(x, condition, tokens) if isinstance(module, Level) else module(x)
            skips.append(x)
        for module in self.middle:
            x = module(x, condition, tokens)
        for module in self.up:
            is_level = isinstance(module, Level)
            x = module(torch.cat([x, skips.pop()], dim=1), condition, tokens) if is_level else module(x)
        return self.last(norm_silu(self.norm, x))
