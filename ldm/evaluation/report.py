"""The report of an evaluation: its protocol, the metrics, and what they were measured on."""

import hashlib
import math
import platform
from typing import Any

import torch

from ldm.autoencoder.latent_diagnostics import encoder_jacobian, slope_of
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder
from ldm.component.versions import versions_of
from ldm.data.datasets import Subset
from ldm.evaluation.feature_networks import FeatureExtractor, PerceptualMetric
from ldm.evaluation.held_out import noise_metrics, pca_baselines
from ldm.evaluation.measurements import BatchMeasurements, EvaluationSet
from ldm.evaluation.metrics import (
    KID_SUBSET,
    KID_SUBSETS,
    MS_SSIM_POWERS,
    MS_SSIM_SIDE,
    SSIM_SIDE,
    frechet_distance,
    kernel_distance,
)
from ldm.nn.pretrained_weights import sha256_of
from ldm.randomness import generator

IMAGES_FOR_JACOBIAN = 32
IMAGE_METRICS = ("psnr", "psnr_of_sample", "ssim", "ms_ssim")  # null where there are none
SSIM = (
    f"Gaussian window of {SSIM_SIDE} x {SSIM_SIDE} pixels, sigma 1.5, K1 .01, K2 .03, range 255, population covariance;"
    " mean over channels and over the windows inside the image, without padding; for images with smaller sides, none"
)
MS_SSIM = (
    f"five scales, each the 2 x 2 means of the one before, to the powers {' '.join(map(str, MS_SSIM_POWERS))}; windows"
    " as for ssim; negative factors count as 0; of each channel, then their mean; for images with sides below"
    f" {MS_SSIM_SIDE} pixels, none"
)
PACKAGES = (
    "latent-diffusion-trainer",
    "torch",
    "torchvision",
    "diffusers",
    "torch-fidelity",
    "lpips",
    "numpy",
    "pillow",
)


def report(
    autoencoder: Autoencoder,
    evaluated: EvaluationSet,
    batches: list[BatchMeasurements],
    metric: PerceptualMetric | None,
    extractor: FeatureExtractor | None,
) -> dict[str, Any]:
    """All batches as one report."""
    image, latent = batches[0].shapes
    metrics: dict[str, Any] = dict.fromkeys(IMAGE_METRICS) | {
        name: torch.cat([batch.values[name] for batch in batches]).mean().item() for name in batches[0].values
    }
    metrics["explained_variance"] = explained_variance(batches, metrics.pop("energy"), metrics.pop("error"))
    scaled = evaluated.images.dataset.config.resize
    protocol: dict[str, Any] = {
        "views": ("scaled, bicubic and antialiased, to just cover the size; " if scaled else "")
        + "cropped in the center",
        "split": evaluated.split,
        "image": image,
        "latent": latent,
        "reconstruction": "from the mode of the posterior, clamped",
        "rounding": "images and reconstructions to 8 bits, before every metric",
        "psnr": "dB, of each image with a peak of 255, at most 100; mean over the images",
        "psnr_of_sample": "the same, decoded from a posterior sample, with noise by the image's place in the data",
        "ssim": SSIM,
        "ms_ssim": MS_SSIM,
        "baselines": f"PCA fitted to {len(evaluated.training)} training images" if evaluated.training else None,
        "distance": metric and {"name": metric.name, "weights": metric.reference},
        "frechet": None,
        "kernel": None,
        "probe": None,
    }
    if extractor is not None:
        distances, entries = feature_distances(extractor, batches)
        metrics |= distances
        protocol |= entries
    digests = [digest for batch in batches for digest in batch.digests]
    metrics |= baselines(autoencoder, evaluated, image, latent)
    metrics |= latent_metrics(autoencoder, evaluated.images, batches)
    metrics = {name: finite(value) for name, value in metrics.items()}
    if not autoencoder.decodes_images:
        metrics |= dict.fromkeys(
            ("psnr", "psnr_of_sample", "ssim", "ms_ssim", "explained_variance", "pca_psnr", "patch_pca_psnr")
        )
    return {
        "protocol": protocol,
        "metrics": metrics,
        "autoencoder": {
            "sha256": sha256_of(autoencoder.state_dict()),
            "bottleneck": autoencoder.bottleneck.config.kind,
            "parameters": sum(parameter.numel() for parameter in autoencoder.parameters()),
        },
        "data": evaluated.images.dataset.fingerprint,
        "reference": hashlib.sha256(b"".join(digests)).hexdigest(),
        "count": len(digests),
        "unreadable": len({reason for batch in batches for reason in batch.unreadable}),
        "versions": {"python": platform.python_version(), **versions_of(PACKAGES)},
    }


def feature_distances(
    extractor: FeatureExtractor, batches: list[BatchMeasurements]
) -> tuple[dict[str, float], dict[str, Any]]:
    """The Fréchet and the kernel distance between features of images and of reconstructions, and their protocol."""
    pairs = [batch.features for batch in batches if batch.features is not None]
    real, reconstructed = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    count, dimensions = real.shape
    source = {"weights": extractor.reference, "dimensions": dimensions}
    metrics = {
        extractor.frechet_name: frechet_distance(real, reconstructed),
        extractor.kernel_name: kernel_distance(real, reconstructed),
    }
    frechet = {"name": extractor.frechet_name, **source, "fewer_images_than_dimensions": count <= dimensions}
    kernel = {
        "name": extractor.kernel_name,
        **source,
        "estimate": "squared MMD, unbiased, kernel (x y / dimensions + 1)^3; mean over the subsets of torch-fidelity",
        "subsets": KID_SUBSETS if count > KID_SUBSET else 1,
        "subset_size": min(KID_SUBSET, count),
    }
    return metrics, {"frechet": frechet, "kernel": kernel}


def finite(metric: Any) -> Any:
    """The metric, or each of several, as JSON can hold it: None where it is not a finite number."""
    if isinstance(metric, list):
        return [finite(value) for value in metric]
    return metric if metric is None or math.isfinite(metric) else None


def explained_variance(batches: list[BatchMeasurements], energy: float, error: float) -> float | None:
    """1 - ‖image - reconstruction‖² / ‖image - mean image‖², from the mean of ‖image‖² and that of the numerator.

    None where all images are the same.
    """
    total = batches[0].total.double() / sum(len(batch.digests) for batch in batches)
    around = energy - total.square().sum().item()
    return 1 - error / around if around > 1e-12 * energy else None


def baselines(
    autoencoder: Autoencoder, evaluated: EvaluationSet, image: list[int], latent: list[int]
) -> dict[str, float | None]:
    """PSNR in dB of PCA with as many numbers, per image and per patch; None without training images to fit it to."""
    factors = autoencoder.network.downsampling
    divides = [side * factor for side, factor in zip(latent[1:], factors, strict=True)] == image[1:]
    if not len(evaluated.training) or not divides:
        return {"pca_psnr": None, "patch_pca_psnr": None}
    return pca_baselines(evaluated.training, evaluated.images, autoencoder.active_shape((image[1], image[2])))


def latent_metrics(autoencoder: Autoencoder, images: Subset, batches: list[BatchMeasurements]) -> dict[str, Any]:
    """Metrics of the latents of these images."""
    statistics, device = LatentStatistics(), next(autoencoder.parameters()).device
    for batch in batches:
        statistics.join(batch.statistics)
    used = torch.stack([batch.used for batch in batches]).any(0)
    few = images.evenly_spaced(IMAGES_FOR_JACOBIAN).images().to(device)
    return {
        "dead_units": 1 - used.double().mean().item(),
        "latent_mean": statistics.mean.tolist(),
        "latent_std": statistics.std.tolist(),
        "latent_spectrum_slope": slope_of(torch.stack([batch.power for batch in batches]).sum(0)),
        "encoder_jacobian": encoder_jacobian(autoencoder, few, generator(0, "jacobian")),
        **noise_metrics(autoencoder),
    }
