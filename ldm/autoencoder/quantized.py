"""The quantized bottleneck: a code that is rounded, and what it costs to store, for a codec that is trained whole."""

import torch
from torch import Tensor, nn

from ldm.autoencoder.bottleneck import LEAST_VARIANCE, Bottleneck, Code, Posterior, moments_of
from ldm.autoencoder.config import QuantizedConfig
from ldm.entropy.config import ENTROPY_MODELS
from ldm.entropy.context_prior import ContextPrior
from ldm.entropy.logistic_mixture import LogisticMixture
from ldm.randomness import StepRandom
from ldm.shapes import full_precision

STEP_SPEED = 8  # of the steps beside the weights: Adam moves all by its learning rate, and a step may have a way to go
LARGEST_LOG_RATIO = 4.0  # between the steps of two channels at the start


class QuantizedBottleneck(Bottleneck):
    """The encoder's output, rounded to multiples of a learned step per channel; its cost is the rate, in nats.

    Rounding has no gradient. In training the rate is that of the output plus uniform noise of one step (Ballé et al.
    2017), whose density is the mass of a cell; the decoder is given the same noise, or the rounded output with the
    gradient straight through, or, `mixed`, the first for the rate and the second for the decoder (Minnen and Singh
    2020). Everywhere else the code is really rounded. The entropy model learns together with the autoencoder, and
    estimates the rate alone; `ldm codec fit` fits one that codes once that is trained.
    """

    config: QuantizedConfig
    wants_uncorrelated = True  # what the entropy model would have to learn otherwise, or cannot

    def __init__(self, config: QuantizedConfig):
        super().__init__(config, config.channels)
        self.relaxation, self.starting_noise = config.relaxation, config.step / 12**0.5
        self.log_step = nn.Parameter(torch.full((config.channels, 1, 1), config.step).log() / STEP_SPEED)
        has_context = ENTROPY_MODELS[config.prior].has_context
        self.prior = ContextPrior(config.channels, config.prior) if has_context else LogisticMixture(config.channels)

    @property
    def cell(self) -> Tensor:
        """The step of each channel, in units of the encoder's output."""
        return (STEP_SPEED * self.log_step).exp()

    def posterior(self, moments: Tensor) -> Posterior:
        code, cell = full_precision(moments), self.cell
        return Posterior((code / cell).round() * cell)

    def unrounded(self, moments: Tensor) -> Posterior:
        return Posterior(full_precision(moments))

    def forward(
        self, moments: Tensor, rng: StepRandom | None = None, statistics: tuple[Tensor, Tensor] | None = None
    ) -> Code:
        code, cell = full_precision(moments), self.cell
        rated = decoded = rounded = self.posterior(moments).mean
        if rng is not None:
            # The value is that of `rounded`; the gradient that of the code and of a constant number of cells beside it.
            straight = code + cell * ((rounded - code) / cell).detach()
            rated = decoded = rounded.detach() + (straight - straight.detach())
        if rng is not None and self.relaxation != "straight-through":
            uniform = rng.uniform("quantization", *code.shape[1:], device=code.device).to(code)
            rated = code + cell * (uniform - 0.5)
            decoded = rated if self.relaxation == "noise" else decoded
        posterior, latents = Posterior(rounded if rng is None else code), Posterior(decoded)
        if statistics is not None:
            posterior, latents = posterior.standardized(*statistics), latents.standardized(*statistics)
        return Code(latents.mean, posterior, lambda: {"rate": self.prior.nats(rated, cell).flatten(1).sum(1)})

    @torch.no_grad()
    def initialize(self, moments: Tensor, gains: Tensor | None = None) -> None:
        mean, square = moments_of(moments.double())
        std = (square - mean.square()).clamp_min(LEAST_VARIANCE).sqrt()
        logs = std.log()
        if gains is not None and gains.any():  # an error of one step is then as large in the image in every channel
            in_image = (std * gains).log()
            in_image = in_image.clamp_min(in_image.max() - LARGEST_LOG_RATIO)
            logs = logs + in_image.mean() - in_image
        self.log_step.add_(logs.view(-1, 1, 1) / STEP_SPEED)
        self.prior.initialize(mean, std)
