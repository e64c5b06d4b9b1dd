"""Each parametrization preconditions its network as the table says (Karras et al. 2022), and all are equivalent."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldm.batch import Condition, LatentBatch
from ldm.diffusion.config import PARAMETRIZATIONS, ParametrizationFacts
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.losses.config import (
    EDMWeightingConfig,
    EpsWeightingConfig,
    FlowWeightingConfig,
    UniformWeightingConfig,
    WeightingConfig,
)
from ldm.diffusion.noise import broadcast_sigma
from ldm.diffusion.objective import DenoisingObjective
from ldm.randomness import generator
from ldm.verify.check import Check, at_most
from ldm.verify.training import reproducible

OWN_WEIGHTINGS: dict[
    str, WeightingConfig
] = {  # the weight that goes with each parametrization where nothing is weighted
    "edm": EDMWeightingConfig(),
    "x0": UniformWeightingConfig(),
    "eps": EpsWeightingConfig(),
    "flow": FlowWeightingConfig(),
}
LEVELS = (0.05, 0.1, 0.3, 1.0, 2.5, 10.0, 80.0)
COUNT = 64


class Recording(nn.Module):
    """A network that always says the same number, and remembers what it was given."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        self.given = scaled
        return torch.full_like(scaled, self.value)


class Converted(nn.Module):
    """The network with which a denoiser of another parametrization gives the same answers as `denoiser`."""

    def __init__(self, denoiser: Denoiser, parametrization: str) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.other = Denoiser(nn.Identity(), parametrization=parametrization)

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        sigma = (4 * noise_condition).exp()
        noisy = scaled / self.other.c_in(broadcast_sigma(sigma, scaled))
        return self.other.target(noisy, sigma, self.denoiser(noisy, sigma))


class Wave(nn.Module):
    """A smooth network without a meaning."""

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        return (1.7 * scaled + broadcast_sigma(noise_condition, scaled)).sin()


def checks(*, small: bool = False) -> Iterator[Check]:
    """Takes no time, so that the miniature is the whole."""
    for name, facts in PARAMETRIZATIONS.items():
        yield from of_variances(name, facts)
        if facts.keeps_clean_input:
            yield of_no_noise(name)
    for name, weighting in OWN_WEIGHTINGS.items():
        yield of_weight(name, weighting)
    yield from of_conversion()
    yield of_velocity()


@reproducible("truth denoiser variances")
def of_variances(name: str, facts: ParametrizationFacts) -> list[Check]:
    """Over all noise levels, of data and noise of unit variance that do not correlate, against the table's facts.

    All but flow give the network an input, and ask it for a target, of unit variance. Flow, with σ = t / (1 − t),
    gives it (1 − t) clean + t noise, and asks for noise − clean, of variance 2.
    """
    clean, noise = unit_pair()
    denoiser = Denoiser(network := Recording(0.0), parametrization=name)
    inputs, targets, losses = [], [], []
    for level in LEVELS:
        t, sigma = level / (1 + level), torch.full((COUNT,), level)
        batch = LatentBatch(clean, noise, sigma, Condition({}))
        losses.append(float(DenoisingObjective(denoiser)(batch).total) / facts.target_variance)
        inputs.append(variance(network.given) / ((1 - t) ** 2 + t**2 if facts.input_is_path else 1.0))
        targets.append(variance(denoiser.target(clean + level * noise, sigma, clean)) / facts.target_variance)
    of_path, expected = "that of the path" if facts.input_is_path else "1", f"{facts.target_variance:g}"
    return [
        at_most(f"{name}: variance of the input over {of_path}, furthest from 1", furthest(inputs), 1e-10),
        at_most(f"{name}: variance of the target over {expected}, furthest from 1", furthest(targets), 1e-10),
        at_most(f"{name}: loss of a network of zeros over {expected}, furthest from 1", furthest(losses), 1e-10),
    ]


@reproducible("truth denoiser limit")
def of_no_noise(name: str) -> Check:
    """The answer is the input as σ goes to 0, whatever the network says."""
    noisy = torch.randn(COUNT, 2, generator=generator(0, "truth denoiser noisy"))
    answer = Denoiser(Recording(0.5), parametrization=name)(noisy, torch.full((COUNT,), 1e-6))
    return at_most(f"{name}: |D - noisy| at σ = 1e-6, largest", (answer - noisy).abs().max(), 1e-5)


@reproducible("truth denoiser weight")
def of_weight(name: str, weighting: WeightingConfig) -> Check:
    """The loss of one parametrization in the weight of that name, given to all others: only the answer counts."""
    (clean, noise), sigma = unit_pair(), torch.logspace(-1, 1, COUNT)
    batch = LatentBatch(clean, noise, sigma, Condition({}))
    start = Denoiser(Wave(), parametrization=name)
    plain = DenoisingObjective(start)(batch).total
    others = [Denoiser(Converted(start, other), parametrization=other) for other in PARAMETRIZATIONS]
    losses = torch.stack([DenoisingObjective(other, weighting)(batch).total for other in others])
    kind = f"weighting {weighting.kind}: loss of others over the plain loss of {name}"
    return at_most(f"{kind}, furthest from 1", furthest((losses / plain).tolist()), 1e-10)


@reproducible("truth denoiser conversion")
def of_conversion() -> list[Check]:
    """Through every parametrization in turn and back to the first."""
    noisy = torch.randn(COUNT, 2, generator=generator(0, "truth denoiser noisy"))
    sigma = torch.logspace(-1, 1, COUNT)
    first, *others = PARAMETRIZATIONS
    denoiser = start = Denoiser(Wave(), parametrization=first)
    for name in [*others, first]:
        denoiser = Denoiser(Converted(denoiser, name), parametrization=name)
    answers, scores = (
        [answer(noisy, sigma) for answer in pair] for pair in ((start, denoiser), (start.score, denoiser.score))
    )
    way = " -> ".join([first, *others, first])
    return [
        at_most(f"{way}: answer, largest change", (answers[0] - answers[1]).abs().max(), 1e-12),
        at_most(
            f"{way}: σ score, largest change",
            (broadcast_sigma(sigma, noisy) * (scores[0] - scores[1])).abs().max(),
            1e-12,
        ),
    ]


@reproducible("truth denoiser velocity")
def of_velocity() -> Check:
    """At σ_data 1 the target of EDM is −v = −(noise − σ clean) / √(1 + σ²) of Salimans and Ho 2022."""
    (clean, noise), sigma = unit_pair(), torch.logspace(-1, 1, COUNT)
    level = broadcast_sigma(sigma, clean)
    velocity = (noise - level * clean) / (1 + level**2).sqrt()
    target = Denoiser(nn.Identity()).target(clean + level * noise, sigma, clean)
    return at_most("edm: target + v, largest", (target + velocity).abs().max(), 1e-12)


def unit_pair() -> tuple[Tensor, Tensor]:
    """Clean data and noise whose sample moments are exact: of mean 0 and variance 1, and orthogonal."""
    drawn = torch.randn(COUNT, 2, generator=generator(0, "truth denoiser pair"))
    basis = torch.linalg.qr(drawn - drawn.mean(0)).Q * math.sqrt(COUNT)
    return basis[:, :1], basis[:, 1:]


def variance(values: Tensor) -> float:
    """Around 0."""
    return float(values.square().mean())


def furthest(ratios: list[float]) -> float:
    """How far the one that is furthest from 1 is from it."""
    return max(abs(ratio - 1) for ratio in ratios)
