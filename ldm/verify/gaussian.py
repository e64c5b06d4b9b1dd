"""The Gaussian skip of a denoiser (EDM with a matrix for σ_data): the best linear denoiser, fitted for unseen data."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldm.batch import Condition, LatentBatch
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gaussian import LatentGaussian, fit_gaussian
from ldm.diffusion.objective import DenoisingObjective
from ldm.randomness import generator
from ldm.verify.check import Check, at_least, at_most
from ldm.verify.training import reproducible

LEVELS = (0.05, 0.1, 0.3, 1.0, 2.5, 10.0, 80.0)
SHAPE = (2, 2, 2)
SIZE, COUNT = 8, 64
VARIANCES = (9.0, 4.0, 1.0, 0.5, 0.2, 0.05, 0.02, 0.01)


class Zero(nn.Module):
    """A network of zeros."""

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        return torch.zeros_like(scaled)


def checks(*, small: bool = False) -> Iterator[Check]:
    """Takes hardly any time, so that the miniature is the whole but for the number of latents."""
    yield from of_losses()
    yield from of_limits()
    yield from of_unseen_data(100 if small else 400)


@reproducible("truth gaussian loss")
def of_losses() -> list[Check]:
    """Data with exactly the moments of the Gaussian, and far from Gaussian, with noise that is orthogonal to them."""
    drawn = torch.randn(COUNT, 2 * SIZE, generator=generator(0, "truth gaussian data")) ** 3
    moments = torch.linalg.qr(drawn - drawn.mean(0)).Q * math.sqrt(COUNT)
    (mean, basis), noise = mean_and_basis(), moments[:, SIZE:].reshape(-1, *SHAPE)
    clean = (moments[:, :SIZE] * torch.tensor(VARIANCES).sqrt() @ basis.mT + mean).view(-1, *SHAPE)
    found = []
    for rank in (0, 3, SIZE):
        objective = DenoisingObjective(Denoiser(Zero(), gaussian=gaussian(rank)))
        losses = [
            float(objective(LatentBatch(clean, noise, torch.full((COUNT,), level), Condition({}))).total)
            for level in LEVELS
        ]
        name = f"rank {rank}: loss of a network of zeros, furthest from 1"
        found.append(at_most(name, max(abs(loss - 1) for loss in losses), 1e-10))
    return found


@reproducible("truth gaussian limit")
def of_limits() -> list[Check]:
    """All components give the posterior mean of Gaussian data, none give EDM; without noise the answer is the input."""
    mean, basis = mean_and_basis()
    noisy = torch.randn(COUNT, *SHAPE, generator=generator(0, "truth gaussian noisy"))
    covariance, off = basis * torch.tensor(VARIANCES) @ basis.mT, []
    for level in LEVELS:
        gain = covariance @ torch.linalg.inv(covariance + level**2 * torch.eye(SIZE))
        exact = (mean + (noisy.flatten(1) - mean) @ gain.mT).view_as(noisy)
        off.append((Denoiser(Zero(), gaussian=gaussian(SIZE))(noisy, level) - exact).abs().max())
    unfitted = Denoiser(Zero(), gaussian=LatentGaussian(SHAPE, 0))
    from_edm = [(unfitted(noisy, level) - Denoiser(Zero())(noisy, level)).abs().max() for level in LEVELS]
    still = (Denoiser(Zero(), gaussian=gaussian(3))(noisy, 1e-6) - noisy).abs().max()
    return [
        at_most("all components: |D − posterior mean of Gaussian data|, largest", max(off), 1e-10),
        at_most("rank 0, mean 0, variance 1: |D − D of EDM|, largest", max(from_edm), 1e-12),
        at_most("rank 3: |D − noisy| at σ = 1e-6, largest", still, 1e-5),
    ]


@reproducible("truth gaussian fit")
def of_unseen_data(count: int) -> list[Check]:
    """Fitted to few latents of 64 numbers, and tried on others: by cross-validation, and by the sample covariance."""
    shape, scales = (4, 4, 4), torch.logspace(1, -2, 64)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator(0, "truth gaussian basis"))).Q
    drawn = torch.randn(count + 2000, 64, generator=generator(0, "truth gaussian latents")) * scales @ basis.mT
    seen, unseen = (part.view(-1, *shape) for part in (drawn[:count], drawn[count:]))
    fitted, raw = fit_gaussian(seen).double(), LatentGaussian(shape, 64)
    centered = (seen - seen.mean(0)).flatten(1)
    values, vectors = torch.linalg.eigh(centered.mT @ centered / count)
    for buffer, value in ((raw.mean, seen.mean(0)), (raw.basis, vectors.flip(1)), (raw.eigenvalues, values.flip(0))):
        buffer.copy_(value)
    noise, off, better = torch.randn(unseen.shape, generator=generator(0, "truth gaussian noise")), [], []
    for level in (0.1, 0.3, 1.0):
        errors = [
            float((each.denoise(unseen + level * noise, level) - unseen).square().mean()) for each in (fitted, raw)
        ]
        off.append(abs(errors[0] / float(fitted.c_out(torch.tensor([level]))) ** 2 - 1))
        better.append(errors[1] / errors[0])
    return [
        at_most(f"fitted to {count}: error on others over c_out², furthest from 1", max(off), 0.1),
        at_least(f"fitted to {count}: error of the sample covariance over its own at σ = 0.1", better[0], 1.02),
    ]


def mean_and_basis() -> tuple[Tensor, Tensor]:
    """The mean and the eigenvectors of the Gaussian."""
    rng = generator(0, "truth gaussian")
    return torch.randn(SIZE, generator=rng), torch.linalg.qr(torch.randn(SIZE, SIZE, generator=rng)).Q


def gaussian(rank: int) -> LatentGaussian:
    """The Gaussian of those moments, with so many components."""
    (mean, basis), found = mean_and_basis(), LatentGaussian(SHAPE, rank)
    found.mean.copy_(mean.view(SHAPE))
    found.basis.copy_(basis[:, :rank])
    found.eigenvalues.copy_(torch.tensor(VARIANCES[:rank]))
    found.rest.fill_(sum(VARIANCES[rank:]) / (SIZE - rank) if rank < SIZE else 1)
    return found
