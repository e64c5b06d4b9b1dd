"""Evaluates an autoencoder by a fixed protocol: the same metrics for any number of processes.

Each image is seen in its evaluation view, reconstructed from the mode of its posterior, and rounded to 8 bits, as is
the reconstruction, before anything is measured. Metrics are means over the images, in float64.
"""

import hashlib
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Tensor

from ldm.autoencoder.latent_diagnostics import encoder_jacobian, power_spectrum, slope_of
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder
from ldm.data.datasets import Subset
from ldm.errors import CheckpointError
from ldm.evaluation.feature_networks import FeatureExtractor, PerceptualMetric
from ldm.evaluation.held_out import pca_baselines
from ldm.evaluation.metrics import frechet_distance, psnr, ssim
from ldm.evaluation.probes import PROBES, ProbeInputs, accuracy, probe_inputs, protocol_entry
from ldm.nn.pretrained_weights import sha256_of
from ldm.randomness import generator
from ldm.shapes import Images, rounded, to_uint8
from ldm.training.processes import Processes

T = TypeVar("T")
IMAGES_FOR_JACOBIAN = 32
IMAGES_FOR_PROBES = 10_000
PACKAGES = (
    "latent-diffusion-trainer",
    "torch",
    "torchvision",
    "diffusers",
    "torchmetrics",
    "torch-fidelity",
    "lpips",
    "numpy",
    "pillow",
)


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


def evaluate(
    autoencoder: Autoencoder,
    evaluated: EvaluationSet,
    processes: Processes,
    *,
    metric: PerceptualMetric | None = None,
    extractor: FeatureExtractor | None = None,
    probe: str = "none",
    batch_size: int = 32,
    on_images: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """The protocol, the metrics, and what they were measured on, ready for JSON; the same on every process.

    `probe` says what of a latent its probes are given: none, mean, flat. `on_images` is called with the number of
    images of each batch as it is done, those that probes are fitted to being counted too.
    """
    autoencoder.to(processes.device).eval()

    def of_batches(images: Subset, work: Callable[[Images], T]) -> Iterator[T]:
        parts = list(images.chunks(batch_size))
        results = processes.map(len(parts), lambda number: work(parts[number].images().to(processes.device)))
        for part, result in zip(parts, results, strict=True):
            on_images(len(part))
            yield result

    def measure(images: Images) -> BatchMeasurements:
        batch = measure_batch(autoencoder, images, metric, extractor, probe)
        return replace(batch, unreadable=evaluated.images.dataset.unreadable)

    batches: list[BatchMeasurements] = []
    for batch in of_batches(evaluated.images, measure):
        if batches:  # as large as an image: one for all
            batches[0].total.add_(batch.total)
            batch = replace(batch, total=batches[0].total)
        batches.append(batch)
    result = next(processes.map(1, lambda _: report(autoencoder, evaluated, batches, metric, extractor)))
    if probe != "none":
        training = of_batches(evaluated.for_probes, lambda images: probe_inputs_of(autoencoder, images, probe))
        measured = [batch.probe_inputs for batch in batches if batch.probe_inputs is not None]
        result["protocol"]["probe"], metrics = run_probes(evaluated, processes, list(training), measured, probe)
        result["metrics"] |= metrics
    return result


@torch.no_grad()
def measure_batch(
    autoencoder: Autoencoder,
    images: Images,
    metric: PerceptualMetric | None,
    extractor: FeatureExtractor | None,
    probe: str,
) -> BatchMeasurements:
    """Everything about a batch that the report is made of."""
    code = autoencoder.raw_posterior(images)
    posterior = code.standardized(autoencoder.latent_mean, autoencoder.latent_std)
    decoded = autoencoder.decode(posterior.mode())[..., : images.shape[2], : images.shape[3]]
    if not decoded.isfinite().all():
        raise CheckpointError("the autoencoder gives reconstructions that are not finite numbers")
    real, reconstruction = rounded(images), rounded(decoded)
    pixels, again = to_uint8(images), to_uint8(decoded)
    doubles = (real, reconstruction) if real.device.type != "mps" else (real.cpu(), reconstruction.cpu())  # it has none
    values = {
        "psnr": psnr(*doubles),
        "ssim": ssim(*doubles),
        "kl_per_latent_element": posterior.kl() / posterior.mean[0].numel(),
        "code_l0": (code.mean != 0).flatten(1).sum(1),
        "energy": pixels.cpu().double().square().flatten(1).sum(1),
        "error": (pixels.cpu().double() - again.cpu()).square().flatten(1).sum(1),
    }
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


def report(
    autoencoder: Autoencoder,
    evaluated: EvaluationSet,
    batches: list[BatchMeasurements],
    metric: PerceptualMetric | None,
    extractor: FeatureExtractor | None,
) -> dict[str, Any]:
    """All batches as one report."""
    image, latent = batches[0].shapes
    metrics: dict[str, Any] = {
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
        "ssim": "Gaussian window of 11 pixels, sigma 1.5, range 255, mean over channels; smaller for smaller images",
        "baselines": f"PCA fitted to {len(evaluated.training)} training images" if evaluated.training else None,
        "distance": metric and {"name": metric.name, "weights": metric.reference},
        "frechet": None,
        "probe": None,
    }
    if extractor is not None:
        real, reconstructed = (torch.cat(rows) for rows in zip(*_features(batches), strict=True))
        metrics[extractor.name] = frechet_distance(real, reconstructed)
        protocol["frechet"] = {
            "name": extractor.name,
            "weights": extractor.reference,
            "dimensions": real.shape[1],
            "fewer_images_than_dimensions": len(real) <= real.shape[1],
        }
    digests = [digest for batch in batches for digest in batch.digests]
    metrics |= baselines(autoencoder, evaluated, image, latent)
    metrics |= latent_metrics(autoencoder, evaluated.images, batches)
    metrics = {name: finite(value) for name, value in metrics.items()}
    if not autoencoder.decodes_images:
        metrics |= dict.fromkeys(("psnr", "ssim", "explained_variance", "pca_psnr", "patch_pca_psnr"))
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
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def finite(metric: Any) -> Any:
    """The metric, or each of several, as JSON can hold it: None where it is not a finite number."""
    if isinstance(metric, list):
        return [finite(value) for value in metric]
    return metric if metric is None or math.isfinite(metric) else None


def _features(batches: list[BatchMeasurements]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        assert batch.features is not None
        yield batch.features


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
    }


@torch.no_grad()
def probe_inputs_of(autoencoder: Autoencoder, images: Images, probe: str) -> ProbeInputs:
    """What probes are given of these images."""
    latents = autoencoder.encode(images).mode()
    if not latents.isfinite().all():
        raise CheckpointError("the autoencoder gives latents that are not finite numbers")
    return probe_inputs(latents, images, probe)


def run_probes(
    evaluated: EvaluationSet, processes: Processes, training: list[ProbeInputs], measured: list[ProbeInputs], probe: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """What the probes are, for the protocol, and how many of the measured images they get right."""
    device = processes.device if processes.device.type != "mps" else torch.device("cpu")  # it has no float64
    train, test = (ProbeInputs.joined(parts, device) for parts in (training, measured))
    labels, truth = (subset.labels.to(device) for subset in (evaluated.for_probes, evaluated.images))
    names = list(PROBES)
    values = processes.map(len(names), lambda number: accuracy(names[number], train, labels, test, truth))
    return protocol_entry(probe, train, evaluated.images.shape), dict(zip(names, values, strict=True))
