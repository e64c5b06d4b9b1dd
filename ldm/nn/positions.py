"""Positions on a grid or a line: rotary embedding (RoPE), sines and cosines, and a learned embedding of places."""

import math

import torch
from torch import Tensor, nn

from ldm.nn.outer_linear import OuterLinear

LONGEST = 100.0  # times 2π positions: the longest wavelength of a rotation, some times the side of a grid of latents
HALF_WAVES = 8  # across the grid, at most, of the features of a place


def rotary_angles(grid: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """By how much each pair of channels turns at each position, positions x channels / 2 (Su et al. 2021).

    Half of the pairs turn with the row and half with the column, from one radian per step down to 1 / LONGEST.
    """
    return by_row_and_column(*(rotary_angles_of_line(side, channels // 2, device) for side in grid))


def rotary_angles_of_line(length: int, channels: int, device: torch.device) -> Tensor:
    """The same for tokens one behind the other, as those of a text: length x channels / 2."""
    half = channels // 2
    frequencies = LONGEST ** -(torch.arange(half, device=device) / half)
    return torch.arange(length, device=device)[:, None] * frequencies


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Queries or keys, ... x positions x channels, turned: their products then depend on differences of positions.

    Channel i is paired with channel i + channels / 2.
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def sines_and_cosines(grid: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Those of row and column, to be added to tokens, positions x channels (Vaswani et al. 2017)."""
    quarter = channels // 4
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(quarter, device=device) / quarter)
    rows, columns = (torch.arange(side, device=device)[:, None] * frequencies for side in grid)
    return by_row_and_column(*(torch.cat([each.sin(), each.cos()], 1) for each in (rows, columns)))


def by_row_and_column(rows: Tensor, columns: Tensor) -> Tensor:
    """What belongs to each row and to each column of a grid, side by side for each of its positions."""
    grid = len(rows), len(columns)
    return torch.cat([rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)], 2).flatten(0, 1)


class PlaceEmbedding(nn.Module):
    """A learned embedding of the places of a grid, whatever its size: (height, width) -> height · width x channels.

    It is linear in half waves across the grid, cos and sin of πk times the place from 0 to 1, k up to 8, of row and of
    column; about as large as what a norm gives. A feature map knows of absolute places by its borders alone, and that
    is too little to learn soon what the text "left of" says.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.embed = OuterLinear(4 * HALF_WAVES, channels, bias=False)
        nn.init.normal_(self.embed.weight, std=1 / math.sqrt(2 * HALF_WAVES))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        weight = self.embed.weight
        counts = torch.arange(1, HALF_WAVES + 1, device=weight.device)
        rows, columns = (
            math.pi * counts * (torch.arange(side, device=weight.device)[:, None] + 0.5) / side for side in grid
        )
        waves = by_row_and_column(*(torch.cat([each.sin(), each.cos()], 1) for each in (rows, columns)))
        embedded: Tensor = self.embed(waves.to(weight.dtype))
        return embedded
