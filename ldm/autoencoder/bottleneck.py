"""What stands between encoder and decoder: it turns the encoder's output into a posterior over the latent."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ldm.autoencoder.settings import Gaussian as GaussianSettings
from ldm.shapes import Latents, Scalars, full_precision


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over the latent: `mean` and `logvar` (log variance), both batch x channels x h x w."""

    mean: Latents
    logvar: Tensor

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
        """KL to the unit Gaussian in nats, summed over the latent: one number per sample, never negative."""
        per_element = 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)
        return per_element.flatten(1).sum(1)

    def standardized(self, mean: Tensor, std: Tensor) -> Self:
        """The posterior of (latent - mean) / std, with `mean` and `std` of shape channels x 1 x 1."""
        return type(self)((self.mean - mean) / std, self.logvar - 2 * std.log())


class Gaussian:
    """Half of the encoder's output channels are means, the other half log variances, kept in [-30, 20]."""

    def __init__(self, settings: GaussianSettings):
        self.channels = settings.channels
        self.encoder_channels = 2 * settings.channels

    def __call__(self, moments: Tensor) -> Posterior:
        mean, logvar = full_precision(moments).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))


BOTTLENECKS = {GaussianSettings: Gaussian}
