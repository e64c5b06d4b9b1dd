"""Scores: how anomalous each place of an image is, by what a model rebuilds, expects or finds likely.

A score is a function of a view and what was fitted beside; it gives components of an anomaly map, each batch x h x w at
a resolution of its own, high where the image is odd. The detector weighs and adds them. Random numbers depend on the
seed and the number of the draw alone: every image meets the same noise, so that its score depends on nothing but the
image, and differences between images are not differences of their noise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.anomaly.config import DetectorConfig
from ldm.anomaly.maps import smoothed
from ldm.anomaly.subject import ModelView, View
from ldm.autoencoder.losses.perceptual import Perceptual, rgb_triples
from ldm.autoencoder.model import padded
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.samplers import expand_sigma
from ldm.evaluation.metrics import ssim_map
from ldm.randomness import generator
from ldm.shapes import Latents

SHRINKAGE = 0.1  # of covariances: share of the mean variance that is added to each
MOST_PIXELS = 1024  # numbers of an image, of that density


@dataclass(frozen=True)
class ScoreParts:
    """What scores are made with beside the view of an image."""

    config: DetectorConfig
    densities: Mapping[str, LatentGaussian] = field(default_factory=dict)  # of normal images, by score
    perceptual: Perceptual | None = None  # features of a pretrained network


def reconstruction(view: View, parts: ScoreParts) -> list[Tensor]:
    """Squared error of the reconstruction, averaged over channels."""
    return [residual(view, parts).square().mean(1)]


def reconstruction_l1(view: View, parts: ScoreParts) -> list[Tensor]:
    """Absolute error of the reconstruction, averaged over channels."""
    return [residual(view, parts).abs().mean(1)]


def residual(view: View, parts: ScoreParts) -> Tensor:
    """Target less reconstruction, of pixels under a blur: what alternates along a shifted edge cancels out."""
    difference = view.target - view.reconstruction
    return smoothed(difference, parts.config.blur) if view.target is view.images else difference


def reconstruction_ssim(view: View, parts: ScoreParts) -> list[Tensor]:
    """1 − SSIM around each pixel, averaged over channels; at the border that of the nearest whole window."""
    similarity = ssim_map(view.images, view.reconstruction).mean(1)
    down, right = (whole - part for whole, part in zip(view.images.shape[2:], similarity.shape[1:], strict=True))
    margins = (right // 2, right - right // 2, down // 2, down - down // 2)
    return [F.pad(1 - similarity[:, None], margins, mode="replicate")[:, 0]]


def reconstruction_features(view: View, parts: ScoreParts) -> list[Tensor]:
    """Squared distance of image and reconstruction in each map of a pretrained network, at unit length (LPIPS)."""
    assert parts.perceptual is not None
    triples, shares = rgb_triples(view.images.shape[1])
    weights = list(parts.perceptual.channel_weights)
    sides = [parts.perceptual.features(images, triples) for images in (view.images, view.reconstruction)]
    found = []
    for place, (expected, rebuilt) in enumerate(zip(*sides, strict=True)):
        squares = (expected - rebuilt).square() * (weights[place] if weights else 1 / len(sides[0]))
        pictures = squares.sum(1).unflatten(0, (len(view.images), len(triples)))
        found.append(torch.einsum("bphw,p->bhw", pictures, pictures.new_tensor(shares)))
    return found


def denoising(view: View, parts: ScoreParts) -> list[Tensor]:
    """‖D(z + σ n; σ) − z‖² of the latents z at each noise level σ: one component for each, averaged over the draws."""
    assert isinstance(view, ModelView) and view.denoiser is not None
    clean, config, found = view.latents, parts.config, []
    is_pixels = clean.shape == view.images.shape  # and blurred as a residual is
    for level in config.sigmas:
        total = clean.new_zeros(len(clean), *clean.shape[2:])
        for draw in range(config.draws):
            noisy = clean + level * shared_noise(clean, config.seed, "detection noise", draw)
            difference = view.denoiser(noisy, expand_sigma(level, noisy)) - clean
            total += (smoothed(difference, config.blur) if is_pixels else difference).square().mean(1)
        found.append(total / config.draws)
    return found


def latent_density(view: View, parts: ScoreParts) -> list[Tensor]:
    """Squared Mahalanobis distance of the latents, as what each position adds to it.

    With the symmetric root W of the inverse covariance it is the sum of the squares of W (z − m): how far each number
    of the latent is from what all the others let expect.
    """
    return [whitened(parts.densities["latent-density"], view.latents).square().sum(1)]


def pixel_density(view: View, parts: ScoreParts) -> list[Tensor]:
    """The same of the pixels, without any model: blurred, and averaged over squares until they are few enough."""
    return [whitened(parts.densities["pixel-density"], coarse_pixels(view, parts.config.blur)).square().sum(1)]


def elbo(view: View, parts: ScoreParts) -> list[Tensor]:
    """The negative evidence lower bound: squared error in each channel, averaged over samples of the posterior, then
    the KL, in nats per pixel, to the Gaussian of the latents' own mean and variance.

    A channel of error weighs 1 / 2 s², with its mean square s² over normal images: the likeliest variance of the
    decoder (Rybkin et al. 2021).
    """
    assert isinstance(view, ModelView)
    posterior, config = view.posterior, parts.config
    error = torch.zeros_like(view.images)
    for draw in range(config.draws):
        noise = shared_noise(posterior.mean, config.seed, "detection posterior", draw)
        error += (view.images - view.decoded(posterior.reparameterize(noise))).square() / config.draws
    variance = posterior.variance
    kl = 0.5 * (posterior.mean.square() + variance - 1 - variance.log()).sum(1)
    return [*error.unbind(1), kl * (math.prod(kl.shape[1:]) / math.prod(view.images.shape[2:]))]


def masked(view: View, parts: ScoreParts) -> list[Tensor]:
    """Squared error of patches that the encoder did not see: disjoint sets of them are hidden one after the other."""
    assert isinstance(view, ModelView)
    config, images = parts.config, view.images
    patch = view.autoencoder.network.downsampling
    sides = padded(images, patch).shape[2:]
    grid = sides[0] // patch[0], sides[1] // patch[1]
    error = images.new_zeros(len(images), *images.shape[2:])
    for draw in range(config.draws):
        order = torch.randperm(math.prod(grid), generator=generator(config.seed, "hidden patches", draw))
        for number in range(min(config.hidden_sets, len(order))):
            hidden = (order % config.hidden_sets == number).view(grid).to(images.device)
            together = hidden.expand(len(images), *grid)
            rebuilt = view.decoded(view.autoencoder.encode(images, together).mode(), together)
            unseen = hidden.repeat_interleave(patch[0], 0).repeat_interleave(patch[1], 1)
            unseen = unseen[: images.shape[2], : images.shape[3]]
            error += (images - rebuilt).square().mean(1) * unseen / config.draws
    return [error]


def whitened(gaussian: LatentGaussian, latents: Latents) -> Latents:
    """W (z − m) with the symmetric root W of the inverse covariance (ZCA): of unit covariance where z is normal."""
    basis, rest = gaussian.basis.to(latents), gaussian.rest.to(latents).rsqrt()
    centered = (latents - gaussian.mean.to(latents)).flatten(1)
    excess = gaussian.eigenvalues.to(latents).rsqrt() - rest
    return (rest * centered + ((centered @ basis) * excess) @ basis.mT).view_as(latents)


def coarse_pixels(view: View, blur: float) -> Tensor:
    """The images under a slight blur, averaged over squares until they have `MOST_PIXELS` numbers at most."""
    pixels, factor = smoothed(view.images, blur), 1
    while math.prod(-(-side // factor) for side in pixels.shape[2:]) * pixels.shape[1] > MOST_PIXELS:
        factor += 1
    return F.avg_pool2d(pixels, factor, ceil_mode=True)


def shrunken(gaussian: LatentGaussian) -> LatentGaussian:
    """The Gaussian with a share of its mean variance added to every variance (as Ledoit and Wolf 2004 shrink).

    Images are no Gaussian: in directions in which the normal ones hardly vary a few of them are far out.
    """
    left = gaussian.mean.numel() - len(gaussian.eigenvalues)
    floor = SHRINKAGE * (gaussian.eigenvalues.sum() + left * gaussian.rest) / gaussian.mean.numel()
    gaussian.eigenvalues += floor
    gaussian.rest += floor
    return gaussian


def shared_noise(like: Tensor, seed: int, purpose: str, draw: int) -> Tensor:
    """Unit Gaussian noise of the shape of one latent, the same for every image and every noise level."""
    noise = torch.randn(like.shape[1:], generator=generator(seed, purpose, draw))
    return noise.to(like)


# What the densities are of, by score.
DENSITY_INPUTS: dict[str, Callable[[View, float], Tensor]] = {
    "latent-density": lambda view, blur: view.latents,
    "pixel-density": coarse_pixels,
}
