"""What stands between encoder and decoder: it turns the encoder's output into a posterior over the latent."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldm.autoencoder.config import GaussianConfig, IdentityConfig, SparseConfig
from ldm.distributed import mean_over_processes
from ldm.shapes import Latents, Scalars, full_precision


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over the latent: `mean` and `logvar` (log variance), both batch x channels x h x w.

    That of a code that is no distribution is a point: its log variance is -inf.
    """

    mean: Latents
    logvar: Tensor

    @classmethod
    def point(cls, code: Tensor) -> Self:
        """All probability at one code."""
        return cls(code, torch.full_like(code, -torch.inf, requires_grad=False))

    def sample(self, generator: torch.Generator | None = None) -> Latents:
        """mean + exp(logvar / 2) * noise, with unit Gaussian noise drawn on the CPU from `generator`."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.at(noise.to(self.mean.device))

    def at(self, noise: Tensor) -> Latents:
        """The sample that this unit Gaussian noise gives (Kingma and Welling 2014, section 2.4)."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def mode(self) -> Latents:
        """The most likely latent, which is the mean."""
        return self.mean

    def kl(self) -> Scalars:
        """KL to the unit Gaussian in nats, summed over the latent: one number per sample; of a point infinite."""
        per_element = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return per_element.flatten(1).sum(1)

    def standardized(self, mean: Tensor, std: Tensor) -> Self:
        """The posterior of (latent - mean) / std, with `mean` and `std` of shape channels x 1 x 1."""
        return type(self)((self.mean - mean) / std, self.logvar - 2 * std.log())


class Bottleneck(nn.Module):
    """`channels` of the latent, made of `encoder_channels` of the encoder's output."""

    is_distribution = False  # whether there is a KL
    unit_norm = False  # whether the decoder's columns are taken with length 1

    def __init__(self, config: Any, encoder_channels: int):
        super().__init__()
        self.config, self.channels, self.encoder_channels = config, config.channels, encoder_channels

    def forward(self, moments: Tensor) -> Posterior:
        """The posterior of each image."""
        raise NotImplementedError

    def begin(self, step: int) -> None:
        """A stage that trains the code begins with this step."""


class GaussianBottleneck(Bottleneck):
    """Half of the encoder's output channels are means, the other half log variances, kept in [-30, 20]."""

    is_distribution = True

    def __init__(self, config: GaussianConfig):
        super().__init__(config, 2 * config.channels)

    def forward(self, moments: Tensor) -> Posterior:
        mean, logvar = full_precision(moments).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))


class IdentityBottleneck(Bottleneck):
    """The encoder's output is the code."""

    def __init__(self, config: IdentityConfig):
        super().__init__(config, config.channels)

    def forward(self, moments: Tensor) -> Posterior:
        return Posterior.point(full_precision(moments))


class SparseBottleneck(Bottleneck):
    """An activation that is 0 for most units, and perhaps only the k largest values of each position (k-sparse
    autoencoders, Makhzani and Frey 2014).

    Remembers the last step of training in which each unit was above 0 anywhere, on any process.
    """

    last_active: Tensor

    def __init__(self, config: SparseConfig):
        super().__init__(config, config.channels)
        self.activation, self.k, self.unit_norm = config.activation, config.k, config.unit_norm
        self.register_buffer("fired", torch.zeros(config.channels, dtype=torch.int64))

    def forward(self, moments: Tensor) -> Posterior:
        moments = full_precision(moments)
        code = moments.sigmoid() if self.activation == "sigmoid" else moments.relu()
        if self.k:
            kept = code.topk(self.k, dim=1)
            code = torch.zeros_like(code).scatter(1, kept.indices, kept.values)
        return Posterior.point(code)

    def begin(self, step: int) -> None:
        """While others trained no unit could fire: all count as alive."""
        self.last_active.fill_(step)

    @torch.no_grad()
    def update_usage(self, code: Tensor, step: int) -> None:
        """Note which units are above 0 in this step of training."""
        fires = mean_over_processes((code > 0).any(0).flatten(1).any(1).float()) > 0
        self.last_active.masked_fill_(fires, step)

    def is_dead(self, step: int) -> Tensor:
        """Which units have been 0 for more than `patience` steps: one truth value each."""
        return self.last_active < step - self.config.dead_after


BOTTLENECKS: dict[type, Any] = {
    GaussianConfig: GaussianBottleneck,
    IdentityConfig: IdentityBottleneck,
    SparseConfig: SparseBottleneck,
}
