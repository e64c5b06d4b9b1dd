"""Panels during training: held-out reconstructions and samples as pictures, with their metrics and validation loss."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.autoencoder.config import ReconstructionObjectiveConfig
from ldm.autoencoder.dictionary import dictionary_images, has_dictionary
from ldm.autoencoder.latent_diagnostics import encoder_jacobian, spectrum_slope
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.restoration import restore
from ldm.data.datasets import Subset
from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.model import DiffusionModelConfig
from ldm.diffusion.objective import losses_by_sigma
from ldm.evaluation.metrics import psnr
from ldm.evaluation.report_files import features_beside
from ldm.latents import LatentCache
from ldm.pictures import grid, reconstruction_panel, save_png, upscaled
from ldm.pipeline import LatentDiffusion
from ldm.randomness import StepRandom, generator


class ReconstructionPanel:
    """The same few held-out images, reconstructed again and again, corrupted as the objective says, if it does."""

    def __init__(self, images: Subset, *, count: int = 8, objective: ReconstructionObjectiveConfig | None = None):
        self.images = images.evenly_spaced(count).images()
        self.objective = objective or ReconstructionObjectiveConfig()

    @torch.no_grad()
    def draw(self, autoencoder: Autoencoder, path: Path, settings: Mapping[str, str] | None = None) -> dict[str, float]:
        """Save input, reconstruction and four times their difference; returns metrics of them and of their latents.

        Mean PSNR in dB, spectrum slope, encoder Jacobian; what is not defined is left out. The second row is what the
        encoder saw, if that was something else. The dictionary of a code that has one is drawn beside it.
        """
        device = next(autoencoder.parameters()).device
        images = self.images.to(device)
        restoration = restore(autoencoder, self.objective, images, StepRandom(0, 0, len(images)))
        reconstruction = restoration.images.cpu()
        seen = None if self.objective.corruption is None else restoration.corrupted.cpu()
        save_png(upscaled(reconstruction_panel(self.images, reconstruction, seen)), path, settings)
        if has_dictionary(autoencoder):
            dictionary = upscaled(grid(dictionary_images(autoencoder, images).cpu(), columns=8))
            save_png(dictionary, features_beside(path), settings)
        metrics = {
            "panel_psnr": psnr(self.images, reconstruction).mean().item(),
            "latent_spectrum_slope": spectrum_slope(autoencoder.encode(images).mode()),
            "encoder_jacobian": encoder_jacobian(autoencoder, images, generator(0, "jacobian")),
        }
        return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}


class SamplePanel:
    """The same seeds sampled again and again: the classes in turn or, of other conditions, those of `images`."""

    def __init__(self, autoencoder: Autoencoder, config: DiffusionModelConfig, images: Subset | None = None):
        self.autoencoder, self.config = autoencoder, config
        has_more = images is not None and bool(images.dataset.columns)
        self.condition = images.evenly_spaced(40).condition if images is not None and has_more else None

    def draw(self, denoiser: Denoiser, path: Path, num: int = 40) -> dict[str, float]:
        """Save a grid of samples, of which there are no metrics here."""
        model = LatentDiffusion(self.autoencoder, denoiser, self.config)
        columns = len(model.classes)
        columns = columns if 4 <= columns <= 16 else 8
        own = SAMPLERS[self.config.sampling.sampler]
        how: dict[str, Any] = {} if own.consistency else {"steps": 12, "sampler": "dpm++2m"}
        images = model.sample(columns * (num // columns), conditions=self.condition, **how)
        save_png(upscaled(grid(images, columns)), path)
        return {}


class HeldOutLatents:
    """The same held-out latents denoised again and again, with the same noise: the validation loss."""

    sigmas = (0.1, 0.3, 1.0, 3.0, 10.0)

    def __init__(self, latents: LatentCache, held_out: Subset, *, count: int = 512):
        chosen = held_out.evenly_spaced(count)
        self.groups = [held_out.dataset.groups[index] for index in chosen.indices]
        self.latents = latents.posterior(chosen.indices).mode() if len(chosen) else None
        self.condition = chosen.condition

    def losses(self, denoiser: Denoiser) -> dict[str, Tensor]:
        """The objective for each latent at each noise level, by its name in the log."""
        if self.latents is None:
            return {}
        device = next(denoiser.parameters()).device
        losses = losses_by_sigma(denoiser, self.latents, self.condition, list(self.sigmas), seed=0, device=device)
        return {f"held_out_sigma_{sigma:g}": of_each for sigma, of_each in losses.items()}
