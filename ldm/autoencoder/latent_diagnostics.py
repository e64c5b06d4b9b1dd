"""Diagnostics of a latent space: the slope of its power spectrum and the encoder's Jacobian."""

import math

import torch
from torch import Tensor

from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.penalty import jacobian_norms
from ldm.shapes import Images, Latents

MIN_SIDE = 4  # positions a side, with fewer of which a slope says nothing


def spectrum_slope(latents: Latents) -> float | None:
    """Slope of log power against log spatial frequency: white noise has 0, photographs have about -2.

    None where a side has fewer than 4 positions, or where nothing varies. The power of each channel is divided by its
    total, so scaling or shifting a channel changes nothing.
    """
    return slope_of(power_spectrum(latents))


def power_spectrum(latents: Latents) -> Tensor:
    """Power per channel and frequency, summed over the batch: float64, channels x h x w, as `fft2` orders it; CPU."""
    return torch.fft.fft2(latents.detach().cpu().double(), norm="ortho").abs().square().sum(0)


def slope_of(power: Tensor) -> float | None:
    """The slope of a power spectrum: a straight line through its logarithms in which each ring counts the same.

    Rings of equal width hold modes in proportion to their radius, so a mode of frequency f has weight 1 / f. That is
    a radial average which does not first mix frequencies, and exact for a power law. Frequencies above half a cycle
    per position, in the corners, and the mean are left out.
    """
    height, width = power.shape[-2:]
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    frequency = (rows[:, None].square() + columns.square()).sqrt()
    kept = (frequency > 0) & (frequency <= 0.5)
    everything, power = power.sum((1, 2)), power[:, kept]
    varies = power.sum(1) > 1e-24 * everything  # less is rounding
    if min(height, width) < MIN_SIDE or not everything.isfinite().all() or not varies.any():
        return None
    share = (power / power.sum(1, keepdim=True))[varies].mean(0)
    x, y = frequency[kept].log(), share.clamp_min(1e-12).log()
    weight = 1 / frequency[kept]
    weight = weight / weight.sum()
    x = x - (weight * x).sum()
    return ((weight * x * y).sum() / (weight * x * x).sum()).item()


def encoder_jacobian(
    autoencoder: Autoencoder, images: Images, generator: torch.Generator, *, at_once: int = 8
) -> float:
    """How many of its standard deviations a latent element moves, root mean square, per unit of white pixel noise.

    sqrt(E ‖J‖² / elements), with J the Jacobian of the mean code and each channel divided by its standard deviation
    over these images, so scaling the latents changes nothing, whether or not the statistics undo it. The pixels are in
    [-1, 1]. It is the root of what penalties.jacobian punishes, with one probe per image, at images as they are and
    with the spread of posterior samples. Channels that never vary are left out.
    """
    statistics = LatentStatistics()
    for part in images.split(at_once):
        with torch.no_grad():
            statistics.add(autoencoder.encode(part))
    std = statistics.std.to(images).view(-1, 1, 1)
    live = std.flatten() > 0
    std = torch.where(std > 0, std, torch.full_like(std, torch.inf))  # a channel that never varies does not count
    total, elements = 0.0, 0
    for part in images.split(at_once):
        with torch.enable_grad():
            pixels = part.detach().requires_grad_()
            codes = autoencoder.encode(pixels).mean
        signs = torch.randint(0, 2, codes.shape, generator=generator).to(codes) * 2 - 1
        total += jacobian_norms(codes, pixels, std, signs[None]).cpu().double().sum().item()
        elements += codes[:, live].numel()
    return math.sqrt(total / max(elements, 1))
