"""An entropy model with context that is learned together with an autoencoder: a mixture around what is predicted."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.entropy.config import ENTROPY_MODELS, EntropyModelConfig
from ldm.entropy.integer_network import input_count, mask_of
from ldm.entropy.logistic_mixture import LOG_SPEED, LogisticMixture
from ldm.randomness import generator


class ContextPrior(nn.Module):
    """A `LogisticMixture`, moved and scaled for each element by what a network sees of those that are coded before it.

    What is seen, and by what network, is as in the entropy model of the same `kind` that `ldm codec fit` fits; this
    one is of floats, with a gradient to the code, and codes nothing. Until it is trained it is the mixture alone.
    """

    mask: Tensor

    def __init__(self, channels: int, kind: str):
        super().__init__()
        self.mixture, self.channels = LogisticMixture(channels), channels
        self.parities = ENTROPY_MODELS[kind].parities
        config = EntropyModelConfig(kind=kind)
        side, inputs = 2 * config.radius + 1, input_count(config, channels) - 1  # without the step, which is learned
        rng, groups = generator(config.seed, "context prior"), channels * self.parities
        weights = torch.randn(groups, config.width, inputs, generator=rng) / math.sqrt(inputs)
        self.hidden = nn.Parameter(weights.view(groups, config.width, -1, side, side).to(torch.get_default_dtype()))
        self.hidden_bias = nn.Parameter(torch.zeros(groups, config.width))
        self.linear = nn.Parameter(torch.zeros(groups, 2, *self.hidden.shape[2:]))
        self.output = nn.Parameter(torch.zeros(groups, 2, config.width))
        mask = torch.from_numpy(mask_of(config, channels)[:, :-1]).view(groups, 1, -1, side, side)
        self.register_buffer("mask", mask.to(self.hidden.dtype), persistent=False)

    def predict(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """By how much the mixture is moved, and the logarithm of how much it is scaled, both as `values`.

        In the precision of the weights, whatever autocast says: a probability rounded to bfloat16 is bits that are not.
        """
        with torch.autocast(values.device.type, enabled=False):
            return self.predicted(values)

    def predicted(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What `predict` gives."""
        known, padding = values.to(self.hidden.dtype), self.hidden.shape[-1] // 2
        seen = torch.cat([known, torch.ones_like(known[:, :1])], 1)
        hidden = F.conv2d(seen, (self.hidden * self.mask).flatten(0, 1), self.hidden_bias.flatten(), padding=padding)
        linear = F.conv2d(seen, (self.linear * self.mask).flatten(0, 1), padding=padding)
        groups = len(self.hidden)
        output = F.conv2d(F.silu(hidden), self.output.flatten(0, 1)[:, :, None, None], groups=groups) + linear
        found = output.unflatten(1, (self.channels, self.parities, 2))
        rows, columns = (torch.arange(side, device=values.device) for side in values.shape[2:])
        parity = (rows[:, None] + columns) % self.parities
        mean, log_scale = torch.where(parity == 0, found[:, :, 0], found[:, :, -1]).unbind(2)
        return mean, LOG_SPEED * log_scale

    def nats(self, values: Tensor, cells: Tensor) -> Tensor:
        """As those of the mixture."""
        mean, log_scale = self.predict(values)
        scale = log_scale.clamp(-8, 8).exp()
        return self.mixture.nats((values - mean) / scale, cells / scale)

    def initialize(self, mean: Tensor, std: Tensor) -> None:
        """As the mixture."""
        self.mixture.initialize(mean, std)
