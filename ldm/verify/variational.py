"""A linear variational autoencoder whose decoder has a fixed variance s² is probabilistic PCA (Tipping and Bishop 1999;
Lucas et al. 2019): a direction of the data with variance λ > s² has one latent with posterior variance s²/λ, and the
latents that are left over collapse.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, LinearNetworkConfig, ReconstructionObjectiveConfig
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.randomness import generator
from ldm.verify.check import Check, at_least, at_most
from ldm.verify.known_data import gaussian
from ldm.verify.training import as_images, objective_at, objective_of, reproducible, train

NOISE = 0.5  # s²


def checks(*, small: bool = False) -> Iterator[Check]:
    """The KL of any posterior, and all of probabilistic PCA."""
    yield from of_kl(small=small)
    yield from of_probabilistic_pca(small=small)


@reproducible("truth variational kl")
def of_kl(*, small: bool) -> list[Check]:
    """The formula against the mean of log q(z) − log p(z) over samples, and 0 for the prior itself."""
    count = 20_000 if small else 200_000
    rng = generator(0, "truth variational posteriors")
    mean, logvar = torch.randn(2, 8, 4, 1, 1, generator=rng).unbind()
    posterior = Posterior(mean, logvar)
    many = Posterior(mean.repeat(count, 1, 1, 1), logvar.repeat(count, 1, 1, 1))
    samples = many.sample(rng)
    squared = samples.square() - (samples - many.mean).square() / many.variance
    ratios = (0.5 * (squared - logvar.repeat(count, 1, 1, 1))).flatten(1).sum(1).view(count, 8)
    deviations = (ratios.mean(0) - posterior.kl()).abs() / (ratios.std(0) / count**0.5)
    prior = Posterior(torch.zeros(1, 4, 1, 1), torch.zeros(1, 4, 1, 1))
    distances = torch.logspace(-2, 0.5, 4096).view(-1, 1, 1, 1)  # from the prior
    others = Posterior(*(distances * torch.randn(2, 4096, 4, 1, 1, generator=rng)).unbind())
    return [
        at_most("KL against a Monte-Carlo estimate, standard errors off", deviations.max(), 4),
        at_least("smallest KL of 4096 posteriors", others.kl().min(), 0),
        at_most("KL of the prior, absolute", prior.kl().abs(), 0),
    ]


@reproducible("truth variational ppca")
def of_probabilistic_pca(*, small: bool) -> list[Check]:
    """With more latents than directions above the noise, so that some must collapse."""
    size, code, steps = (6, 3, 800) if small else (16, 8, 4000)
    variances = 4 * (0.3 if small else 0.65) ** torch.arange(size).double()
    images = as_images(gaussian(512 if small else 1024, variances, "variational", mean=0.3)[0])
    objective = objective_of(
        AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=GaussianConfig(channels=code)),
        ReconstructionObjectiveConfig(distance="gaussian", kl=1.0),
        images=images,
        steps=steps,
    )
    with torch.no_grad():
        objective.autoencoder.output_logvar.fill_(math.log(NOISE))
    objective.autoencoder.output_logvar.requires_grad_(False)
    train(objective, images, lr=5e-2 if small else 2e-2)
    with torch.no_grad():
        posterior = objective.autoencoder.encode(images)
        gap = negative_elbo(objective, images) - negative_log_likelihood(variances, code)
    found, known = posterior.variance.flatten(1), (NOISE / variances[:code]).clamp(max=1)
    collapsed, due = (nats_of_each(posterior) < 0.01).sum(), (variances[:code] <= NOISE).sum()
    # The noise of the training steps is averaged over fewer of them, of fewer images, in miniature.
    slack = 3 if small else 1
    return [
        at_most(
            f"variances of {code} latents against s²/λ, relative error",
            furthest(found.mean(0).sort().values / known),
            0.03 * slack,
        ),
        at_most("their spread over the images, relative", (found.std(0) / found.mean(0)).max(), 0.03 * slack),
        at_most(f"collapsed latents, {due} by the formula: difference", (collapsed - due).abs(), 0),
        at_most("-ELBO less -log p, nats per image", abs(gap), 0.02 * slack),
        *of_statistics(objective.autoencoder, images),
    ]


def nats_of_each(posterior: Posterior) -> Tensor:
    """The KL of each latent alone, averaged over the images."""
    assert posterior.logvar is not None
    latents = zip(posterior.mean.split(1, dim=1), posterior.logvar.split(1, dim=1), strict=True)
    return torch.stack([Posterior(*latent).kl().mean() for latent in latents])


def negative_elbo(objective: ReconstructionObjective, images: Tensor) -> float:
    """The objective in nats per image, averaged over enough draws of the latents for its third decimal."""
    losses = [objective_at(objective, images, step, seed=1).total for step in range(400)]
    return float(torch.stack(losses).mean()) * images[0].numel()


def negative_log_likelihood(variances: Tensor, code: int) -> float:
    """Of Gaussian data with these variances, on average, under its best model W Wᵀ + s² I with `code` columns in W."""
    model = torch.cat([variances[:code].clamp(min=NOISE), torch.full_like(variances[code:], NOISE)])
    return float(0.5 * (math.log(2 * math.pi) + model.log() + variances / model).sum())


@torch.no_grad()
def of_statistics(autoencoder: Autoencoder, images: Tensor) -> list[Check]:
    """After `standardize` samples of the latents of the training set have mean 0 and standard deviation 1.

    Those of the best linear one have that by themselves, so they are first shifted and scaled.
    """
    before = autoencoder.reconstruct(images)
    channels = autoencoder.latent_channels
    autoencoder.standardize(torch.linspace(-1, 1, channels), torch.linspace(0.3, 3, channels))
    statistics = LatentStatistics()
    statistics.add(autoencoder.encode(images))
    autoencoder.standardize(statistics.mean, statistics.std)
    posterior, rng = autoencoder.encode(images), generator(0, "truth variational standardized")
    samples = torch.cat([posterior.sample(rng) for _ in range(50)])
    change = (autoencoder.reconstruct(images) - before).abs().max()
    return [
        at_most("standardized latents: mean, largest of a channel", samples.mean((0, 2, 3)).abs().max(), 0.02),
        at_most("standardized latents: standard deviation, furthest from 1", furthest(samples.std((0, 2, 3))), 0.02),
        at_most("standardizing: largest change of a reconstruction", change, 1e-12),
    ]


def furthest(ratios: Tensor) -> Tensor:
    """How far the one that is furthest from 1 is from it."""
    return (ratios - 1).abs().max()
