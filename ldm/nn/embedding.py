"""Noise-level (timestep) embedding: Fourier features of a scalar."""

import math

import torch
from torch import Tensor, nn

from ldm.nn.outer_linear import OuterLinear


class NoiseEmbedding(nn.Sequential):
    """Features of the noise level (or timestep) as a vector: linear, SiLU, linear. Muon leaves it to AdamW."""

    def __init__(self, features: int, channels: int):
        super().__init__(OuterLinear(features, channels), nn.SiLU(), OuterLinear(channels, channels))


class FourierFeatures(nn.Module):
    """cos and sin of a scalar at geometrically spaced frequencies: batch -> batch x channels.

    The frequencies run from 1 to 64, which suits scalars between about -3 and 3, such as ln(sigma) / 4.
    """

    frequencies: Tensor

    def __init__(self, channels: int, highest: float = 64.0):
        super().__init__()
        frequencies = torch.exp(torch.linspace(0, math.log(highest), (channels + 1) // 2))
        self.channels = channels
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, scalars: Tensor) -> Tensor:
        angles = scalars[:, None] * self.frequencies.to(scalars.dtype)
        return math.sqrt(2) * torch.cat([angles.cos(), angles.sin()], dim=1)[:, : self.channels]
