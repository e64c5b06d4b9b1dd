"""Every swappable part keeps its contract, whatever it does: the tables beside the configs are gone through."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ldm.autoencoder.bottleneck import Bottleneck
from ldm.autoencoder.config import (
    BOTTLENECKS,
    DISTANCES,
    NETWORKS,
    AutoencoderConfig,
    BottleneckConfig,
    IdentityConfig,
    LinearNetworkConfig,
    NetworkConfig,
    ReconstructionObjectiveConfig,
    SparseConfig,
)
from ldm.autoencoder.model import create
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.penalty import PenaltiesConfig
from ldm.batch import ImageBatch, Losses, Step
from ldm.config.bounds import types_of
from ldm.config.reader import sections_of
from ldm.corruption import Corruption
from ldm.data.config import SOURCES, DataSourceConfig
from ldm.data.datasets import open_dataset
from ldm.diffusion.config import DENOISER_NETWORKS, DenoiserNetworkConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.losses.config import NOISE_DISTRIBUTIONS, WEIGHTINGS, NoiseDistributionConfig, WeightingConfig
from ldm.diffusion.losses.noise_distribution import create_noise_distribution, sample_sigmas
from ldm.diffusion.losses.weighting import error_scale
from ldm.diffusion.network import DenoiserNetwork
from ldm.errors import DataError
from ldm.randomness import StepRandom, generator
from ldm.shapes import Images
from ldm.verify.check import Check, at_least, at_most, skipped
from ldm.verify.training import reproducible

IMAGE = (3, 16, 16)
LATE = 500  # a step at which all units that were never active are dead


def checks(*, small: bool = False) -> Iterator[Check]:
    """Of each kind, every part with its default settings; it takes no time, so that the miniature is the whole."""
    for kind in SOURCES:
        yield from of_source(kind)
    for kind in NETWORKS:
        yield from of_autoencoder_network(kind)
    for kind in BOTTLENECKS:
        yield from of_bottleneck(kind)
    for name in DISTANCES:
        yield of_distance(name)
    for config in sections_of(Corruption):
        yield from of_corruption(config())
    for name in (field.name for field in fields(PenaltiesConfig)):
        yield from of_penalty(name)
    for kind in DENOISER_NETWORKS:
        yield from of_denoiser_network(kind)
    for kind in NOISE_DISTRIBUTIONS:
        yield from of_noise_distribution(kind)
    for kind in WEIGHTINGS:
        yield of_weighting(kind)


def config_of(union: Any, kind: str) -> Any:
    """The config class of a kind, among those of a union."""
    return next(cls for cls in sections_of(union) if cls.kind == kind)


def some_images(count: int) -> Images:
    """Random pixels."""
    return torch.rand(count, *IMAGE, generator=generator(0, "verify parts images")) * 2 - 1


def largest(difference: Tensor) -> float:
    """The largest absolute value."""
    return float(difference.detach().abs().max())


def of_source(kind: str) -> list[Check]:
    """Images of the stated shape, and a split without overlap."""
    name = f"data source {kind}: images of another shape, or in both parts of the split"
    if needs := SOURCES[kind].needs:
        return [skipped(name, f"needs {needs}")]
    config = config_of(DataSourceConfig, kind)()
    try:
        dataset = open_dataset(config)
    except DataError as error:
        return [skipped(name, str(error))]
    training, held_out = dataset.split()
    shapes = sum(tuple(image.shape) != config.shape for image in training.evenly_spaced(8).images())
    both = len(set(training.indices) & set(held_out.indices)) + abs(len(training) + len(held_out) - len(dataset))
    return [at_most(name, shapes + both, 0)]


@reproducible("verify parts network")
def of_autoencoder_network(kind: str) -> list[Check]:
    """Images come back in their shape, and no image of a batch changes another's latent or reconstruction."""
    name = f"autoencoder network {kind}"
    if kind == "pretrained":
        return [skipped(f"{name}: reconstruction", "needs an autoencoder")]
    config = AutoencoderConfig(network=config_of(NetworkConfig, kind)(), bottleneck=IdentityConfig(channels=IMAGE[0]))
    autoencoder, images = create(config, image=IMAGE).eval(), some_images(3)
    with torch.no_grad():
        latents, alone = autoencoder.encode(images).mode(), autoencoder.encode(images[:1]).mode()
        again, again_alone = autoencoder.decode(latents), autoencoder.decode(latents[:1])
    expected = autoencoder.latent_shape(IMAGE[1:])
    return [
        at_most(
            f"{name}: latents or images of another shape",
            latents.shape[1:] != expected or again.shape != images.shape,
            0,
        ),
        at_most(f"{name}: influence of one image on another's latent", largest(latents[:1] - alone), 1e-9),
        at_most(f"{name}: influence of one latent on another's image", largest(again[:1] - again_alone), 1e-9),
    ]


@reproducible("verify parts bottleneck")
def of_bottleneck(kind: str) -> list[Check]:
    """Without random numbers the code is its mode; its costs are finite and not negative, one for each image."""
    config = config_of(BottleneckConfig, kind)(channels=4)
    bottleneck: Bottleneck = BOTTLENECKS[kind].load()(config)
    moments = torch.randn(3, bottleneck.encoder_channels, 2, 2, generator=generator(0, "verify parts moments"))
    code, sample = bottleneck(moments), bottleneck(moments, StepRandom(0, 0, 3))
    costs = torch.stack([*code.costs().values(), torch.zeros(3)])
    moves = largest(sample.latents - code.latents)
    stochastic = BOTTLENECKS[kind].stochastic
    return [
        at_most(
            f"bottleneck {kind}: mode less the code without random numbers",
            largest(code.posterior.mode() - code.latents),
            0,
        ),
        at_least(f"bottleneck {kind}: smallest cost of an image, nats", costs.nan_to_num(nan=-1.0).min(), 0),
        at_least(f"bottleneck {kind}: a sample differs from the mode", moves, 1e-6)
        if stochastic
        else at_most(f"bottleneck {kind}: a sample less the mode", moves, 0),
    ]


def of_distance(name: str) -> Check:
    """Nothing is nearer to an image than the image itself."""
    images, logvar = some_images(4).double(), torch.zeros(IMAGE[0], 1, 1, dtype=torch.float64)
    distance, noise = (
        DISTANCES[name].load(),
        torch.randn(images.shape, generator=generator(0, "verify parts noise")).double(),
    )
    own = distance(images, images, logvar).mean()
    others = torch.stack([distance(images, images + size * noise, logvar).mean() for size in (0.01, 0.1, 1.0)])
    return at_least(
        f"distance {name}: to noisy images less that to the image itself, smallest", (others - own).min(), 0
    )


@reproducible("verify parts corruption")
def of_corruption(corruption: Any) -> list[Check]:
    """Elements that are not said to be corrupted are as they were, and a half of the batch is half of the whole."""
    images, name = some_images(4), f"corruption {corruption.kind}"
    before = images.clone()
    whole = corruption(images, StepRandom(0, 0, 4), name="input", patch=(4, 4))
    half = corruption(images[2:], StepRandom.of_part(0, 0, total=4, parts=2, part=1), name="input", patch=(4, 4))
    changed = (whole.values != images) if whole.elements is None else (whole.values != images) & ~whole.elements
    unstated = 0.0 if whole.elements is None else float(changed.double().mean())
    return [
        at_most(f"{name}: fraction changed and not said to be", unstated, 0),
        at_most(
            f"{name}: second half of a batch less that of the whole, largest",
            largest(half.values - whole.values[2:]),
            0,
        ),
        at_most(f"{name}: change of the clean images", largest(images - before), 0),
    ]


@reproducible("verify parts penalty")
def of_penalty(name: str) -> list[Check]:
    """A penalty with its default weight is finite, and its own gradient reaches the encoder or the head."""
    (penalty,) = sections_of(types_of(PenaltiesConfig)[name])
    config = AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=SparseConfig(channels=8, activation="sigmoid"))
    autoencoder, images = create(config, image=IMAGE, classes=2), some_images(4)
    loss = ReconstructionObjectiveConfig(distance="mse", penalties=PenaltiesConfig(**{name: penalty()}))
    objective = ReconstructionObjective(autoencoder, loss, steps=2 * LATE)
    batch = ImageBatch(images, torch.tensor([0, 1, 0, 1]))
    losses: Losses = objective(batch, Step(batch, StepRandom(0, LATE, 4)))
    parameters = list(autoencoder.parameters())
    term = losses.terms[penalty.log_name or name]
    gradients = torch.autograd.grad(term, [p for p in parameters if p.requires_grad], allow_unused=True)
    size = sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None)
    return [
        at_most(f"penalty {name}: not a finite number", not bool(term.isfinite()), 0),
        at_least(f"penalty {name}: size of its gradient", size, 1e-12),
    ]


@reproducible("verify parts denoiser network")
def of_denoiser_network(kind: str) -> list[Check]:
    """The output has the shape of the input, and no sample of a batch changes another's."""
    config, shape, name = config_of(DenoiserNetworkConfig, kind)(), (4, 8, 8), f"denoiser network {kind}"
    cls: type[DenoiserNetwork] = DENOISER_NETWORKS[kind].load()
    cls.check(config, shape)
    network = cls.create(config, latent_shape=shape).eval()
    rng = generator(0, "verify parts latents")
    for parameter in network.parameters():  # some start at zero, and would hide what they do
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    x, noise, vector = (
        torch.randn(3, *shape, generator=rng),
        torch.linspace(-1, 1, 3),
        torch.randn(3, network.vector_channels),
    )
    with torch.no_grad():
        whole, alone = network(x, noise, vector), network(x[:1], noise[:1], vector[:1])
        without, other_noise = network(x, noise), network(x, noise + 1, vector)
    return [
        at_most(f"{name}: output of another shape", whole.shape != x.shape or without.shape != x.shape, 0),
        at_most(f"{name}: influence of one sample on another", largest(whole[:1] - alone), 1e-9),
        at_least(f"{name}: influence of the noise level", largest(whole - other_noise), 1e-9),
        at_least(f"{name}: influence of the condition's vector", largest(whole - without), 1e-9),
    ]


def of_noise_distribution(kind: str) -> list[Check]:
    """Positive, finite noise levels, as many as asked for, the same from the same generator, with its quantiles."""
    config = config_of(NoiseDistributionConfig, kind)()
    sigmas, again = (sample_sigmas(config, 1000, generator(0, "verify parts sigma")) for _ in range(2))
    shares = torch.tensor([0.1, 0.5, 0.9])
    stated = create_noise_distribution(config).quantile(shares).double()
    many = sample_sigmas(config, 20_000, generator(0, "verify parts sigma")).double()
    return [
        at_least(f"noise distribution {kind}: smallest of 1000 levels", sigmas.min(), 1e-30),
        at_most(
            f"noise distribution {kind}: levels that are not finite, or missing",
            int((~sigmas.isfinite()).sum()) + abs(len(sigmas) - 1000),
            0,
        ),
        at_most(f"noise distribution {kind}: drawn again, largest difference", largest(sigmas - again), 0),
        at_most(
            f"noise distribution {kind}: ln σ of quantiles of 20,000 levels, furthest from those stated",
            largest(many.quantile(shares.double()).log() - stated.log()),
            0.15,
        ),
    ]


def of_weighting(kind: str) -> Check:
    """A weight is positive and finite at every noise level."""
    config, sigma = config_of(WeightingConfig, kind)(), torch.logspace(-3, 3, 61)
    weight = error_scale(config, Denoiser(torch.nn.Identity()), sigma) ** -2
    wrong = (~weight.isfinite() | (weight <= 0)).sum() + abs(len(weight) - len(sigma))
    return at_most(f"weighting {kind}: weights from σ = 0.001 to 1000 that are not positive", int(wrong), 0)
