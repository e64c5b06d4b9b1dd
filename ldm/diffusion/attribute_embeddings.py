"""The embeddings of numbers and of texts, by which a denoiser is conditioned on them."""

import math

import torch
from torch import Tensor, nn

from ldm.batch import NumberAttribute, TextAttribute
from ldm.nn.convolution import zeroed
from ldm.nn.cross_attention import TokenBlock
from ldm.nn.embedding import FourierFeatures

HARMONICS = 8  # of a period
NUMBER_FEATURES = 32  # of a number without one
HIGHEST = 8.0  # of its frequencies, in radians per standard deviation


class NumberEmbedding(nn.Module):
    """Embeds numbers: batch -> batch x channels; NaN has an embedding of its own. It starts without an effect.

    A number is standardized, and its Fourier features are of frequencies from 1 to 8 radians; of one with a period they
    are its harmonics, which only the place in the period decides.
    """

    def __init__(self, attribute: NumberAttribute, channels: int, token_channels: int):
        super().__init__()
        self.attribute = attribute
        self.features = None if attribute.period else FourierFeatures(NUMBER_FEATURES, HIGHEST)
        inputs = 2 * HARMONICS if attribute.period else NUMBER_FEATURES + 1
        self.mlp = nn.Sequential(nn.Linear(inputs, channels), nn.SiLU(), zeroed(nn.Linear(channels, channels)))
        self.null = nn.Parameter(torch.zeros(channels))

    def forward(self, numbers: Tensor) -> Tensor:
        known = ~numbers.isnan()
        embedded = self.mlp(self.described(numbers.nan_to_num()).to(self.null.dtype))
        return torch.where(known[:, None], embedded, self.null)

    def described(self, numbers: Tensor) -> Tensor:
        """The Fourier features, in the precision of the numbers."""
        if self.features is None:
            assert self.attribute.period is not None
            turns = torch.remainder(numbers / self.attribute.period, 1)
            harmonics = torch.arange(1, HARMONICS + 1, dtype=numbers.dtype, device=numbers.device)
            angles = 2 * math.pi * turns[:, None] * harmonics
            return torch.cat([angles.cos(), angles.sin()], dim=1)
        standardized = (numbers - self.attribute.mean) / self.attribute.std
        features: Tensor = self.features(standardized)
        return torch.cat([standardized[:, None], features], dim=1)


class TextEmbedding(nn.Module):
    """Embeds texts, given as the tokens of a frozen encoder: batch x length x width -> a vector, and tokens.

    Order and context come in here, by blocks with rotary positions, for the tokens of some encoders know of neither.
    NaN, behind the last token, has an embedding of its own, which a text that is left out consists of. The vector is
    the mean of the tokens that are there, and starts without an effect.
    """

    def __init__(self, attribute: TextAttribute, channels: int, token_channels: int):
        super().__init__()
        self.shape, inner = (attribute.length, attribute.width), token_channels
        self.norm = nn.LayerNorm(attribute.width)
        self.project = nn.Linear(attribute.width, inner)
        self.nothing = nn.Parameter(0.02 * torch.randn(inner))
        self.blocks = nn.ModuleList([TokenBlock(inner) for _ in range(attribute.layers)])
        self.last_norm = nn.LayerNorm(inner)
        self.pooled = zeroed(nn.Linear(inner, channels))

    def forward(self, given: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        """The vector of each text and its tokens; None are `count` texts that are left out."""
        if given is None:
            given = self.nothing.new_full((count, *self.shape), math.nan)
        is_there = ~given[..., :1].isnan()
        projected = self.project(self.norm(torch.where(is_there, given, 0).to(self.nothing.dtype)))
        tokens = torch.where(is_there, projected, self.nothing)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.last_norm(tokens)
        counted = (is_there | ~is_there.any(1, keepdim=True)).to(tokens.dtype)
        mean = (counted * tokens).sum(1) / counted.sum(1)
        return self.pooled(mean), tokens
