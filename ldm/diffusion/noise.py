"""Noise levels: the schedule they are sampled along.

The noise level σ is the one axis of all diffusion here: noisy = clean + σ · noise. Other people's axes are this one
under another name: the t of flow matching is σ / (1 + σ), so logit-normal t is log-normal σ, and a shift by α adds
ln α to the mean of ln σ.
"""

import math

import torch
from torch import Tensor

from ldm.shapes import NoiseLevels

SECOND_SIGMA, SECOND_OF_TWO = 1.2, 0.8  # of a consistency model; above it little is left of the first answer


def karras_sigmas(
    steps: int, sigma_min: float, sigma_max: float, rho: float, device: torch.device | str | None = None
) -> Tensor:
    """A decreasing grid of `steps` noise levels from sigma_max to sigma_min, and a zero after them; float32.

    Evenly spaced in σ^(1/ρ), which for large ρ crowds the levels where σ is small (Karras et al. 2022, equation 5).
    A single step goes from sigma_max to zero.
    """
    if steps < 1:
        raise ValueError(f"sampling takes at least 1 step, not {steps}")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = torch.linspace(high, low, steps, dtype=torch.float64) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float().to(device)


def consistency_sigmas(
    steps: int, sigma_min: float, sigma_max: float, rho: float, second_sigma: float | None = None
) -> Tensor:
    """A decreasing grid of `steps` noise levels for a consistency model, and a zero after them; float32.

    After the highest they are those of `karras_sigmas` from `second_sigma` on (1.2, and of two steps 0.8), but for
    the last one, sigma_min, where next to nothing would be left to do. A grid that ends above, or begins below, has
    its geometric mean in that place.
    """
    if second_sigma is None:
        second_sigma = SECOND_OF_TWO if steps == 2 else SECOND_SIGMA
        if not sigma_min < second_sigma < sigma_max:
            second_sigma = math.sqrt(sigma_min * sigma_max)
    highest = torch.tensor([sigma_max])
    if steps == 1:
        return torch.cat([highest, torch.zeros(1)])
    return torch.cat([highest, without_lowest(karras_sigmas(steps, sigma_min, second_sigma, rho))])


def without_lowest(sigmas: Tensor) -> Tensor:
    """A grid without its last level above zero."""
    return torch.cat([sigmas[:-2], sigmas[-1:]])


def broadcast_sigma(sigma: NoiseLevels, over: Tensor) -> Tensor:
    """`sigma` with trailing axes of length one, so that it multiplies `over` sample by sample."""
    return sigma.reshape(-1, *[1] * (over.ndim - 1))
