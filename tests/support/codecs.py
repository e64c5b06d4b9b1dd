"""Codecs in miniature: a fitted one, and ones that are made of integers alone, the same on every machine."""

from functools import cache

import numpy as np
import torch

from ldm.autoencoder.model import create_pixels
from ldm.compression.codec import Codec
from ldm.entropy.config import ENTROPY_MODELS, EntropyModelConfig
from ldm.entropy.distributions import joined
from ldm.entropy.integer_network import SCALES, IntegerNetwork, input_count
from ldm.entropy.model import EntropyModel
from ldm.entropy.tables import MASS
from ldm.shapes import Images
from tests.support.diffusion_models import residual_autoencoder


def smooth_latents(count: int, channels: int = 2, side: int = 8, *, seed: int = 0) -> torch.Tensor:
    """Latents of about unit variance whose neighbors resemble each other, in place and in channel."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, channels, side + 2, side + 2, generator=rng)
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1) * 3
    return (smooth + 0.7 * smooth.roll(1, 1)) / 1.5**0.5


def small_images(count: int, side: int = 16, *, seed: int = 0) -> Images:
    """Colored gradients with a square on each."""
    rng = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(-0.8, 0.8, side)
    colors = torch.rand(count, 2, 3, 1, 1, generator=rng) * 2 - 1
    images = colors[:, 0] * ramp + 0.5 * colors[:, 1] * ramp[:, None]
    images[:, :, 3:9, 4:10] = colors[:, 1]
    return images.clamp(-1, 1)


@cache
def fitted_codec() -> Codec:
    """A codec of an untrained autoencoder at f2, with a context model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = residual_autoencoder()
    autoencoder.initialize(lambda count: small_images(min(count, 64)))
    config = EntropyModelConfig(width=8, steps=30)
    return Codec.fit(autoencoder, small_images(48).split(16), small_images(6, seed=1), config=config)


@cache
def integer_model(kind: str, channels: int = 1) -> EntropyModel:
    """An entropy model made by integer arithmetic: triangular distributions, and a network of small numbers."""
    facts, config = ENTROPY_MODELS[kind], EntropyModelConfig(kind=kind, width=4)
    reaches = [16 * (number + 2) for number in range(SCALES)] if facts.has_context else [500]
    tables = joined([triangle(reach) for _ in range(channels) for reach in reaches])
    if not facts.has_context:
        return EntropyModel(config, channels, tables)
    groups, inputs = channels * facts.parities, input_count(config, channels)
    shapes = [(groups, 4, inputs), (groups, 4), (groups, 2, inputs), (groups, 2, 4), (groups, 2)]
    parts = [
        ((np.arange(np.prod(shape)) * 7919 % 1013 - 506) * scale).reshape(shape).astype(np.float64)
        for shape, scale in zip(shapes, (4, 2**10, 2, 4, 2**12), strict=True)
    ]
    parts[4][:, 1] += 12 << 20
    return EntropyModel(config, channels, tables, IntegerNetwork(*parts))


def triangle(reach: int) -> np.ndarray:
    """The cumulative function of a triangular density, in integers."""
    place = np.arange(-reach, reach + 1)
    lower, whole = (place + reach) ** 2, 2 * reach**2
    upper = whole - (reach - place) ** 2
    return np.where(place <= 0, lower, upper) * (MASS - 2**10) // whole + 2**9


def pixel_codec(kind: str) -> Codec:
    """A codec of gray pixels themselves, with such a model: a code of integers, and no network to decode it."""
    return Codec(create_pixels((1, 12, 12)), integer_model(kind), [1.0])
