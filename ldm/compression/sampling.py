"""Images drawn from a codec's entropy model: what a decoder would make of random bytes."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from ldm.compression.codec import Codec, Symbols
from ldm.entropy.tables import steps_of
from ldm.randomness import derived_seed


def sampled(codec: Codec, sides: tuple[int, int], step: int, *, seed: int = 0) -> Iterator[Tensor]:
    """Images of this height and width, without end, at a step in positions; image i depends on (seed, i) alone."""
    shape, steps = codec.autoencoder.latent_shape(sides), steps_of(step, codec.ratios)
    number = 0
    while True:
        rng = np.random.default_rng(derived_seed(seed, "codec sample", number))
        symbols = codec.entropy_model.sample(shape, steps, rng)
        yield from codec.images([Symbols(codec.header(sides, step), symbols)])
        number += 1
