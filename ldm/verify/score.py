"""E[x | x̃] − x̃ = σ² ∇log p_σ(x̃): a denoiser knows the score (Robbins 1956, Miyasawa 1961, Vincent 2011)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldm.autoencoder.config import AutoencoderConfig, IdentityConfig, LinearNetworkConfig, ReconstructionObjectiveConfig
from ldm.batch import Condition, LatentBatch
from ldm.corruption import GaussianNoise
from ldm.diffusion.config import PARAMETRIZATIONS
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.losses.config import LogUniformConfig
from ldm.diffusion.losses.noise_distribution import sample_sigmas
from ldm.diffusion.noise import broadcast_sigma
from ldm.diffusion.objective import DenoisingObjective
from ldm.randomness import generator
from ldm.verify.check import Check, at_least, at_most
from ldm.verify.known_data import covariance, gaussian
from ldm.verify.training import as_images, as_vectors, objective_of, reproducible, train

CENTERS = ((1.0, 0.0), (-0.6, 0.8), (-0.4, -0.9))
STD = 0.3  # of each of the three Gaussians
WHOLE_STD = 0.77  # of the mixture, which the denoiser is told
LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0)


class Perceptron(nn.Module):
    """A small network on the plane, told the noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.SiLU())]
        self.layers = nn.Sequential(nn.Linear(3, width), nn.SiLU(), *hidden, nn.Linear(width, 2))

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        output: Tensor = self.layers(torch.cat([scaled, noise_condition[:, None]], dim=1))
        return output


class Constant(nn.Module):
    """A network that always puts out the same tensor."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        return self.output


def checks(*, small: bool = False) -> Iterator[Check]:
    """Of a diffusion denoiser, of a denoising autoencoder, and from one parametrization to another."""
    yield from of_mixture(small=small)
    yield from of_autoencoder(small=small)
    yield from of_parametrizations()


@reproducible("truth score mixture", torch.float32)
def of_mixture(*, small: bool) -> list[Check]:
    """One EDM-preconditioned network over all noise levels, against the mixture's exact score."""
    denoiser, found = trained(steps=500 if small else 4000, batch=512 if small else 1024), []
    # A miniature has seen a sixteenth of the points.
    most, least = (0.3, 0.95) if small else (0.1, 0.99)
    for sigma in LEVELS:
        points = mixture(4000, generator(0, "truth score points", round(1000 * sigma)))
        points = points + sigma * torch.randn(
            points.shape, generator=generator(0, "truth score noise", round(1000 * sigma))
        )
        exact = exact_score(points.double(), sigma)
        with torch.no_grad():
            score = denoiser.score(points, torch.full((len(points),), sigma)).double()
        cosine = (score * exact).sum() / (score.norm() * exact.norm())
        found += [
            at_most(f"mixture, σ {sigma}: score, relative error", (score - exact).norm() / exact.norm(), most),
            at_least(f"mixture, σ {sigma}: score, cosine", cosine, least),
        ]
    return found


@reproducible("truth score autoencoder")
def of_autoencoder(*, small: bool) -> list[Check]:
    """A linear denoising autoencoder of Gaussian data N(μ, C) has the score −(C + σ² I)⁻¹ (x̃ − μ)."""
    size, sigma, steps = (4, 0.5, 500) if small else (8, 0.5, 2000)
    vectors, _ = gaussian(512 if small else 2048, 2 * 0.7 ** torch.arange(size).double(), "score", mean=0.2)
    images = as_images(vectors)
    objective = objective_of(
        AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=IdentityConfig(channels=2 * size)),
        ReconstructionObjectiveConfig(distance="mse", corruption=GaussianNoise(sigma=sigma)),
        images=images,
        steps=steps,
    )
    train(objective, images, lr=1e-2)
    noisy = images + sigma * torch.randn(images.shape, generator=generator(0, "truth score noisy"))
    with torch.no_grad():
        score = as_vectors(objective.autoencoder.score(noisy, sigma))
    smoothed = covariance(vectors) + sigma**2 * torch.eye(size)
    exact = -torch.linalg.solve(smoothed, (as_vectors(noisy) - vectors.mean(0)).T).T
    bound = 0.1 if small else 0.05
    return [at_most("denoising autoencoder: score, relative error", (score - exact).norm() / exact.norm(), bound)]


@reproducible("truth score parametrizations")
def of_parametrizations() -> list[Check]:
    """clean -> the network's target -> clean again, and the score −noise / σ that belongs to it.

    The score divides a difference of two numbers of the size of `noisy` by σ², and so does its rounding.
    """
    clean, noise = torch.randn(2, 64, 2, generator=generator(0, "truth score pair")).unbind()
    sigma = torch.logspace(-1, 1, 64)
    noisy, found = clean + broadcast_sigma(sigma, noise) * noise, []
    for name in PARAMETRIZATIONS:
        target = Denoiser(nn.Identity(), parametrization=name).target(noisy, sigma, clean)
        denoiser = Denoiser(Constant(target), parametrization=name)
        again, score = denoiser(noisy, sigma, None), denoiser.score(noisy, sigma, None)
        off = broadcast_sigma(sigma, noise) * score + noise
        found += [
            at_most(f"{name}: clean -> target -> clean, largest error", (again - clean).abs().max(), 1e-12),
            at_most(f"{name}: σ score + noise, largest", off.abs().max(), 1e-12),
        ]
    return found


def trained(*, steps: int, batch: int) -> Denoiser:
    """A denoiser of the mixture, over noise levels from 0.05 to 2."""
    denoiser = Denoiser(Perceptron(48), sigma_data=WHOLE_STD)
    objective = DenoisingObjective(denoiser)
    optimizer = torch.optim.Adam(denoiser.parameters(), betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / steps)) / 2
        rng = generator(0, "truth score batch", step)
        clean, sigma = mixture(batch, rng), sample_sigmas(LogUniformConfig(low=0.05, high=2.0), batch, rng)
        noise = torch.randn(batch, 2, generator=rng)
        loss = objective(LatentBatch(clean, noise, sigma, Condition({}))).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return denoiser


def mixture(count: int, rng: torch.Generator) -> Tensor:
    """Points of the clean mixture."""
    centers = torch.tensor(CENTERS)[torch.randint(3, (count,), generator=rng)]
    return centers + STD * torch.randn(count, 2, generator=rng)


def exact_score(points: Tensor, sigma: float) -> Tensor:
    """∇ log p_σ of the mixture: towards each center by its responsibility, over the variance STD² + σ²."""
    variance = STD**2 + sigma**2
    towards = torch.tensor(CENTERS, dtype=points.dtype) - points[:, None]
    shares = torch.softmax(-towards.square().sum(-1) / (2 * variance), dim=1)
    return (shares[..., None] * towards).sum(1) / variance
