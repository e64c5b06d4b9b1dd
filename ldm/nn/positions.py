"""Positions of tokens on a grid: rotary embedding (RoPE) in two dimensions, and sines and cosines to add."""

import math

import torch
from torch import Tensor

LONGEST = 100.0  # times 2π positions: the longest wavelength of a rotation, some times the side of a grid of latents


def rotary_angles(grid: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """By how much each pair of channels turns at each position, positions x channels / 2 (Su et al. 2021).

    Half of the pairs turn with the row and half with the column, from one radian per step down to 1 / LONGEST.
    """
    quarter = channels // 4
    frequencies = LONGEST ** -(torch.arange(quarter, device=device) / quarter)
    rows, columns = (torch.arange(side, device=device)[:, None] * frequencies for side in grid)
    return torch.cat([rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)], 2).flatten(0, 1)


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
    rows, columns = (torch.cat([each.sin(), each.cos()], 1) for each in (rows, columns))
    return torch.cat([rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)], 2).flatten(0, 1)
