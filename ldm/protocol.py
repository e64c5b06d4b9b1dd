"""The fixed protocol by which an autoencoder is measured: the same figures for any number of processes.

Each image is seen in its plain view, reconstructed from the mode of its posterior, and rounded to 8 bits, as is the
reconstruction, before anything is measured. Figures are means over the images, in float64.
"""

import hashlib
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.autoencoder.diagnostics import encoder_jacobian, power_spectrum, slope_of
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.statistics import Statistics
from ldm.data.batches import in_chunks
from ldm.data.datasets import Dataset
from ldm.data.settings import DataSettings
from ldm.errors import CheckpointError
from ldm.evaluation import pca_figures, plain_images
from ldm.judges import Distance, Extractor
from ldm.metrics import frechet_distance, psnr, ssim
from ldm.nn.weights import sha256_of
from ldm.randomness import generator
from ldm.shapes import Images, to_float, to_uint8
from ldm.training.processes import Processes

IMAGES_FOR_JACOBIAN = 32
PACKAGES = ("ldm", "torch", "torchvision", "diffusers", "torchmetrics", "torch-fidelity", "lpips", "numpy", "pillow")


@dataclass(frozen=True)
class Pictures:
    """Which images are measured: those of `indices`, and of `training`, if any, what the anchors are fitted to."""

    dataset: Dataset
    settings: DataSettings
    split: str  # which part of the data set they are: held-out, training, all
    indices: list[int]
    training: list[int]


@dataclass(frozen=True)
class Batch:
    """What a few images and their reconstructions amount to: small enough to travel between processes."""

    values: dict[str, Tensor]  # one number per image, by figure
    features: tuple[Tensor, Tensor] | None
    digests: list[bytes]  # sha256 of each image's bytes
    statistics: Statistics
    power: Tensor
    shapes: tuple[list[int], list[int]]  # of an image and of a latent, channels first
    unreadable: list[str]  # the images so far that another has replaced


def evaluate(
    autoencoder: Autoencoder,
    pictures: Pictures,
    processes: Processes,
    *,
    distance: Distance | None = None,
    extractor: Extractor | None = None,
    batch_size: int = 32,
    on_images: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """The protocol, the figures, and what they were measured on, ready for JSON; the same on every process.

    `on_images` is called with the number of images of each batch as it is done.
    """
    autoencoder.to(processes.device).eval()
    indices = pictures.indices
    parts = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]

    def measure(number: int) -> Batch:
        ((_, images),) = in_chunks(pictures.dataset, pictures.settings, parts[number], batch_size)
        batch = measured(autoencoder, images.to(processes.device), distance, extractor)
        return replace(batch, unreadable=pictures.dataset.bad)

    batches = []
    for batch in processes.results(len(parts), measure):
        batches.append(batch)
        on_images(len(batch.digests))
    return next(processes.results(1, lambda _: report(autoencoder, pictures, batches, distance, extractor)))


@torch.no_grad()
def measured(autoencoder: Autoencoder, images: Images, distance: Distance | None, extractor: Extractor | None) -> Batch:
    """Everything about a batch that the report is made of."""
    posterior = autoencoder.encode(images)
    decoded = autoencoder.decode(posterior.mode())[..., : images.shape[2], : images.shape[3]]
    if not decoded.isfinite().all():
        raise CheckpointError("the autoencoder gives reconstructions that are not finite numbers")
    pixels = to_uint8(images)
    real, reconstruction = to_float(pixels), to_float(to_uint8(decoded))
    doubles = (real, reconstruction) if real.device.type != "mps" else (real.cpu(), reconstruction.cpu())  # it has none
    values = {
        "psnr": psnr(*doubles),
        "ssim": ssim(*doubles),
        "kl_per_latent_element": posterior.kl() / posterior.mean[0].numel(),
    }
    if distance is not None:
        values[distance.name] = distance.measure(real, reconstruction)
    features = None
    if extractor is not None:
        features = extractor.features(real).float().cpu(), extractor.features(reconstruction).float().cpu()
    statistics = Statistics()
    statistics.add(posterior)
    return Batch(
        {name: value.double().cpu() for name, value in values.items()},
        features,
        [hashlib.sha256(image.cpu().numpy().tobytes()).digest() for image in pixels],
        statistics,
        power_spectrum(posterior.mode()),
        (list(images.shape[1:]), list(posterior.mean.shape[1:])),
        [],
    )


def report(
    autoencoder: Autoencoder,
    pictures: Pictures,
    batches: list[Batch],
    distance: Distance | None,
    extractor: Extractor | None,
) -> dict[str, Any]:
    """All batches as one report."""
    image, latent = batches[0].shapes
    figures: dict[str, Any] = {
        name: torch.cat([batch.values[name] for batch in batches]).mean().item() for name in batches[0].values
    }
    scaled = pictures.settings.resize
    protocol: dict[str, Any] = {
        "views": ("scaled, bicubic and antialiased, to just cover the size; " if scaled else "")
        + "cropped in the center",
        "split": pictures.split,
        "image": image,
        "latent": latent,
        "reconstruction": "from the mode of the posterior, clamped",
        "rounding": "images and reconstructions to 8 bits, before every figure",
        "psnr": "dB, of each image with a peak of 255, at most 100; mean over the images",
        "ssim": "Gaussian window of 11 pixels, sigma 1.5, range 255, mean over channels; smaller for smaller images",
        "anchors": f"PCA fitted to {len(pictures.training)} training images" if pictures.training else None,
        "distance": distance and {"name": distance.name, "weights": distance.reference},
        "frechet": None,
    }
    if extractor is not None:
        real, reconstructed = (torch.cat(rows) for rows in zip(*_features(batches), strict=True))
        figures[extractor.name] = frechet_distance(real, reconstructed)
        protocol["frechet"] = {
            "name": extractor.name,
            "weights": extractor.reference,
            "dimensions": real.shape[1],
            "fewer_images_than_dimensions": len(real) <= real.shape[1],
        }
    digests = [digest for batch in batches for digest in batch.digests]
    figures |= anchors(pictures, image, latent) | latent_figures(autoencoder, pictures, batches)
    figures = {name: finite(value) for name, value in figures.items()}
    return {
        "protocol": protocol,
        "figures": figures,
        "autoencoder": {
            "sha256": sha256_of(autoencoder.state_dict()),
            "parameters": sum(parameter.numel() for parameter in autoencoder.parameters()),
        },
        "data": pictures.dataset.fingerprint,
        "reference": hashlib.sha256(b"".join(digests)).hexdigest(),
        "count": len(digests),
        "unreadable": len({reason for batch in batches for reason in batch.unreadable}),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def finite(figure: Any) -> Any:
    """The figure, or each of several, as JSON can hold it: None where it is no finite number."""
    if isinstance(figure, list):
        return [finite(value) for value in figure]
    return figure if figure is None or math.isfinite(figure) else None


def _features(batches: list[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        assert batch.features is not None
        yield batch.features


def anchors(pictures: Pictures, image: list[int], latent: list[int]) -> dict[str, float | None]:
    """PSNR in dB of PCA with as many numbers, per image and per patch; None without training images to fit it to."""
    factor = image[1] // latent[1]
    if not pictures.training or [latent[1] * factor, latent[2] * factor] != image[1:]:
        return {"pca_psnr": None, "patch_pca_psnr": None}
    channels, height, width = latent
    return pca_figures(
        pictures.dataset, pictures.settings, pictures.training, pictures.indices, (channels, height, width)
    )


def latent_figures(autoencoder: Autoencoder, pictures: Pictures, batches: list[Batch]) -> dict[str, Any]:
    """What the latents of these images are like."""
    statistics, device = Statistics(), next(autoencoder.parameters()).device
    for batch in batches:
        statistics.join(batch.statistics)
    few = spread(pictures.indices, IMAGES_FOR_JACOBIAN)
    images = plain_images(pictures.dataset, pictures.settings, few).to(device)
    return {
        "latent_mean": statistics.mean.tolist(),
        "latent_std": statistics.std.tolist(),
        "latent_spectrum_slope": slope_of(torch.stack([batch.power for batch in batches]).sum(0)),
        "encoder_jacobian": encoder_jacobian(autoencoder, images, generator(0, "jacobian")),
    }


def spread(indices: list[int], count: int) -> list[int]:
    """`count` of them, or all, evenly from the first to the last."""
    return [indices[place] for place in np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]
