"""The training loss of the denoiser: denoising at every noise level, and what is random in it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.batch import Condition, LatentBatch, Losses, Step
from ldm.diffusion.denoiser import EDM, Denoiser
from ldm.diffusion.losses.config import WEIGHTINGS, ObjectiveConfig, PredictionWeightingConfig, WeightingConfig
from ldm.diffusion.losses.weighting import Uncertainty
from ldm.diffusion.noise import broadcast_sigma
from ldm.randomness import StepRandom, generator
from ldm.shapes import Latents


class DenoisingObjective(nn.Module):
    """E weight(σ) ‖D(x + σ n; σ) - x‖², the mean over the batch and the latent.

    The multi-scale denoising objective (Karras et al. 2022, equation 8). Its weight, if nothing else is said, is 1 /
    c_out²: the plain squared error of the network's own output, so that an untrained EDM network scores 1 at every
    noise level. σ, n and the dropped conditions come with the batch, which draws them by `draw` of a
    `losses.noise_distribution` and by `drop_condition` below. An `uncertainty` divides the weight further; it is held,
    not owned, and learns by an objective of its own from the losses in `outputs`, one for each latent.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weighting: WeightingConfig | None = None,
        uncertainty: Uncertainty | None = None,
    ):
        super().__init__()
        self.denoiser, self.weighting = denoiser, weighting or PredictionWeightingConfig()
        self.error_scale = WEIGHTINGS[self.weighting.kind].load()
        self.held_uncertainty = [uncertainty]  # in a list, or it would become a part of this module

    def forward(self, batch: LatentBatch, step: Step | None = None) -> Losses:
        sigma = broadcast_sigma(batch.sigma, batch.latents)
        denoised = self.denoiser(batch.latents + sigma * batch.noise, batch.sigma, batch.condition)
        scale = self.error_scale(self.weighting, self.denoiser, sigma)
        (uncertainty,) = self.held_uncertainty
        if uncertainty is None:
            loss = F.mse_loss(denoised / scale, batch.latents / scale)
            return Losses(loss, {"denoising": loss})
        losses = F.mse_loss(denoised / scale, batch.latents / scale, reduction="none").flatten(1).mean(1)
        with torch.no_grad():
            weights = (-uncertainty(batch.sigma)).exp()
        outputs = {"sigma": batch.sigma, "losses": losses.detach()}
        return Losses((weights * losses).mean(), {"denoising": losses.mean()}, outputs)


def drop_condition(
    config: ObjectiveConfig, condition: Condition, rng: StepRandom, device: torch.device | str = "cpu"
) -> Condition:
    """The conditions of a part of a global batch, on a device, some of them left out, for classifier-free guidance.

    With the probability that the config gives all of an image is left out; of several conditions each, moreover, by
    itself with the same probability.
    """

    def left_out(purpose: str) -> Tensor:
        return rng.uniform(purpose, device=device) < config.condition_dropout

    dropped = condition.dropped(left_out("label dropout"))
    for name in condition.values if len(condition.values) > 1 else ():
        dropped = dropped.dropped(left_out(f"dropout of {name}"), name)
    return dropped


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
