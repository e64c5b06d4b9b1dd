"""Figures on held-out images, beside what linear codes of the same size reach."""

import math
from pathlib import Path

import numpy as np
import torch

from ldm.autoencoder.diagnostics import encoder_jacobian, spectrum_slope
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.statistics import Statistics
from ldm.data.batches import in_chunks
from ldm.data.datasets import Dataset
from ldm.data.settings import DataSettings
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.objective import loss_by_sigma
from ldm.latents import LatentCache
from ldm.metrics import patch_pca_psnr, pca_psnr, psnr
from ldm.pictures import enlarged, grid, reconstruction_panel, save_png
from ldm.pipeline import Description, LatentDiffusion
from ldm.randomness import generator
from ldm.shapes import Images

MOST_FOR_PCA = 5000  # images, and fewer where together they have more values than
VALUES_FOR_PCA = 10**8


def plain_images(dataset: Dataset, settings: DataSettings, indices: list[int]) -> Images:
    """These images in their plain views, as one tensor."""
    return torch.cat([images for _, images in in_chunks(dataset, settings, indices)])


@torch.no_grad()
def latent_statistics(
    autoencoder: Autoencoder, dataset: Dataset, settings: DataSettings, indices: list[int], device: torch.device
) -> Statistics:
    """The statistics of the latents of these images, in their plain views."""
    statistics = Statistics()
    for _, images in in_chunks(dataset, settings, indices):
        statistics.add(autoencoder.encode(images.to(device)))
    return statistics


@torch.no_grad()
def held_out_psnr(
    autoencoder: Autoencoder, dataset: Dataset, settings: DataSettings, indices: list[int], device: torch.device
) -> float:
    """Mean over the images of their PSNR in dB."""
    values = []
    for _, images in in_chunks(dataset, settings, indices):
        values.append(psnr(images, autoencoder.reconstruct(images.to(device)).cpu()))
    return torch.cat(values).mean().item()


def pca_figures(
    dataset: Dataset, settings: DataSettings, train: list[int], held_out: list[int], latent: tuple[int, int, int]
) -> dict[str, float | None]:
    """PSNR in dB of global PCA with as many numbers per image, and of PCA per patch with as many numbers per patch."""
    channels, height, width = latent
    most = max(min(MOST_FOR_PCA, VALUES_FOR_PCA // math.prod(settings.shape)), 1)
    images, others = (
        plain_images(dataset, settings, indices[:: -(-len(indices) // most)]) for indices in (train, held_out)
    )
    return {
        "pca_psnr": pca_psnr(images, others, channels * height * width),
        "patch_pca_psnr": patch_pca_psnr(images, others, settings.sides[1] // width, channels),
    }


class Reconstructions:
    """The same few held-out images, reconstructed again and again."""

    def __init__(self, dataset: Dataset, settings: DataSettings, indices: np.ndarray, count: int = 8):
        chosen = indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]
        self.images = plain_images(dataset, settings, chosen.tolist())

    @torch.no_grad()
    def draw(self, autoencoder: Autoencoder, path: Path) -> dict[str, float]:
        """Save input, reconstruction and four times their difference; returns their figures and their latents'.

        Mean PSNR in dB, spectrum slope, encoder Jacobian; a figure that is not defined is left out.
        """
        device = next(autoencoder.parameters()).device
        reconstruction = autoencoder.reconstruct(self.images.to(device)).cpu()
        save_png(enlarged(reconstruction_panel(self.images, reconstruction)), path)
        figures = {
            "panel_psnr": psnr(self.images, reconstruction).mean().item(),
            **self.of_latents(autoencoder, device),
        }
        return {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}

    def of_latents(self, autoencoder: Autoencoder, device: torch.device) -> dict[str, float | None]:
        """What the latents of these images are like."""
        images = self.images.to(device)
        return {
            "latent_spectrum_slope": spectrum_slope(autoencoder.encode(images).mode()),
            "encoder_jacobian": encoder_jacobian(autoencoder, images, generator(0, "jacobian")),
        }


class Samples:
    """The same seeds sampled, and the same held-out latents denoised, again and again."""

    sigmas = (0.1, 0.3, 1.0, 3.0, 10.0)

    def __init__(
        self,
        autoencoder: Autoencoder,
        description: Description,
        latents: LatentCache,
        labels: np.ndarray,
        held_out: np.ndarray,
        count: int = 512,
    ):
        self.autoencoder, self.description = autoencoder, description
        chosen = held_out[:count].tolist()
        self.latents = latents.posterior(chosen).mode() if chosen else None
        self.labels = torch.from_numpy(labels[chosen])

    def draw(self, denoiser: Denoiser, path: Path, num: int = 40, steps: int = 12) -> dict[str, float]:
        """Save a grid of samples; returns the held-out loss at fixed noise levels."""
        model = LatentDiffusion(self.autoencoder, denoiser, self.description)
        columns = len(self.description.classes)
        columns = columns if 4 <= columns <= 16 else 8
        images = model.sample(columns * (num // columns), steps=steps, sampler="dpm++2m")
        save_png(enlarged(grid(images, columns)), path)
        if self.latents is None:
            return {}
        device = next(denoiser.parameters()).device
        losses = loss_by_sigma(denoiser, self.latents, self.labels.to(device), list(self.sigmas), seed=0)
        return {f"held_out_sigma_{sigma:g}": loss for sigma, loss in losses.items()}
