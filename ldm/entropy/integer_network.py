"""A small network in integer-valued float64: it predicts where a symbol lies, with the same bits on every machine.

Why it is exact. Weights, biases and inputs are integers, stored in float64. Every product, and every sum of products in
whatever order, is then an integer, and `check` holds that the sum of all magnitudes stays below 2^53: such integers
float64 represents without rounding. So the order of a sum, the number of threads, fused multiply-adds and the kernel of
the BLAS change nothing, as long as a product of matrices is made of sums and products (which is why this is no
convolution of a library that may transform them). The bits behind the binary point are dropped by a product with a
power of two, which is exact, and `floor`, which is too; the activation clips. No exp, no division, no learned float.
"""

from dataclasses import dataclass

import numpy as np

from ldm.entropy.config import ENTROPY_MODELS, EntropyModelConfig
from ldm.entropy.tables import POSITIONS
from ldm.errors import CheckpointError

BITS = 12  # behind the binary point of a weight
LARGEST_WEIGHT = 2**18
LARGEST_INPUT = 8 * POSITIONS - 1  # known elements of the latent are clipped to that
LARGEST_HIDDEN = 2**14
SCALES = 24  # standard deviations that can be predicted, in a geometric row
LEAST_SCALE, LARGEST_SCALE = 0.02, 2.5  # in standard deviations of the latents


@dataclass(frozen=True)
class IntegerNetwork:
    """One hidden layer and a linear branch for each (channel, parity), two outputs: the mean, and the scale's number.

    `hidden` is channels·parities x width x inputs, `linear` x 2 x inputs, `output` x 2 x width, and the biases are
    without their last axis.
    """

    hidden: np.ndarray
    hidden_bias: np.ndarray
    linear: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray

    def check(self, config: EntropyModelConfig, channels: int, parities: int) -> None:
        """Raise CheckpointError unless the shapes fit and every sum is exact."""
        inputs, groups = input_count(config, channels), channels * parities
        shapes = [(groups, config.width, inputs), (groups, config.width), (groups, 2, inputs)]
        shapes += [(groups, 2, config.width), (groups, 2)]
        parts = [self.hidden, self.hidden_bias, self.linear, self.output, self.output_bias]
        if [part.shape for part in parts] != shapes:
            raise CheckpointError("the network of the entropy model is not of the shape that its config describes")
        if any(part.dtype != np.float64 or not np.isfinite(part).all() or (part % 1).any() for part in parts):
            raise CheckpointError("the network of the entropy model holds numbers that are not integers")
        sums = [np.abs(self.hidden).sum(2) * LARGEST_INPUT + np.abs(self.hidden_bias)]
        sums += [np.abs(self.linear).sum(2) * LARGEST_INPUT + np.abs(self.output).sum(2) * LARGEST_HIDDEN]
        if max(float(each.max()) for each in sums) + float(np.abs(self.output_bias).max()) >= 2**52:
            raise CheckpointError("the network of the entropy model holds numbers too large to be summed exactly")

    def predict(self, group: int, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean, in positions, and number of the scale for each row of `inputs`, integers in float64."""
        sums = inputs @ self.hidden[group].T + self.hidden_bias[group]
        hidden = np.clip(np.floor(sums * 2.0**-BITS), 0, LARGEST_HIDDEN)
        sums = inputs @ self.linear[group].T + hidden @ self.output[group].T + self.output_bias[group]
        mean = np.clip(np.floor(sums[:, 0] * 2.0**-BITS), -LARGEST_INPUT, LARGEST_INPUT)
        scale = np.clip(np.floor(sums[:, 1] * 2.0**-BITS * (1 / POSITIONS)), 0, SCALES - 1)
        return mean.astype(np.int64), scale.astype(np.int64)


def input_count(config: EntropyModelConfig, channels: int) -> int:
    """The window of each channel, that of what lies inside the image, and the step."""
    return (channels + 1) * (2 * config.radius + 1) ** 2 + 1


def mask_of(config: EntropyModelConfig, channels: int) -> np.ndarray:
    """For each (channel, parity) and each input whether it is known before that is coded."""
    facts, side = ENTROPY_MODELS[config.kind], 2 * config.radius + 1
    rows, columns = np.divmod(np.arange(side**2), side)
    other = (rows + columns) % 2 != 0  # positions of the other parity than the middle's, which `radius, radius` is
    order = {member: number for number, members in enumerate(facts.passes(channels)) for member in members}
    found = np.zeros((channels * facts.parities, input_count(config, channels)), dtype=bool)
    for (channel, parity), turn in order.items():
        row = found[channel * facts.parities + parity]
        row[channels * side**2 :] = True
        for seen in range(channels):
            window = row[seen * side**2 : (seen + 1) * side**2]
            same_parity, other_parity = (order[seen, (parity + shift) % facts.parities] < turn for shift in (0, 1))
            window[~other], window[other] = same_parity, other_parity
    return found


def inputs_of(known: np.ndarray, step: int, radius: int) -> np.ndarray:
    """Rows of inputs for all positions of a latent, channels x h x w of integers, 0 where it is not known yet."""
    _, height, width = known.shape
    inside = np.full((1, height, width), POSITIONS, dtype=np.float64)
    planes = np.concatenate([np.clip(known, -LARGEST_INPUT, LARGEST_INPUT).astype(np.float64), inside])
    planes = np.pad(planes, ((0, 0), (radius, radius), (radius, radius)))
    side = 2 * radius + 1
    windows = np.lib.stride_tricks.sliding_window_view(planes, (side, side), axis=(1, 2))
    rows = windows.transpose(1, 2, 0, 3, 4).reshape(height * width, -1)
    return np.concatenate([rows, np.full((len(rows), 1), float(min(step, LARGEST_INPUT)))], axis=1)


def scales() -> np.ndarray:
    """The standard deviations by number, in positions. (Used in fitting alone, where nothing need be exact.)"""
    found: np.ndarray = np.geomspace(LEAST_SCALE, LARGEST_SCALE, SCALES) * POSITIONS
    return found
