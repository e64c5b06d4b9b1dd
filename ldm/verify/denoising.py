"""A linear denoising autoencoder is the best linear estimate of the clean image, and never the identity, however wide
its code (Vincent et al. 2010; the Wiener filter, where the noise is Gaussian).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.autoencoder.config import AutoencoderConfig, IdentityConfig, LinearNetworkConfig, ReconstructionObjectiveConfig
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.corruption import Corruption, GaussianNoise, Mask, SaltAndPepper
from ldm.randomness import StepRandom
from ldm.verify.check import Check, at_least, at_most
from ldm.verify.known_data import covariance, gaussian
from ldm.verify.training import as_images, as_vectors, objective_at, objective_of, reproducible, train

SIGMA, HIDDEN, FLIPPED = 0.7, 0.4, 0.3


def checks(*, small: bool = False) -> Iterator[Check]:
    """Three corruptions against their closed forms, and what each does to its images."""
    yield from of_gaussian(small=small)
    yield from of_mask(small=small)
    yield from of_salt_and_pepper(small=small)
    yield from of_what_is_touched(small=small)


@reproducible("truth denoising gaussian")
def of_gaussian(*, small: bool) -> list[Check]:
    """C (C + σ² I)⁻¹."""
    vectors = spread_out(small)
    known = filtered(covariance(vectors), covariance(vectors) + SIGMA**2 * torch.eye(vectors.shape[1]))
    return compared("gaussian", GaussianNoise(sigma=SIGMA), vectors, known, small=small)


@reproducible("truth denoising mask")
def of_mask(*, small: bool) -> list[Check]:
    """q C (q² C + q (1 - q) diag C)⁻¹ of centered data, where q is the share that is kept."""
    vectors, kept = spread_out(small), 1 - HIDDEN
    c = covariance(vectors)
    known = filtered(kept * c, kept**2 * c + kept * (1 - kept) * c.diag().diag())
    return compared("mask", Mask(unit="element", fraction=HIDDEN), vectors, known, small=small)


@reproducible("truth denoising salt and pepper")
def of_salt_and_pepper(*, small: bool) -> list[Check]:
    """Of numbers in [0, 1] each becomes 0 or 1 with probability p / 2: with q = 1 - p the corrupted mean is
    q μ + p / 2, and E[x̃x̃ᵀ] is q² E[xᵢxⱼ] + q (p / 2) (μᵢ + μⱼ) + p² / 4 off the diagonal, q E[xᵢ²] + p / 2 on it.
    """
    vectors, p, q = torch.sigmoid(2 * spread_out(small)), FLIPPED, 1 - FLIPPED
    mean, products = vectors.mean(0), vectors.T @ vectors / len(vectors)
    second = q**2 * products + q * (p / 2) * (mean[:, None] + mean) + p**2 / 4
    second = second - second.diag().diag() + (q * products.diag() + p / 2).diag()
    grainy = q * mean + p / 2
    known = filtered(q * covariance(vectors), second - torch.outer(grainy, grainy))
    corruption = SaltAndPepper(probability=p, low=0.0, high=1.0)
    return compared("salt and pepper", corruption, vectors, known, offset=mean - known @ grainy, small=small)


@reproducible("truth denoising touched")
def of_what_is_touched(*, small: bool) -> list[Check]:
    """The stated share of elements, within what chance allows; the others, and the target, are left alone."""
    images = as_images(spread_out(small).repeat(4, 1).clamp(-0.9, 0.9))
    grainy, _ = corrupted(SaltAndPepper(probability=FLIPPED), images)
    noise = corrupted(GaussianNoise(sigma=SIGMA), images)[0] - images
    uneven = abs(rate(grainy == 1) - rate(grainy == -1)) / (FLIPPED / images.numel()) ** 0.5
    strength = abs(float(noise.square().mean()) / SIGMA**2 - 1) / (2 / images.numel()) ** 0.5
    return [
        *of_share("mask", Mask(unit="element", fraction=HIDDEN), HIDDEN, images),
        *of_share("salt and pepper", SaltAndPepper(probability=FLIPPED), FLIPPED, images),
        at_most("salt less pepper, standard deviations off", uneven, 4),
        at_most("gaussian: variance, standard deviations off", strength, 4),
        at_most("the target against the clean image, largest difference", of_target(images), 0),
    ]


def of_share(name: str, corruption: Corruption, share: float, images: Tensor) -> list[Check]:
    """How many elements differ, and whether they are those that are said to."""
    values, elements = corrupted(corruption, images)
    deviation = (share * (1 - share) / images.numel()) ** 0.5
    return [
        at_most(f"{name}: share touched, standard deviations off", abs(rate(values != images) - share) / deviation, 4),
        at_most(
            f"{name}: fraction changed and not reported, or reported and not changed",
            rate((values != images) != elements),
            0,
        ),
    ]


def corrupted(corruption: Corruption, images: Tensor) -> tuple[Tensor, Tensor]:
    """What becomes of the images in step 0, and which elements are said to have been touched."""
    found = corruption(images, StepRandom(0, 0, len(images)), name="input", patch=(1, 1))
    return found.values, torch.ones(()) if found.elements is None else found.elements


def of_target(images: Tensor) -> float:
    """How far what the objective asks for is from the images, when the encoder sees corrupted ones."""
    losses = objective_at(linear(GaussianNoise(sigma=SIGMA), images, steps=1), images)
    return float((losses.outputs["images"] - images).abs().max())


def spread_out(small: bool) -> Tensor:
    """Centred Gaussian vectors whose variances fall from 2 to a small fraction of it."""
    size = 6 if small else 16
    return gaussian(512 if small else 2048, 2 * (0.6 if small else 0.8) ** torch.arange(size).double(), "denoising")[0]


def filtered(cross: Tensor, corrupted: Tensor) -> Tensor:
    """Cov(x, x̃) Cov(x̃)⁻¹, the matrix of the best linear estimate of x."""
    return torch.linalg.solve(corrupted, cross, left=False)


def linear(corruption: Corruption, images: Tensor, *, steps: int) -> ReconstructionObjective:
    """A linear autoencoder with a code of twice the size of its images."""
    return objective_of(
        AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=IdentityConfig(channels=2 * images[0].numel())),
        ReconstructionObjectiveConfig(distance="mse", corruption=corruption),
        images=images,
        steps=steps,
    )


def compared(
    name: str, corruption: Corruption, vectors: Tensor, known: Tensor, *, offset: Tensor | None = None, small: bool
) -> list[Check]:
    """Matrix and offset from image to reconstruction after training, against those that are known; no offset is 0."""
    objective = linear(corruption, as_images(vectors), steps=500 if small else 2000)
    train(objective, as_images(vectors), lr=1e-2)
    identity = torch.eye(len(known))
    with torch.no_grad():
        points = as_images(torch.cat([torch.zeros(1, len(known)), identity]))
        origin, *columns = as_vectors(objective.autoencoder.reconstruct(points))
    matrix = torch.stack(columns, 1) - origin[:, None]
    off = origin if offset is None else origin - offset
    # The noise of the last steps is averaged over fewer images in miniature.
    bound = 0.05 if small else 0.02
    return [
        at_most(
            f"{name}: matrix against its closed form, relative error", (matrix - known).norm() / known.norm(), bound
        ),
        at_most(f"{name}: offset against its closed form, largest error", off.abs().max(), bound),
        at_least(f"{name}: distance to the identity, relative", (matrix - identity).norm() / identity.norm(), 0.3),
    ]


def rate(happened: Tensor) -> float:
    """The share of true values."""
    return float(happened.double().mean())
