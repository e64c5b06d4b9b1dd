"""Latent statistics, the scaling factor of our latents: mean and standard deviation over many images."""

import torch
from torch import Tensor

from ldm.autoencoder.bottleneck import Posterior


class LatentStatistics:
    """Mean and standard deviation per channel of posterior *samples*, from float64 sums over many posteriors.

    The variance of a sample is that of the means plus the average posterior variance.
    """

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def add(self, posterior: Posterior) -> None:
        """Take in a batch of posteriors."""
        mean = posterior.mean.detach().cpu().double()
        # The exponential is taken in float64.
        variance = 0.0 if posterior.logvar is None else posterior.logvar.detach().cpu().double().exp()
        self.sum = self.sum + mean.sum((0, 2, 3))
        self.squares = self.squares + (mean.square() + variance).sum((0, 2, 3))
        self.count += mean.numel() // mean.shape[1]

    def join(self, other: "LatentStatistics") -> None:
        """Take in all that another one has taken in."""
        self.sum, self.squares, self.count = (
            self.sum + other.sum,
            self.squares + other.squares,
            self.count + other.count,
        )

    @property
    def mean(self) -> Tensor:
        """One mean per channel."""
        return self.sum / self.count

    @property
    def std(self) -> Tensor:
        """One standard deviation per channel."""
        return (self.squares / self.count - self.mean.square()).clamp_min(0).sqrt()
