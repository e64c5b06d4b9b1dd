"""Metrics on held-out images (validation), beside what linear codes of the same size reach."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.config import ReconstructionObjectiveConfig
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.restoration import restore
from ldm.data.datasets import Subset
from ldm.evaluation.metrics import linear_restoration_psnr, patch_pca_psnr, pca_psnr, psnr
from ldm.randomness import StepRandom, generator
from ldm.shapes import Latents, rounded

T = TypeVar("T")
MOST_MEASURED = 100_000  # images; of more, as many that are evenly spaced are measured, which is said
MAX_IMAGES_FOR_PCA = 5000  # and fewer where together they have more values than
MAX_VALUES_FOR_PCA = 10**8


class Spread(Protocol):
    """`work(0)`, `work(1)`, ... in order, computed by whichever process: `Processes.map`, or `alone`."""

    def __call__(self, jobs: int, work: Callable[[int], T], /) -> Iterable[T]: ...


def alone(jobs: int, work: Callable[[int], T]) -> Iterable[T]:
    """All of them, by this process."""
    return map(work, range(jobs))


def of_chunks(images: Subset, measure: Callable[[Subset], T], spread: Spread) -> Iterable[T]:
    """What is measured of 64 images at a time, in their order."""
    chunks = list(images.chunks())
    return spread(len(chunks), lambda number: measure(chunks[number]))


@torch.no_grad()
def latent_statistics(
    autoencoder: Autoencoder, images: Subset, device: torch.device, spread: Spread = alone
) -> LatentStatistics:
    """The statistics of the latents of these images."""

    def measure(chunk: Subset) -> LatentStatistics:
        statistics = LatentStatistics()
        statistics.add(autoencoder.encode(chunk.images().to(device)))
        return statistics

    whole = LatentStatistics()
    for part in of_chunks(images, measure, spread):
        whole.join(part)
    return whole


@torch.no_grad()
def held_out_psnr(autoencoder: Autoencoder, images: Subset, device: torch.device, spread: Spread = alone) -> float:
    """Mean over the images of their PSNR in dB, images and reconstructions rounded to 8 bits as in `ldm evaluate`."""

    def measure(chunk: Subset) -> Tensor:
        pixels = chunk.images().to(device)
        return psnr(rounded(pixels), rounded(autoencoder.reconstruct(pixels))).cpu()

    return torch.cat([*of_chunks(images, measure, spread)]).mean().item()


@torch.no_grad()
def held_out_psnr_of_sample(
    autoencoder: Autoencoder, images: Subset, device: torch.device, spread: Spread = alone
) -> float | None:
    """The same, decoded from a sample of each posterior, as a denoiser's latents are; None of a deterministic code."""
    if not autoencoder.bottleneck.is_stochastic:
        return None

    def measure(chunk: Subset) -> Tensor:
        pixels = chunk.images().to(device)
        latents = posterior_sample(autoencoder.encode(pixels), chunk.indices)
        height, width = pixels.shape[2:]
        return psnr(rounded(pixels), rounded(autoencoder.decode(latents)[..., :height, :width])).cpu()

    return torch.cat([*of_chunks(images, measure, spread)]).mean().item()


def posterior_sample(posterior: Posterior, indices: Sequence[int]) -> Latents:
    """A sample for each image, whose noise depends on the image's place in the data set alone."""
    shape, dtype = posterior.mean.shape[1:], posterior.mean.dtype
    noise = [torch.randn(shape, generator=generator(0, "posterior sample", index), dtype=dtype) for index in indices]
    return posterior.reparameterize(torch.stack(noise).to(posterior.mean.device))


def noise_metrics(autoencoder: Autoencoder) -> dict[str, Any]:
    """The noise of a code whose noise is set, in units of the standardized latent, and the bits that it leaves.

    A Gaussian channel of variance 1 with noise of standard deviation s in it carries ½ log₂(1 / s²) bits per number,
    which is ½ log₂(1 + 1/τ²) if τ is the noise beside a code of variance 1.
    """
    noise = autoencoder.latent_noise
    if noise is None:
        return {"latent_noise": None, "bits_per_latent_element": None}
    return {"latent_noise": noise.tolist(), "bits_per_latent_element": -noise.double().log2().mean().item()}


def for_pca(images: Subset) -> Subset:
    """As many of the images as PCA is fitted to and measured on."""
    most = max(min(MAX_IMAGES_FOR_PCA, MAX_VALUES_FOR_PCA // math.prod(images.shape)), 1)
    return images.every(-(-len(images) // most))


def pca_baselines(training: Subset, held_out: Subset, latent: tuple[int, int, int]) -> dict[str, float | None]:
    """PSNR in dB of global PCA with as many numbers per image, and of PCA per patch with as many numbers per patch.

    The latter is None where there is one patch only: it is the former.
    """
    channels, height, width = latent
    images, others = (for_pca(subset).images() for subset in (training, held_out))
    patch = training.shape[2] // width
    return {
        "pca_psnr": pca_psnr(images, others, channels * height * width),
        "patch_pca_psnr": None if height == width == 1 else patch_pca_psnr(images, others, patch, channels),
    }


@torch.no_grad()
def restoration_metrics(
    autoencoder: Autoencoder,
    objective: ReconstructionObjectiveConfig,
    training: Subset,
    held_out: Subset,
    device: torch.device,
) -> dict[str, float | None]:
    """How well held-out images are restored from the objective's corruption, with noise of a fixed seed.

    PSNR in dB of the corrupted images, of their restorations by the autoencoder and by the best linear denoiser, and
    the gain over both. That denoiser is fitted to up to 5,000 training images, four times corrupted. Where visible
    elements were not learned and come from the image, they do for the linear one, too.
    """
    if objective.corruption is None or objective.target != "images":
        return {}
    clean, others = (for_pca(subset).images() for subset in (training, held_out))
    patch = autoencoder.network.downsampling
    seen = [
        objective.corruption(clean, StepRandom(draw, 0, len(clean)), name="input", patch=patch).values
        for draw in range(1, 5)
    ]
    corrupted, restored, keep_masks = [], [], []
    for number, images in enumerate(others.split(64)):
        restoration = restore(autoencoder, objective, images.to(device), StepRandom(0, number, len(images)))
        corrupted.append(restoration.corrupted.cpu())
        restored.append(restoration.images.cpu())
        keep_masks.append(restoration.keep_mask.cpu())
    before, after = (psnr(others, torch.cat(each)).mean().item() for each in (corrupted, restored))
    linear = linear_restoration_psnr(clean, seen, others, torch.cat(corrupted), torch.cat(keep_masks))
    return {
        "corrupted_psnr": before,
        "restored_psnr": after,
        "linear_restoration_psnr": linear,
        "gain_over_corrupted": after - before,
        "gain_over_linear": after - linear,
    }


@torch.no_grad()
def head_accuracy(autoencoder: Autoencoder, images: Subset, device: torch.device, spread: Spread = alone) -> float:
    """The fraction of these images that the classification head gets right, with the statistics of the training."""
    head = autoencoder.head
    assert head is not None

    def measure(chunk: Subset) -> int:
        predicted = head(autoencoder.encode(chunk.images().to(device)).mean.mean((2, 3))).argmax(1)
        return int((predicted.cpu() == chunk.labels).sum())

    return sum(of_chunks(images, measure, spread)) / len(images)
