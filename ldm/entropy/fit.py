"""Fits an entropy model to latents: a network that predicts where each element lies, and distributions around that."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.entropy.config import ENTROPY_MODELS, EntropyModelConfig
from ldm.entropy.distributions import joined, smoothed
from ldm.entropy.integer_network import (
    BITS,
    LARGEST_INPUT,
    LARGEST_WEIGHT,
    LEAST_SCALE,
    SCALES,
    IntegerNetwork,
    input_count,
    inputs_of,
    mask_of,
    scales,
)
from ldm.entropy.model import EntropyModel
from ldm.entropy.tables import POSITIONS, CumulativeTables, steps_of
from ldm.randomness import generator

FITTED_STEPS = (16, 64, 128, 256, 512, 1024)  # at which residuals are gathered, in positions
BATCH = 2048  # positions of a step of training
MOST_GATHERED = 2**18  # positions at each of those steps
LOG_RATIO = math.log(scales()[1] / scales()[0])


def fit(
    latents: Tensor,
    config: EntropyModelConfig,
    ratios: Sequence[float],
    *,
    on_step: Callable[[float], object] | None = None,
) -> EntropyModel:
    """The entropy model of latents, images x channels x h x w, with steps in the `ratios` of the channels.

    `on_step` is told the bits per element of each step of training.
    """
    integers = (latents.double() * POSITIONS).round()
    if not ENTROPY_MODELS[config.kind].has_context:
        values = integers.transpose(0, 1).flatten(1).long().numpy()
        tables = joined([smoothed(each, float(POSITIONS)) for each in values])
        return EntropyModel(config, latents.shape[1], tables)
    network = trained(integers.float(), config, ratios, on_step).to_integers()
    return EntropyModel(config, latents.shape[1], gathered(integers.long().numpy(), network, config, ratios), network)


class ContextNetwork(nn.Module):
    """The network of `IntegerNetwork` while it learns; it sees only what is coded before."""

    mask: Tensor

    def __init__(self, config: EntropyModelConfig, channels: int):
        super().__init__()
        self.config, self.channels = config, channels
        self.parities = ENTROPY_MODELS[config.kind].parities
        inputs, groups = input_count(config, channels), channels * self.parities
        rng = generator(config.seed, "context network")
        self.hidden = nn.Parameter(torch.randn(groups, config.width, inputs, generator=rng) / math.sqrt(inputs))
        self.hidden_bias = nn.Parameter(torch.rand(groups, config.width, generator=rng))
        self.linear = nn.Parameter(torch.zeros(groups, 2, inputs))
        self.output = nn.Parameter(torch.zeros(groups, 2, config.width))
        self.output_bias = nn.Parameter(torch.tensor([0.0, -math.log(LEAST_SCALE) / LOG_RATIO]).repeat(groups, 1))
        self.register_buffer("mask", torch.from_numpy(mask_of(config, channels)).float())

    def forward(self, rows: Tensor, groups: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean, in standard deviations, and number of the scale, groups x rows, from `inputs_of` in these units."""
        chosen = list(groups)
        mask = self.mask[chosen, None]
        hidden = torch.einsum("gri,gwi->grw", rows, self.hidden[chosen] * mask) + self.hidden_bias[chosen, None]
        output = torch.einsum("gri,goi->gro", rows, self.linear[chosen] * mask)
        output = output + torch.einsum("grw,gow->gro", hidden.relu(), self.output[chosen])
        mean, scale = (output + self.output_bias[chosen, None]).unbind(2)
        return mean, scale.clamp(0, SCALES - 1)

    def to_integers(self) -> IntegerNetwork:
        """The same with all numbers rounded; the scale's number is rounded to the nearest, and not down."""

        def rounded(values: Tensor, bits: int) -> np.ndarray:
            largest = LARGEST_WEIGHT * 2.0 ** (bits - BITS)
            found: np.ndarray = (values.detach().double() * 2**bits).round().clamp(-largest, largest).numpy()
            return found

        mask, sum_bits = self.mask[:, None], BITS + round(math.log2(POSITIONS))
        return IntegerNetwork(
            hidden=rounded(self.hidden * mask, BITS),
            hidden_bias=rounded(self.hidden_bias, sum_bits),
            linear=rounded(self.linear * mask, BITS),
            output=rounded(self.output, BITS),
            output_bias=rounded(self.output_bias + torch.tensor([0.0, 0.5]), sum_bits),
        )


def trained(
    integers: Tensor, config: EntropyModelConfig, ratios: Sequence[float], on_step: Callable[[float], object] | None
) -> ContextNetwork:
    """The network after `config.steps` steps of Adam, each at another step of quantization, along a cosine."""
    count, channels, height, width = integers.shape
    network = ContextNetwork(config, channels)
    optimizer = torch.optim.Adam(network.parameters(), config.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: (1 + math.cos(math.pi * n / config.steps)) / 2)
    images = max(BATCH // (height * width), 1)
    for number in range(config.steps):
        rng = generator(config.seed, "context batch", number)
        chosen = torch.randint(count, (images,), generator=rng)
        loss = torch.zeros(())
        # Two steps, of one octave each, so that no batch is of one rate alone.
        for half, part in enumerate(chosen.chunk(2)):
            octave = 3 + 7.5 * (half + float(torch.rand((), generator=rng))) / 2
            steps = torch.tensor(steps_of(2**octave, ratios)).view(-1, 1, 1)
            loss = loss + bits_of(network, integers[part], steps) * len(part) / images
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(float(loss.detach()))
    return network


def bits_of(network: ContextNetwork, integers: Tensor, steps: Tensor) -> Tensor:
    """Bits per element of latents under a logistic distribution around what the network predicts of them."""
    symbols = (integers / steps).round()
    radius, parities = network.config.radius, network.parities
    _, channels, height, width = integers.shape
    known = (symbols * steps).clamp(-LARGEST_INPUT, LARGEST_INPUT) / POSITIONS
    windows = F.unfold(torch.cat([known, torch.ones_like(known[:, :1])], 1), 2 * radius + 1, padding=radius)
    windows = windows.transpose(1, 2)
    rows, columns = np.divmod(np.arange(height * width), width)
    total = torch.zeros(())
    for parity in range(parities):
        places = torch.from_numpy(np.flatnonzero((rows + columns) % parities == parity))
        seen = windows[:, places].flatten(0, 1)
        step = (steps.view(-1, 1, 1).clamp(max=LARGEST_INPUT) / POSITIONS).expand(-1, len(seen), 1)
        groups = [channel * parities + parity for channel in range(channels)]
        mean, number = network(torch.cat([seen.expand(channels, -1, -1), step], 2), groups)
        scale = LEAST_SCALE * (number * LOG_RATIO).exp() * (math.sqrt(3) / math.pi)
        target = symbols.flatten(2)[:, :, places].transpose(0, 1).flatten(1)
        width_of_cell = steps.view(-1, 1) / POSITIONS
        lower, upper = (((target + side) * width_of_cell - mean) / scale for side in (-0.5, 0.5))
        # In the tail where the two are nearly 0, not where they are nearly 1.
        sign = torch.where(lower + upper > 0, -1.0, 1.0)
        mass = ((sign * upper).sigmoid() - (sign * lower).sigmoid()).abs()
        total = total - torch.log2(mass + 1e-7).sum()
    return total / integers.numel()


def gathered(
    integers: np.ndarray, network: IntegerNetwork, config: EntropyModelConfig, ratios: Sequence[float]
) -> CumulativeTables:
    """A distribution for each channel and scale: of what the network leaves, at all the fitted steps together."""
    channels = integers.shape[1]
    parities = ENTROPY_MODELS[config.kind].parities
    mask = mask_of(config, channels)
    left: list[list[np.ndarray]] = [[] for _ in range(channels * SCALES)]
    for image, steps in evenly(integers, ratios):
        known = np.rint(image / np.reshape(steps, (-1, 1, 1))).astype(np.int64) * np.reshape(steps, (-1, 1, 1))
        inputs = inputs_of(known, 1, config.radius)
        rows, columns = np.divmod(np.arange(len(inputs)), image.shape[2])
        for channel in range(channels):
            inputs[:, -1] = min(steps[channel], LARGEST_INPUT)
            for parity in range(parities):
                chosen = np.flatnonzero((rows + columns) % parities == parity)
                group = channel * parities + parity
                mean, scale = network.predict(group, inputs[chosen] * mask[group])
                residuals = image[channel].ravel()[chosen] - mean
                for number in np.unique(scale).tolist():
                    left[channel * SCALES + number].append(residuals[scale == number])
    deviations = np.tile(scales(), channels)
    empty = np.zeros(0, dtype=np.int64)
    return joined(
        [smoothed(np.concatenate([empty, *each]), float(scale)) for each, scale in zip(left, deviations, strict=True)]
    )


def evenly(integers: np.ndarray, ratios: Sequence[float]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Images, evenly from the first to the last, each with the steps of every fitted step."""
    positions = integers.shape[2] * integers.shape[3]
    count = min(max(MOST_GATHERED // positions, 1), len(integers))
    for place in np.linspace(0, len(integers) - 1, count).astype(int).tolist():
        for step in FITTED_STEPS:
            yield integers[place], steps_of(step, ratios)
