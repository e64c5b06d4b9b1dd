"""Figures on held-out images, beside what linear codes of the same size reach."""

import math
from pathlib import Path

import numpy as np
import torch

from ldm.autoencoder.config import ReconstructionObjectiveConfig
from ldm.autoencoder.dictionary import decoder_features, has_features
from ldm.autoencoder.latent_diagnostics import encoder_jacobian, spectrum_slope
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.restoration import restore
from ldm.data.batches import iter_batches
from ldm.data.config import DataSourceConfig
from ldm.data.datasets import Dataset
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.objective import loss_by_sigma
from ldm.evaluation.metrics import linear_restoration_psnr, patch_pca_psnr, pca_psnr, psnr
from ldm.latents import LatentCache
from ldm.pictures import grid, reconstruction_panel, save_png, upscaled
from ldm.pipeline import DiffusionModelConfig, LatentDiffusion
from ldm.randomness import StepRandom, generator
from ldm.shapes import Images

MAX_IMAGES_FOR_PCA = 5000  # images, and fewer where together they have more values than
MAX_VALUES_FOR_PCA = 10**8


def eval_images(dataset: Dataset, config: DataSourceConfig, indices: list[int]) -> Images:
    """These images in their plain views, as one tensor."""
    return torch.cat([images for _, images in iter_batches(dataset, config, indices)])


@torch.no_grad()
def latent_statistics(
    autoencoder: Autoencoder, dataset: Dataset, config: DataSourceConfig, indices: list[int], device: torch.device
) -> LatentStatistics:
    """The statistics of the latents of these images, in their plain views."""
    statistics = LatentStatistics()
    for _, images in iter_batches(dataset, config, indices):
        statistics.add(autoencoder.encode(images.to(device)))
    return statistics


@torch.no_grad()
def held_out_psnr(
    autoencoder: Autoencoder, dataset: Dataset, config: DataSourceConfig, indices: list[int], device: torch.device
) -> float:
    """Mean over the images of their PSNR in dB."""
    values = []
    for _, images in iter_batches(dataset, config, indices):
        values.append(psnr(images, autoencoder.reconstruct(images.to(device)).cpu()))
    return torch.cat(values).mean().item()


def pca_baselines(
    dataset: Dataset, config: DataSourceConfig, train: list[int], held_out: list[int], latent: tuple[int, int, int]
) -> dict[str, float | None]:
    """PSNR in dB of global PCA with as many numbers per image, and of PCA per patch with as many numbers per patch.

    The latter is None where there is one patch only: it is the former.
    """
    channels, height, width = latent
    most = max(min(MAX_IMAGES_FOR_PCA, MAX_VALUES_FOR_PCA // math.prod(config.shape)), 1)
    images, others = (
        eval_images(dataset, config, indices[:: -(-len(indices) // most)]) for indices in (train, held_out)
    )
    return {
        "pca_psnr": pca_psnr(images, others, channels * height * width),
        "patch_pca_psnr": (
            None if height == width == 1 else patch_pca_psnr(images, others, config.sides[1] // width, channels)
        ),
    }


@torch.no_grad()
def restoration_metrics(
    autoencoder: Autoencoder,
    objective: ReconstructionObjectiveConfig,
    dataset: Dataset,
    config: DataSourceConfig,
    train: list[int],
    held_out: list[int],
    device: torch.device,
) -> dict[str, float | None]:
    """How well held-out images come back that the objective's corruption was done to, with noise of a fixed seed.

    PSNR in dB of the corrupted images, of what the autoencoder and the best linear denoiser make of them, and the gain
    over both. That denoiser is fitted to up to 5,000 training images, four times corrupted. Where what is visible was
    not learned and comes from the image, it does for the linear one, too.
    """
    if objective.corruption is None or objective.target != "images":
        return {}
    most = max(min(MAX_IMAGES_FOR_PCA, MAX_VALUES_FOR_PCA // math.prod(config.shape)), 1)
    clean, others = (eval_images(dataset, config, each[:: -(-len(each) // most)]) for each in (train, held_out))
    patch = autoencoder.network.downsampling
    seen = [
        objective.corruption(clean, StepRandom(draw, 0, len(clean)), name="input", patch=patch).values
        for draw in range(1, 5)
    ]
    corrupted, restored, known = [], [], []
    for number, images in enumerate(others.split(64)):
        found = restore(autoencoder, objective, images.to(device), StepRandom(0, number, len(images)))
        corrupted.append(found.corrupted.cpu())
        restored.append(found.images.cpu())
        known.append(found.known.cpu())
    before, after = (psnr(others, torch.cat(each)).mean().item() for each in (corrupted, restored))
    linear = linear_restoration_psnr(clean, seen, others, torch.cat(corrupted), torch.cat(known))
    return {
        "corrupted_psnr": before,
        "restored_psnr": after,
        "linear_restoration_psnr": linear,
        "gain_over_corrupted": after - before,
        "gain_over_linear": after - linear,
    }


@torch.no_grad()
def head_accuracy(
    autoencoder: Autoencoder, dataset: Dataset, config: DataSourceConfig, indices: list[int], device: torch.device
) -> float:
    """The fraction of these images whose class the head reads correctly, with the statistics of the training."""
    assert autoencoder.head is not None
    right = 0
    for chunk, images in iter_batches(dataset, config, indices):
        read = autoencoder.head(autoencoder.encode(images.to(device)).mean.mean((2, 3))).argmax(1)
        right += int((read.cpu().numpy() == dataset.labels[chunk]).sum())
    return right / len(indices)


class ReconstructionPanel:
    """The same few held-out images, reconstructed again and again, corrupted as the objective says, if it does."""

    def __init__(
        self,
        dataset: Dataset,
        config: DataSourceConfig,
        indices: np.ndarray,
        count: int = 8,
        objective: ReconstructionObjectiveConfig | None = None,
    ):
        chosen = indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]
        self.images = eval_images(dataset, config, chosen.tolist())
        self.objective = objective or ReconstructionObjectiveConfig()

    @torch.no_grad()
    def draw(self, autoencoder: Autoencoder, path: Path) -> dict[str, float]:
        """Save input, reconstruction and four times their difference; returns their figures and their latents'.

        Mean PSNR in dB, spectrum slope, encoder Jacobian; a figure that is not defined is left out. The second row is
        what the encoder saw, if that was something else. What the units of the code stand for is drawn beside it.
        """
        device = next(autoencoder.parameters()).device
        images = self.images.to(device)
        restored = restore(autoencoder, self.objective, images, StepRandom(0, 0, len(images)))
        reconstruction = restored.images.cpu()
        seen = None if self.objective.corruption is None else restored.corrupted.cpu()
        save_png(upscaled(reconstruction_panel(self.images, reconstruction, seen)), path)
        if has_features(autoencoder):
            features = upscaled(grid(decoder_features(autoencoder, images).cpu(), columns=8))
            save_png(features, path.with_name(path.name.replace("step", "features")))
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


class SamplePanel:
    """The same seeds sampled, and the same held-out latents denoised, again and again."""

    sigmas = (0.1, 0.3, 1.0, 3.0, 10.0)

    def __init__(
        self,
        autoencoder: Autoencoder,
        description: DiffusionModelConfig,
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
        save_png(upscaled(grid(images, columns)), path)
        if self.latents is None:
            return {}
        device = next(denoiser.parameters()).device
        losses = loss_by_sigma(denoiser, self.latents, self.labels.to(device), list(self.sigmas), seed=0)
        return {f"held_out_sigma_{sigma:g}": loss for sigma, loss in losses.items()}
