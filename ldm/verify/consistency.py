"""Consistency functions that are known, and the tuning of one: the sampler, the Gaussian's own, the loss, a network.

Of Gaussian data with the variance λ a path goes from σ to r as x(r) = √((λ + r²) / (λ + σ²)) x(σ), so it ends at
√(λ / (λ + σ²)) x(σ). Tuning compares two noisy latents of the same noise instead of two on one path, and the best
linear answer at σ to the exact one at r is then too small by

    (λ + r σ) / √((λ + r²) (λ + σ²)) = 1 − O((σ − r)²)

which is why r must come near σ, and why it is enough that it does.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from ldm.batch import Condition, LatentBatch
from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.consistency import ConsistencyObjective, ConsistencyStages
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.losses.config import ConsistencyObjectiveConfig
from ldm.diffusion.noise import consistency_sigmas
from ldm.randomness import generator
from ldm.verify.check import Check, at_least, at_most
from ldm.verify.gaussian import Zero
from ldm.verify.training import reproducible

LEVELS = (0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 40.0)
MEAN, VARIANCE = 0.5, 0.36
HIGHEST = 20.0  # noise level from which the network samples


def checks(*, small: bool = False) -> Iterator[Check]:
    """Closed forms, and a small network that is trained for a second or two, in full for some ten."""
    yield from of_paths()
    yield of_sampler(20 if small else 100)
    yield from of_loss()
    yield of_neighbors()
    yield from of_network(200 if small else 2000, 0.25 if small else 0.1)


def gaussian(variances: Tensor) -> LatentGaussian:
    """That of so many independent numbers with a mean, all of them principal components."""
    found = LatentGaussian((len(variances), 1, 1), len(variances))
    found.mean.fill_(MEAN)
    found.basis.copy_(torch.eye(len(variances)))
    found.eigenvalues.copy_(variances)
    return found


@reproducible("truth consistency paths")
def of_paths() -> list[Check]:
    """The Gaussian's consistency function along exact paths, at no noise, and of noise alone."""
    variances = torch.tensor([4.0, 1.0, 0.05])
    known, unit = gaussian(variances), torch.randn(50, 3, 1, 1)
    ends = torch.stack([known.path_end(known.noised(unit, level), level) for level in LEVELS])
    still = known.path_end(unit, 1e-6)
    return [
        at_most("Gaussian: answers along a path, difference", (ends - ends[0]).abs().max(), 1e-12),
        at_most("Gaussian: answer to noise - sample of the same noise", (ends - known.sample(unit)).abs().max(), 1e-12),
        at_most("Gaussian: answer without noise - input", (still - unit).abs().max(), 1e-10),
    ]


@reproducible("truth consistency sampler")
def of_sampler(most: int) -> Check:
    """With the exact consistency function any number of steps draws from the data: here, the variance of that.

    Row 0 starts at the standard deviation of the noisy data and gets no noise, row i + 1 gets that of step i alone; all
    is linear, so the variance is the sum of squares.
    """
    known, off = gaussian(torch.tensor([VARIANCE])), 0.0
    known.mean.zero_()
    sample = SAMPLERS["consistency"].load()
    for steps in range(1, most + 1):
        sigmas, start = consistency_sigmas(steps, 0.01, 40.0, 7.0), torch.zeros(steps + 1, 1, 1, 1)
        start[0] = math.sqrt(VARIANCE + sigmas[0].item() ** 2)
        rows = torch.eye(steps + 1)

        def noise(step: int, rows: Tensor = rows) -> Tensor:
            return rows[step + 1].view(-1, 1, 1, 1)

        final = sample(known.path_end, start, sigmas, noise=noise)
        off = max(off, abs(float((final**2).sum()) / VARIANCE - 1))
    return at_most(f"sampler, 1 to {most} steps: variance of samples of Gaussian data, off", off, 1e-12)


@reproducible("truth consistency loss")
def of_loss() -> list[Check]:
    """Where the data are one image its consistency function is that image, and its loss is 0 in every stage."""
    image = LatentGaussian((2, 2, 2), 0)
    image.mean.copy_(torch.linspace(-1, 1, 8).view(2, 2, 2))
    image.rest.zero_()
    objective = ConsistencyObjective(Denoiser(Zero(), gaussian=image, consistency=True), ConsistencyObjectiveConfig())
    stages, sigma = ConsistencyStages(objective, 8), torch.tensor(LEVELS)
    noise = torch.randn(len(sigma), 2, 2, 2)
    batch = LatentBatch(image.mean.expand(len(sigma), 2, 2, 2), noise, sigma, Condition({}))
    losses, gaps, highest = [], [], torch.tensor([HIGHEST])
    for step in range(8):
        stages.begin_step(step)
        losses.append(float(objective(batch).total * sigma.min()))
        gaps.append(float(1 - objective.lower_level(highest) / highest))
    halved = max(abs(later / earlier - 0.5) for earlier, later in pairwise(gaps))
    return [
        at_most("loss of the exact function of one image, in 8 stages", max(losses), 1e-5),
        at_most("(σ - r) / σ at a high level, in one stage over the one before, off 1/2", halved, 1e-12),
        at_most("the same in the first stage, off 1/2", abs(gaps[0] - 0.5), 1e-3),
    ]


@reproducible("truth consistency neighbors")
def of_neighbors() -> Check:
    """The best linear answer to the exact one at r, by moments of Gaussian data that are exact, beside its formula."""
    moments = torch.linalg.qr(torch.randn(64, 2)).Q * 8
    clean, noise = moments[:, 0] * math.sqrt(VARIANCE), moments[:, 1]
    off = 0.0
    for sigma in LEVELS:
        for ratio in (0.0, 0.5, 0.9, 0.99):
            lower = ratio * sigma
            noisy = clean + sigma * noise
            target = math.sqrt(VARIANCE / (VARIANCE + lower**2)) * (clean + lower * noise)
            best = float((target * noisy).sum() / noisy.square().sum())
            exact = math.sqrt(VARIANCE / (VARIANCE + sigma**2))
            share = (VARIANCE + lower * sigma) / math.sqrt((VARIANCE + lower**2) * (VARIANCE + sigma**2))
            off = max(off, abs(best / exact / share - 1))
    return at_most("best linear answer to the one at r, over its formula, off 1", off, 1e-12)


class Small(nn.Module):
    """Two hidden layers on one number and the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        answer: Tensor = self.layers(torch.cat([scaled.flatten(1), noise_condition[:, None]], 1))
        return answer.view_as(scaled)


@reproducible("truth consistency network", dtype=torch.float32)
def of_network(steps: int, bound: float) -> list[Check]:
    """A network without a Gaussian skip, tuned on Gaussian numbers: its samples of one step beside the exact ones.

    The best denoiser would answer all noise with the mean, and its samples would not vary at all.
    """
    denoiser = Denoiser(Small())
    objective = ConsistencyObjective(denoiser, ConsistencyObjectiveConfig(stages=6))
    stages, optimizer = ConsistencyStages(objective, steps), torch.optim.Adam(denoiser.parameters(), 3e-3)
    for step in range(steps):
        stages.begin_step(step)
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rng = generator(0, "truth consistency batch", step)
        unit, noise, level = torch.randn(3, 256, generator=rng)
        clean = (MEAN + math.sqrt(VARIANCE) * unit).view(-1, 1, 1, 1)
        sigma = (2 * level - 0.4).exp().clamp(1e-3, 100.0)
        loss = objective(LatentBatch(clean, noise.view_as(clean), sigma, Condition({}))).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noisy = HIGHEST * torch.linspace(-2, 2, 41).view(-1, 1, 1, 1)
    with torch.no_grad():
        found = denoiser.eval()(noisy, HIGHEST)
    exact = gaussian(torch.tensor([VARIANCE])).path_end(noisy, HIGHEST)
    slope = float((found * noisy).sum() / ((exact - MEAN) * noisy).sum())
    return [
        at_most("a tuned network: std of one-step samples over that of the data, off 1", abs(slope - 1), bound),
        at_least(
            "a tuned network: correlation of one-step samples with the exact ones", correlation(found, exact), 0.99
        ),
    ]


def correlation(one: Tensor, other: Tensor) -> float:
    """Of two sets of numbers."""
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])
