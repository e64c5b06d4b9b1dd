"""Fits a codec to a trained autoencoder: statistics, steps of the channels, entropy models, and what they reach."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder
from ldm.compression.codec import Codec, MeasuredStep, Symbols
from ldm.entropy.config import EntropyModelConfig
from ldm.entropy.fit import FITTED_STEPS, fit
from ldm.entropy.tables import POSITIONS
from ldm.errors import CheckpointError, DataError
from ldm.evaluation.metrics import psnr
from ldm.randomness import generator
from ldm.shapes import Images, Latents, rounded

NUDGE = 0.25  # standard deviation of the noise by which a channel's effect on the image is measured
FURTHEST_RATIO = 8  # of a channel's step to the others'
FURTHEST_LEARNED_RATIO = 64  # the same of steps that were learned, where a channel may have learned to be 0
MOST_NUDGED = 32  # images
RATIO_PARTS = 64  # a ratio is a multiple of 1 / this, so that its product with a step is exact


@dataclass(frozen=True)
class FittingProgress:
    """What is told of the fitting: `on_images` gets how many were encoded, `on_step` the bits per element."""

    on_images: Callable[[int], object] = lambda count: None
    on_step: Callable[[float], object] = lambda bits: None


@torch.no_grad()
def fit_codec(
    autoencoder: Autoencoder,
    training: Iterable[Images],
    held_out: Images,
    *,
    config: EntropyModelConfig | None = None,
    equal_steps: bool = False,
    progress: FittingProgress | None = None,
) -> Codec:
    """The codec of an autoencoder, which is left alone, for images like those of `training`, batches of one size.

    The entropy model is that of `config`, or the factorized one where that costs less on the held-out images. A channel
    has the finer steps the more of an error in it reaches the image, unless they are to be `equal_steps`.
    """
    config, progress = config or EntropyModelConfig(), progress or FittingProgress()
    autoencoder = copy.deepcopy(autoencoder).eval().requires_grad_(False)
    latents = encoded(autoencoder, training, progress)
    ratios = [1.0] * latents.shape[1]
    if not equal_steps:
        learned = learned_step(autoencoder)
        ratios = step_ratios(autoencoder, latents) if learned is None else learned_ratios(autoencoder, learned)
    codecs = []
    for kind in dict.fromkeys(["factorized", config.kind]):
        with torch.enable_grad():
            model = fit(latents, replace(config, kind=kind), ratios, on_step=progress.on_step)
        codecs.append(Codec(autoencoder, model, ratios))
    seen = codecs[0].latents(held_out)
    rates = [[mean_rate(codec, held_out, seen, step) for step in FITTED_STEPS] for codec in codecs]
    best = min(range(len(codecs)), key=lambda number: sum(rates[number]))
    measured = [
        measured_step(codecs[best], held_out, seen, step, rates[best][place], rates[0][place])
        for place, step in enumerate(FITTED_STEPS)
    ]
    return Codec(autoencoder, codecs[best].entropy_model, ratios, measured)


def mean_rate(codec: Codec, images: Images, latents: Latents, step: int) -> float:
    """Bits per pixel of the symbols alone."""
    total = sum(codec.bits(codec.quantized(latent, step), step) for latent in latents)
    return total / (len(images) * images.shape[2] * images.shape[3])


def measured_step(
    codec: Codec, images: Images, latents: Latents, step: int, rate: float, factorized_rate: float
) -> MeasuredStep:
    """What a step gives on these images, with the centers of the cells and with their centroids."""
    found = []
    for has_centroids in (False, True):
        header = replace(codec.header((images.shape[2], images.shape[3]), step), has_centroids=has_centroids)
        decoded = codec.images([Symbols(header, codec.quantized(latent, step)) for latent in latents])
        found.append(float(psnr(images, rounded(torch.stack(decoded))).mean()))
    return MeasuredStep(step / POSITIONS, rate, factorized_rate, *found)


def encoded(autoencoder: Autoencoder, training: Iterable[Images], progress: FittingProgress) -> Latents:
    """Latents of the training images, standardized over them here and in the autoencoder from now on."""
    statistics, found = LatentStatistics(), []
    for images in training:
        posterior = autoencoder.unrounded(images.to(autoencoder.latent_mean.device))
        statistics.add(posterior)
        found.append(posterior.mode().cpu())
        progress.on_images(len(images))
    if not found:
        raise DataError("there is no training image to fit the codec to")
    latents = torch.cat(found)
    if not latents.isfinite().all():
        raise CheckpointError("the autoencoder gives latents that are not finite numbers")
    mean, std = (value.to(latents).view(-1, 1, 1) for value in (statistics.mean, statistics.std))
    autoencoder.standardize(mean, std)
    return (latents - mean) / torch.where(std > 0, std, torch.ones_like(std))


def step_ratios(autoencoder: Autoencoder, latents: Latents) -> list[float]:
    """The step of each channel beside the others': where noise in each makes the same squared error in the image.

    At high rates this is the best there is for a linear decoder: what a bit buys is then the same in every channel.
    """
    chosen = latents[torch.linspace(0, len(latents) - 1, min(MOST_NUDGED, len(latents))).long()]
    chosen = chosen.to(autoencoder.latent_mean)
    noise = NUDGE * torch.randn(chosen.shape, generator=generator(0, "step ratios")).to(chosen)
    images = autoencoder.decode(chosen)
    gains = []
    for channel in range(latents.shape[1]):
        nudged = chosen.clone()
        nudged[:, channel] += noise[:, channel]
        gains.append((autoencoder.decode(nudged) - images).double().square().mean().sqrt())
    logs = torch.stack(gains).cpu().clamp_min(1e-12).log()
    return in_parts((logs.mean() - logs).exp().clamp(1 / FURTHEST_RATIO, FURTHEST_RATIO))


def learned_step(autoencoder: Autoencoder) -> float | None:
    """The step of a codec at which each channel has the step that its bottleneck has learned; None if it rounds none.

    It is the geometric mean of those, in standard deviations; one of 1 or more, of a channel that is mostly 0, counts
    as 1.
    """
    if autoencoder.bottleneck.cell is None:
        return None
    steps = autoencoder.bottleneck.cell / autoencoder.latent_std
    return float(steps.detach().clamp(max=1).log().mean().exp())


def learned_ratios(autoencoder: Autoencoder, learned: float) -> list[float]:
    """What makes the learned steps of that one."""
    assert autoencoder.bottleneck.cell is not None
    ratios = autoencoder.bottleneck.cell / autoencoder.latent_std / learned
    return in_parts(ratios.detach().flatten().cpu().clamp(1 / FURTHEST_LEARNED_RATIO, FURTHEST_LEARNED_RATIO))


def in_parts(ratios: Tensor) -> list[float]:
    """Ratios to the nearest that are exact."""
    return [max(round(float(ratio) * RATIO_PARTS), 1) / RATIO_PARTS for ratio in ratios]
