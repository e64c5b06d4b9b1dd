"""Consistency tuning and distillation: the training loss that makes a few-step model of a finished denoiser.

A denoiser answers with the mean of all clean latents that the noisy one may have been made of. A consistency function
answers with the one in which the path of the noisy latent ends, so that a single call draws a sample (Song et al.
2023). On a path all answers are the same, and at σ = 0 the answer is the latent itself.
"""

import torch
from torch import Tensor, nn

from ldm.batch import Condition, LatentBatch, Losses, Step
from ldm.diffusion.denoiser import EDM, Denoiser
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.losses.config import ConsistencyObjectiveConfig
from ldm.diffusion.noise import broadcast_sigma
from ldm.diffusion.samplers.gaussian_steps import gaussian_step
from ldm.nn.repeatable_dropout import DropoutMasks
from ldm.shapes import Latents, NoiseLevels, Scalars

LARGEST_GAP = 9.0  # times smaller is (σ − r) / σ where σ is large than where it is small
SMALLEST_NORM = 1e-6  # keeps the gradient of a norm finite where there is no difference at all


class ConsistencyObjective(nn.Module):
    """E weight(σ, r) ‖D(x + σ n; σ) − sg D(x + r n; r)‖, the norm being a root mean square over the latent.

    Easy consistency tuning (Geng et al. 2024): two levels r < σ of the same clean latent and the same noise, which lie
    on one path in the mean, and no gradient through the lower one (sg). Where r is 0 the answer is x, which is what
    keeps D from being constant. r nears σ in stages by the number of the step:

        r = σ max(0, 1 − shrink^−(stage + 1) (1 + 8 sigmoid(−σ / 2)))

    At first r is mostly 0, and the loss that of a denoiser. Constants are the paper's in units of σ_data = 1.
    The weight is 1 / (σ − r), that of EDM, or 1 / c_out. Both answers have the same dropout mask.

    With `guidance` the noise n is that of the path of the guided denoiser: x becomes x + (w − 1) (C − U), C and U being
    the answers that `guide`, the denoiser as tuning began, gives at σ with the condition and without. With the paths of
    the `denoiser` it becomes U + w (C − U) itself: consistency distillation (Song et al. 2023). Which x was drawn
    then matters no more, so gradients are less noisy and fewer steps are needed. From σ to r it goes by a step of the
    sampler `gaussian`: with the Gaussian of the skip or, of a scalar skip, N(0, 1).
    """

    stage_gap: Tensor

    def __init__(self, denoiser: Denoiser, config: ConsistencyObjectiveConfig, *, guide: Denoiser | None = None):
        super().__init__()
        self.denoiser, self.config = denoiser, config
        self.held_guide = [guide]  # in a list, or it would become a part of this module
        self.register_buffer("stage_gap", torch.ones(()), persistent=False)  # on the device, as it changes

    def forward(self, batch: LatentBatch, step: Step | None = None) -> Losses:
        sigma = broadcast_sigma(batch.sigma, batch.latents)
        lower = self.lower_level(sigma)
        noisy = batch.latents + sigma * batch.noise
        clean = self.guided(batch.latents, noisy, batch.sigma, batch.condition)
        masks = DropoutMasks(self.denoiser)
        # The answer with a gradient comes first: autocast keeps the weights that it has cast, and those that are cast
        # without a gradient would have none in the second one either.
        with masks.drawn():
            denoised = self.denoiser(noisy, batch.sigma, batch.condition)
        with torch.no_grad(), masks.repeated():
            level = torch.where(lower > 0, lower, sigma)  # at 0, which has no logarithm, the answer is not used
            ahead = self.ahead(noisy, clean, sigma, level)
            target = torch.where(lower > 0, self.denoiser(ahead, level.flatten(), batch.condition), clean)
        squares = (denoised - target).square().flatten(1).mean(1)
        loss = (self.weight(sigma, lower) * (squares + SMALLEST_NORM**2).sqrt()).mean()
        return Losses(loss, {"consistency": loss})

    def weight(self, sigma: Tensor, lower: Tensor) -> Scalars:
        """The weight on the norm, one value per sample."""
        if self.config.weighting == "gap":
            return 1 / (sigma - lower).flatten()
        if self.config.weighting == "edm":
            return EDM.c_out(sigma.flatten(), 1.0) ** -2
        return self.denoiser.c_out(sigma.flatten()) ** -1

    def ahead(self, noisy: Latents, clean: Latents, sigma: Tensor, lower: Tensor) -> Latents:
        """The point at a lower level of the path through noisy latents, whose clean ones are said to be `clean`."""
        (guide,) = self.held_guide
        if guide is None or self.config.paths == "data":
            return clean + lower / sigma * (noisy - clean)
        with noisy.device:
            gaussian = guide.gaussian or LatentGaussian((noisy.shape[1], noisy.shape[2], noisy.shape[3]), rank=0)
        residual = clean - gaussian.denoise(noisy, sigma)
        return gaussian_step(gaussian, noisy, residual, sigma.flatten(1), lower.flatten(1))

    def lower_level(self, sigma: Tensor) -> Tensor:
        """r, the level whose answer is aimed at, in the stage that has begun; the shape is that of `sigma`."""
        return sigma * (1 - self.stage_gap * (1 + (LARGEST_GAP - 1) * torch.sigmoid(-sigma / 2))).clamp_min(0)

    @torch.no_grad()
    def guided(self, clean: Latents, noisy: Latents, sigma: NoiseLevels, condition: Condition) -> Latents:
        """What the clean latents are replaced by: the answer of the guide, or what keeps to that of the guided one.

        With paths of data and guidance x + (w − 1) (C − U), which in the mean is the guided answer U + w (C − U), as
        the mean of the clean latents is C; themselves without.
        """
        (guide,) = self.held_guide
        if guide is None:
            return clean
        answer: Tensor = guide(noisy, sigma, condition)
        end = clean if self.config.paths == "data" else answer
        if self.config.guidance == 1:
            return end
        return end + (self.config.guidance - 1) * (answer - guide(noisy, sigma))


class ConsistencyStages:
    """The schedule of a consistency objective: in which step which stage begins."""

    def __init__(self, objective: ConsistencyObjective, steps: int):
        self.objective, self.steps = objective, steps

    def window(self, step: int) -> tuple[int, int]:
        """The learning rate knows no stages."""
        return 0, self.steps

    def phase(self, step: int) -> int:
        """A stage is a number that comes with the step."""
        return 0

    def begin_step(self, step: int) -> None:
        """Tell the objective its stage; nothing is drawn from, so a resumed run has the same."""
        config = self.objective.config
        stage = min(config.stages * step // self.steps, config.stages - 1)
        self.objective.stage_gap.fill_(config.shrink ** -(stage + 1))
