"""Bottlenecks (the KL of a VAE, identity, sparse): from the encoder's output to a code, its posterior and its costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ldm.autoencoder.config import BottleneckConfig, GaussianConfig, IdentityConfig, SparseConfig
from ldm.distributed import mean_over_processes
from ldm.randomness import StepRandom
from ldm.shapes import Latents, Scalars, full_precision

LEAST_VARIANCE = 1e-8  # of a channel, when it is divided by its standard deviation
MOMENTS_SHARE = 0.02  # of one step in the running moments of a code whose noise is set


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over the latent: `mean` and `logvar` (log variance), both batch x channels x h x w.

    A deterministic code has no `logvar`: all probability is at the mean.
    """

    mean: Latents
    logvar: Tensor | None = None

    @property
    def variance(self) -> Tensor:
        """exp(logvar), 0 for a deterministic code."""
        return torch.zeros_like(self.mean) if self.logvar is None else self.logvar.exp()

    def sample(self, generator: torch.Generator | None = None) -> Latents:
        """mean + exp(logvar / 2) * noise, with unit Gaussian noise drawn on the CPU from `generator`."""
        if self.logvar is None:
            return self.mean
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.reparameterize(noise.to(self.mean.device))

    def reparameterize(self, noise: Tensor) -> Latents:
        """The sample that this unit Gaussian noise gives (Kingma and Welling 2014, section 2.4)."""
        return self.mean if self.logvar is None else self.mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Latents:
        """The most likely latent, which is the mean."""
        return self.mean

    def kl(self) -> Scalars:
        """KL to the unit Gaussian in nats, summed over the latent: one number per sample; infinite if deterministic."""
        if self.logvar is None:
            return self.mean.new_full((len(self.mean),), torch.inf)
        per_element = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return per_element.flatten(1).sum(1)

    def standardized(self, mean: Tensor, std: Tensor) -> Self:
        """The posterior of (latent - mean) / std, with `mean` and `std` of shape channels x 1 x 1."""
        logvar = None if self.logvar is None else self.logvar - 2 * std.log()
        return type(self)((self.mean - mean) / std, logvar)


@dataclass(frozen=True)
class Code:
    """What a bottleneck returns: the latents that are decoded, their posterior, and what they cost.

    `latents` are a sample in training, else the mode. `costs()` are by name, one number per image in nats, unweighted,
    and computed when asked for; the objective weighs and scales them.
    """

    latents: Latents
    posterior: Posterior
    costs: Callable[[], dict[str, Scalars]] = dict


class Bottleneck(nn.Module):
    """`channels` of the latent, made of `encoder_channels` of the encoder's output."""

    unit_norm = False  # whether the decoder's columns are taken with length 1
    gives_rates = False  # whether the code's values are rates of activation, between 0 and 1
    tracks_usage = False  # whether it knows which units are dead
    is_stochastic = False  # whether its posterior has a variance
    noise: float | None = None  # the posterior's standard deviation where it is set, the code's own being 1
    starting_noise: float | None = None  # that for which a network starts from data, and the code's scale with it
    wants_uncorrelated = False  # whether the channels of a code that starts from data should be uncorrelated

    def __init__(self, config: BottleneckConfig, encoder_channels: int):
        super().__init__()
        self.config, self.channels, self.encoder_channels = config, config.channels, encoder_channels
        self.active_channels = config.channels  # channels that can differ from 0 at one position

    def forward(
        self, moments: Tensor, rng: StepRandom | None = None, statistics: tuple[Tensor, Tensor] | None = None
    ) -> Code:
        """The code of each image, standardized by `statistics` (mean and std per channel) if there are any.

        With `rng`, as in training, the latents are a sample; without, the mode.
        """
        posterior = self.posterior(moments)
        if statistics is not None:
            posterior = posterior.standardized(*statistics)
        latents = posterior.mode()
        if rng is not None and posterior.logvar is not None:
            noise = rng.normal("posterior", *latents.shape[1:], device=latents.device)
            latents = posterior.reparameterize(noise)
        return Code(latents, posterior, lambda: self.costs(posterior))

    def posterior(self, moments: Tensor) -> Posterior:
        """The posterior of each image, not yet standardized."""
        raise NotImplementedError

    @property
    def cell(self) -> Tensor | None:
        """The step of each channel, channels x 1 x 1, to whose multiples the code is rounded; None where it is not."""
        return None

    def unrounded(self, moments: Tensor) -> Posterior:
        """The posterior before a bottleneck that rounds has rounded it: what a codec quantizes by steps of its own."""
        return self.posterior(moments)

    def costs(self, posterior: Posterior) -> dict[str, Scalars]:
        """What the code costs, in nats per image."""
        return {}

    def initialize(self, moments: Tensor, gains: Tensor | None = None) -> None:
        """Take what there is to know of the code from the encoder's output for some training images.

        `gains` say how large an error in the image one in each channel makes, where that is known.
        """

    def reset_usage(self, step: int) -> None:
        """A stage that trains the code begins with this step: all units count as alive."""

    def update_usage(self, code: Tensor, step: float | Tensor, *, is_last: bool = True) -> None:
        """Note which units of the code were active in this step of training, after the update, or how it spreads.

        Called for every micro-batch; `is_last` says that the update came with this one.
        """

    def active_units(self, code: Tensor) -> Tensor:
        """Which units are above 0 anywhere in this batch, on any process: one truth value each."""
        return mean_over_processes((code.detach() > 0).any(0).flatten(1).any(1).float()) > 0

    def dead_units(self, step: float | Tensor) -> Tensor:
        """Which units count as dead at the beginning of a step: one truth value each."""
        return torch.zeros(self.channels, dtype=torch.bool)


class GaussianBottleneck(Bottleneck):
    """A mean and a log variance for each element of the latent.

    The log variance is the second half of the encoder's output, kept in [-30, 20], or set: then the encoder gives means
    alone, each channel is divided by its running standard deviation, and the noise is `noise` beside a code of 1. No
    encoder can gain on the noise by scaling its code up.
    """

    is_stochastic = True
    moments: Tensor  # E[code] and E[code²] per channel, running
    gathered: Tensor  # their sums over the micro-batches of a step so far, and the number of these

    def __init__(self, config: GaussianConfig):
        super().__init__(config, 2 * config.channels if config.noise is None else config.channels)
        self.noise = self.starting_noise = config.noise
        if self.noise is not None:
            self.register_buffer("moments", torch.tensor([0.0, 1.0]).repeat(config.channels, 1).T.contiguous())
            self.register_buffer("gathered", torch.zeros(3, config.channels), persistent=False)

    @property
    def code_std(self) -> Tensor:
        """The running standard deviation of each channel of the encoder's output: channels x 1 x 1."""
        mean, square = self.moments
        return (square - mean.square()).clamp_min(LEAST_VARIANCE).sqrt().view(-1, 1, 1)

    def posterior(self, moments: Tensor) -> Posterior:
        moments = full_precision(moments)
        if self.noise is None:
            mean, logvar = moments.chunk(2, dim=1)
            return Posterior(mean, logvar.clamp(-30.0, 20.0))
        return Posterior(moments / self.code_std, torch.full_like(moments, 2 * math.log(self.noise)))

    def costs(self, posterior: Posterior) -> dict[str, Scalars]:
        return {"kl": posterior.kl()}

    def initialize(self, moments: Tensor, gains: Tensor | None = None) -> None:
        if self.noise is not None:
            mean, square = moments_of(moments.double())
            varies = square - mean.square() > LEAST_VARIANCE  # a channel that never varies keeps its scale
            self.moments.copy_(torch.stack([mean, torch.where(varies, square, mean.square() + 1)]))

    @torch.no_grad()
    def update_usage(self, code: Tensor, step: float | Tensor, *, is_last: bool = True) -> None:
        if self.noise is None:
            return
        moments = moments_of(code * self.code_std)
        self.gathered += torch.cat([moments, torch.ones_like(moments[:1])])
        if is_last:
            self.moments.lerp_(mean_over_processes(self.gathered[:2] / self.gathered[2]), MOMENTS_SHARE)
            self.gathered.zero_()


def moments_of(code: Tensor) -> Tensor:
    """Mean and mean square per channel."""
    return torch.stack([code.mean((0, 2, 3)), code.square().mean((0, 2, 3))])


class IdentityBottleneck(Bottleneck):
    """The encoder's output is the code."""

    def __init__(self, config: IdentityConfig):
        super().__init__(config, config.channels)

    def posterior(self, moments: Tensor) -> Posterior:
        return Posterior(full_precision(moments))


class SparseBottleneck(Bottleneck):
    """An activation that is 0 for most units, and perhaps only the k largest values of each position (k-sparse
    autoencoders, Makhzani and Frey 2014).

    `last_active` holds the last step of training in which each unit was above 0 anywhere, on any process.
    """

    last_active: Tensor
    tracks_usage = True

    def __init__(self, config: SparseConfig):
        super().__init__(config, config.channels)
        self.activation, self.k, self.dead_after = config.activation, config.k, config.dead_after
        self.unit_norm, self.gives_rates = config.unit_norm, config.activation == "sigmoid"
        self.active_channels = config.k or config.channels
        self.register_buffer("last_active", torch.zeros(config.channels, dtype=torch.int64))

    def posterior(self, moments: Tensor) -> Posterior:
        moments = full_precision(moments)
        code = moments.sigmoid() if self.activation == "sigmoid" else moments.relu()
        if self.k:
            largest = code.topk(self.k, dim=1)
            code = torch.zeros_like(code).scatter(1, largest.indices, largest.values)
        return Posterior(code)

    def reset_usage(self, step: int) -> None:
        self.last_active.fill_(step)

    @torch.no_grad()
    def update_usage(self, code: Tensor, step: float | Tensor, *, is_last: bool = True) -> None:
        now = step.long() if isinstance(step, Tensor) else int(step)
        self.last_active.copy_(torch.where(self.active_units(code), now, self.last_active))

    def dead_units(self, step: float | Tensor) -> Tensor:
        return self.last_active < step - self.dead_after
