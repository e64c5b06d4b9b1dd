"""The training loss of the denoiser: denoising at every noise level, and what is random in it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.batch import Condition, LatentBatch, Losses, Step
from ldm.diffusion.config import DenoisingObjectiveConfig
from ldm.diffusion.denoiser import EDM, Denoiser
from ldm.diffusion.noise import broadcast_sigma, sample_sigmas
from ldm.randomness import StepRandom, generator
from ldm.shapes import Latents, NoiseLevels


class DenoisingObjective(nn.Module):
    """E ‖D(x + σ n; σ) - x‖² / c_out(σ)², the mean over the batch and the latent.

    The multi-scale denoising objective (Karras et al. 2022, equation 8): dividing by c_out makes it the plain squared
    error of the network's own output, so that an untrained EDM network scores 1 at every noise level. σ, n and the
    dropped conditions come with the batch, which draws them by `draw_sigma` and `drop_condition` below.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, batch: LatentBatch, step: Step | None = None) -> Losses:
        sigma = broadcast_sigma(batch.sigma, batch.latents)
        denoised = self.denoiser(batch.latents + sigma * batch.noise, batch.sigma, batch.condition)
        scale = self.denoiser.c_out(sigma)
        loss = F.mse_loss(denoised / scale, batch.latents / scale)
        return Losses(loss, {"denoising": loss})


def draw_sigma(config: DenoisingObjectiveConfig, rng: StepRandom) -> NoiseLevels:
    """The noise levels of a part of a global batch, from the config's noise distribution."""
    return rng.rows(sample_sigmas(config.noise_distribution, rng.total, rng.generator("sigma")))


def drop_condition(config: DenoisingObjectiveConfig, condition: Condition, rng: StepRandom) -> Condition:
    """The conditions of a part of a global batch, some of them left out, for classifier-free guidance."""
    return condition.dropped(rng.uniform("label dropout") < config.condition_dropout)


@torch.no_grad()
def losses_by_sigma(
    denoiser: Denoiser,
    latents: Latents,
    condition: Condition,
    sigmas: list[float],
    *,
    seed: int,
    device: torch.device,
    batch_size: int = 256,
) -> dict[float, Tensor]:
    """The squared error (1 + σ²) / σ² ‖D − x‖² of each latent at fixed noise levels, float64 on the CPU.

    The noise is fixed, so two denoisers can be compared latent by latent. The weight is that of EDM, whatever the
    parametrization and the skip: a network of zeros scores 1 with the skip of EDM, and less with a better one. On
    held-out latents (validation) it shows overfitting that samples hide.
    """
    losses, condition = {}, condition.to(device)
    for place, level in enumerate(sigmas):
        noise = torch.randn(latents.shape, generator=generator(seed, "held-out noise", place))
        parts = []
        for chunk in torch.arange(len(latents)).split(batch_size):
            clean = latents[chunk].to(device)
            sigma = clean.new_full((len(chunk),), level)
            denoised: Latents = denoiser(clean + level * noise[chunk].to(clean), sigma, condition[chunk.to(device)])
            scale = EDM.c_out(sigma[:1], 1.0)
            errors = F.mse_loss(denoised / scale, clean / scale, reduction="none")
            parts.append(errors.flatten(1).mean(1).cpu().double())
        losses[level] = torch.cat(parts)
    return losses
