"""What the denoiser is trained to do: find the clean latent in noise of every strength."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.batch import Losses
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.noise import broadcast_sigma
from ldm.randomness import StepRandom, generator
from ldm.shapes import Labels, Latents, NoiseLevels


class LatentBatch(NamedTuple):
    """Clean latents, and everything random that the step needs."""

    latents: Latents
    noise: Latents
    sigma: NoiseLevels
    labels: Labels


class DenoisingObjective(nn.Module):
    """E ||D(x + sigma n; sigma) - x||^2 / c_out(sigma)^2, the mean over the batch and the latent.

    The multi-scale denoising objective (Karras et al. 2022, equation 8): dividing by c_out makes it the plain squared
    error of the network's own output, so that an untrained EDM network scores 1 at every noise level.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, batch: LatentBatch, rng: StepRandom) -> Losses:
        sigma = broadcast_sigma(batch.sigma, batch.latents)
        denoised = self.denoiser(batch.latents + sigma * batch.noise, batch.sigma, batch.labels)
        scale = self.denoiser.c_out(sigma)
        loss = F.mse_loss(denoised / scale, batch.latents / scale)
        return Losses(loss, {"denoising": loss})


@torch.no_grad()
def loss_by_sigma(
    denoiser: nn.Module, latents: Latents, labels: Labels, sigmas: list[float], *, seed: int, batch_size: int = 256
) -> dict[float, float]:
    """The objective at fixed noise levels with fixed noise: comparable over a run, and between runs.

    On held-out latents it shows overfitting that samples hide.
    """
    found = {}
    for place, level in enumerate(sigmas):
        noise = torch.randn(latents.shape, generator=generator(seed, "held-out noise", place))
        total = 0.0
        for chunk in torch.arange(len(latents)).split(batch_size):
            clean = latents[chunk].to(labels.device)
            sigma = clean.new_full((len(chunk),), level)
            batch = LatentBatch(clean, noise[chunk].to(clean), sigma, labels[chunk])
            total += error_of(denoiser, batch).item() * len(chunk)
        found[level] = total / len(latents)
    return found


def error_of(denoiser: nn.Module, batch: LatentBatch) -> Tensor:
    """The objective's value on one batch."""
    return DenoisingObjective(denoiser)(batch, None).total  # type: ignore[arg-type]
