"""The images that are measured, and the measurements of each batch, of which the report is made."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.autoencoder.latent_diagnostics import power_spectrum
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder
from ldm.data.datasets import Subset
from ldm.errors import CheckpointError
from ldm.evaluation.feature_networks import FeatureExtractor, PerceptualMetric
from ldm.evaluation.held_out import posterior_sample
from ldm.evaluation.metrics import MS_SSIM_SIDE, SSIM_SIDE, ms_ssim, psnr, ssim
from ldm.evaluation.probes import ProbeInputs, probe_inputs
from ldm.shapes import Images, rounded, to_uint8

IMAGES_FOR_PROBES = 10_000


@dataclass(frozen=True)
class EvaluationSet:
    """The images that are measured, and the training images, if any, that baselines and probes are fitted to."""

    split: str  # which part of the data set is measured: held-out, training, all
    images: Subset
    training: Subset

    @property
    def for_probes(self) -> Subset:
        """The training images that probes are fitted to."""
        return self.training.evenly_spaced(IMAGES_FOR_PROBES)


@dataclass(frozen=True)
class BatchMeasurements:
    """Measurements of one batch: small enough to travel between processes."""

    values: dict[str, Tensor]  # one number per image, by metric
    features: tuple[Tensor, Tensor] | None
    digests: list[bytes]  # sha256 of each image's bytes
    statistics: LatentStatistics
    power: Tensor
    total: Tensor  # of the images, in levels of 8 bits
    used: Tensor  # of each unit of the code, whether it is anywhere not 0
    probe_inputs: ProbeInputs | None  # what probes are given
    shapes: tuple[list[int], list[int]]  # of an image and of a latent, channels first
    unreadable: list[str]  # the images so far that another has replaced


@torch.no_grad()
def measure_batch(
    autoencoder: Autoencoder,
    images: Images,
    indices: Sequence[int],
    metric: PerceptualMetric | None,
    extractor: FeatureExtractor | None,
    probe: str,
    write: Callable[[Tensor, Tensor], object] | None = None,
) -> BatchMeasurements:
    """Everything about a batch that the report is made of; `write` is given its images and reconstructions as uint8.

    `indices` are the images' places in the data set.
    """
    code = autoencoder.raw_posterior(images)
    posterior = code.standardized(autoencoder.latent_mean, autoencoder.latent_std)
    decoded = autoencoder.decode(posterior.mode())[..., : images.shape[2], : images.shape[3]]
    if not decoded.isfinite().all():
        raise CheckpointError("the autoencoder gives reconstructions that are not finite numbers")
    real, reconstruction = rounded(images), rounded(decoded)
    pixels, again = to_uint8(images), to_uint8(decoded)
    if write is not None:
        write(pixels, again)
    doubles = (real, reconstruction) if real.device.type != "mps" else (real.cpu(), reconstruction.cpu())  # it has none
    values = {
        "psnr": psnr(*doubles),
        "kl_per_latent_element": posterior.kl() / posterior.mean[0].numel(),
        "code_l0": (code.mean != 0).flatten(1).sum(1),
        "energy": pixels.cpu().double().square().flatten(1).sum(1),
        "error": (pixels.cpu().double() - again.cpu()).square().flatten(1).sum(1),
    }
    if autoencoder.bottleneck.is_stochastic:
        sample = autoencoder.decode(posterior_sample(posterior, indices))[..., : images.shape[2], : images.shape[3]]
        values["psnr_of_sample"] = psnr(doubles[0], rounded(sample).to(doubles[0].device))
    for name, side, measure in (("ssim", SSIM_SIDE, ssim), ("ms_ssim", MS_SSIM_SIDE, ms_ssim)):
        if min(images.shape[2:]) >= side:
            values[name] = measure(*doubles)
    if metric is not None:
        values[metric.name] = metric.measure(real, reconstruction)
    features = None
    if extractor is not None:
        features = extractor.features(real).float().cpu(), extractor.features(reconstruction).float().cpu()
    statistics = LatentStatistics()
    statistics.add(posterior)
    return BatchMeasurements(
        {name: value.cpu().double() for name, value in values.items()},
        features,
        [hashlib.sha256(image.cpu().numpy().tobytes()).digest() for image in pixels],
        statistics,
        power_spectrum(posterior.mode()),
        pixels.cpu().sum(0, dtype=torch.int32),
        (code.mean != 0).transpose(0, 1).flatten(1).any(1).cpu(),
        None if probe == "none" else probe_inputs(posterior.mode(), images, probe),
        (list(images.shape[1:]), list(posterior.mean.shape[1:])),
        [],
    )
