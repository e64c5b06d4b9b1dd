"""The Gaussian denoiser: the best linear denoiser of latents, from their mean and their principal components."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.randomness import generator
from ldm.shapes import Latents, NoiseLevels

MEMORY = 2**30  # bytes that fitting may take: matrices of d x d numbers for latents of d numbers, d up to 4,096
FOLDS = 5  # of the cross-validation
WHOLE_SPECTRUM = 1024  # numbers per latent up to which all eigenvectors are computed
MOST_COMPONENTS = 512  # beyond that
SMALLEST_VARIANCE = 1e-6  # of a direction in which the latents never vary


class LatentGaussian(nn.Module):
    """N(m, V diag(λ_i) Vᵀ + λ̄ (1 − V Vᵀ)): k principal components V, and one variance λ̄ for all that is left.

    Where the latents x have this mean m and this covariance, `denoise` is the best linear denoiser of them, whatever
    their distribution, and exact where they are Gaussian. Until it is fitted it is N(0, 1), whose denoiser is the skip
    of EDM. `latent_shape` is channels, height, width, and `rank` is k.
    """

    mean: Tensor  # channels x height x width
    basis: Tensor  # V, d x k for latents of d numbers, the largest λ first
    eigenvalues: Tensor  # λ_i
    rest: Tensor  # λ̄

    def __init__(self, latent_shape: tuple[int, int, int], rank: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_shape))
        self.register_buffer("basis", torch.zeros(math.prod(latent_shape), rank))
        self.register_buffer("eigenvalues", torch.ones(rank))
        self.register_buffer("rest", torch.ones(()))

    def denoise(self, noisy: Latents, sigma: float | NoiseLevels) -> Latents:
        """L_σ(y) = m + ḡ (y − m) + V diag(g_i − ḡ) Vᵀ (y − m), with g_i = λ_i / (λ_i + σ²) and ḡ = λ̄ / (λ̄ + σ²).

        `sigma` is one noise level, or one for each sample. The precision is that of `noisy`, under autocast too.
        """
        self.check_size(noisy)
        with torch.autocast(noisy.device.type, enabled=False):
            basis, rest = self.basis.to(noisy.dtype), self.rest.to(noisy.dtype)
            variance = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device).reshape(-1, 1) ** 2
            centered = (noisy - self.mean.to(noisy.dtype)).flatten(1)
            # g_i − ḡ, without the difference of two numbers that are near 1 where σ is small.
            excess = variance / (rest + variance) * (self.eigenvalues.to(noisy.dtype) - rest)
            along = (centered @ basis) * (excess / (self.eigenvalues.to(noisy.dtype) + variance))
            linear = rest / (rest + variance) * centered + along @ basis.mT
            return linear.view_as(noisy) + self.mean.to(noisy.dtype)

    def path_end(self, noisy: Latents, sigma: float | NoiseLevels) -> Latents:
        """m + V diag(√(λ_i / (λ_i + σ²))) Vᵀ (y − m): where the path of y ends, the Gaussian's consistency function."""
        self.check_size(noisy)
        mean = self.mean.to(noisy.dtype)
        noise = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device).reshape(-1, 1) ** 2
        return mean + self.scaled(noisy - mean, lambda variance: (variance / (variance + noise)).sqrt())

    def check_size(self, noisy: Latents) -> None:
        """Raise ConfigError for latents of another size."""
        if noisy.shape[1:] != self.mean.shape:
            trained, given = (" x ".join(map(str, shape)) for shape in (self.mean.shape, noisy.shape[1:]))
            raise ConfigError(
                f"latents of {given} were given to a denoiser whose skip is the Gaussian of latents of {trained}: keep"
                " that size, or train with denoiser.skip.kind scalar"
            )

    def c_out(self, sigma: Tensor) -> Tensor:
        """The root of the mean squared error of `denoise` per number, c_out² = σ² [Σ g_i + (d − k) ḡ] / d."""
        variance = sigma.reshape(-1, 1) ** 2
        left = self.mean.numel() - len(self.eigenvalues)
        kept = self.eigenvalues.to(sigma.dtype) / (self.eigenvalues.to(sigma.dtype) + variance)
        share = kept.sum(1) + left * (self.rest / (self.rest + variance)).to(sigma.dtype).squeeze(1)
        return sigma * (share / self.mean.numel()).sqrt().view_as(sigma)

    def sample(self, unit_noise: Latents) -> Latents:
        """Latents of this Gaussian, made of unit Gaussian noise of their shape."""
        basis, rest = self.basis.to(unit_noise.dtype), self.rest.to(unit_noise.dtype).sqrt()
        excess = self.eigenvalues.to(unit_noise.dtype).sqrt() - rest
        flat = unit_noise.flatten(1)
        return (rest * flat + ((flat @ basis) * excess) @ basis.mT).view_as(unit_noise) + self.mean.to(unit_noise.dtype)

    def noised(self, unit_noise: Latents, sigma: float) -> Latents:
        """Latents of this Gaussian with noise of level `sigma`, made of unit Gaussian noise of their shape."""
        return self.scaled(unit_noise, lambda variance: (variance + sigma**2).sqrt()) + self.mean.to(unit_noise.dtype)

    def scaled(self, vectors: Latents, factor: Callable[[Tensor], Tensor]) -> Latents:
        """Vectors times a factor in each direction, which is a function of the variance λ there: V f(λ) Vᵀ."""
        with torch.autocast(vectors.device.type, enabled=False):
            basis, rest = self.basis.to(vectors.dtype), factor(self.rest.to(vectors.dtype))
            flat, excess = vectors.flatten(1), factor(self.eigenvalues.to(vectors.dtype)) - rest
            return (rest * flat + ((flat @ basis) * excess) @ basis.mT).view_as(vectors)


@torch.no_grad()
def fit_gaussian(
    latents: Latents,
    *,
    noise_variance: float | Tensor = 0.0,
    mirrored: Latents | None = None,
    groups: Sequence[Hashable] | None = None,
    rank: int | None = None,
    folds: int = FOLDS,
) -> LatentGaussian:
    """The Gaussian of latents that were not seen, in float64 and always the same; returned in float32.

    The variance along eigenvectors of a sample covariance is too large for the first of them and too small for the
    last, so λ_i is the variance, along the i-th eigenvector of the other folds, of the fold that is left out. The
    eigenvectors of all folds together are the basis.

    Args:
        latents: posterior means, images x channels x height x width.
        noise_variance: of the posteriors, which is added: one number, or one per channel.
        mirrored: the latents of the mirror images, which count as further images and stay in the fold of theirs.
        groups: the group of each image, which stays in one fold.
        rank: how many eigenvectors, as `rank_of` has it.
        folds: of the cross-validation, at most one for each group.

    Raises ConfigError for latents that are too large for it, or too few.
    """
    check_size(shape := (latents.shape[1], latents.shape[2], latents.shape[3]), folds)
    size = math.prod(shape)
    rank = rank_of(shape, rank)
    noise = torch.as_tensor(noise_variance, dtype=torch.float64).flatten().cpu()
    noise = noise.view(-1, 1, 1).expand(shape).flatten()
    views = [latents] if mirrored is None else [latents, mirrored]
    moments = [
        Moments.of(torch.cat([view[chosen].flatten(1).double().cpu() for view in views]))
        for chosen in folds_of(len(latents), groups, folds)
    ]
    whole = Moments.joined(moments)
    variances, total = torch.zeros(rank, dtype=torch.float64), 0.0
    for place, left_out in enumerate(moments):
        others = Moments.joined(moments[:place] + moments[place + 1 :])
        directions = others.principal_directions(rank, noise)
        share = left_out.count / whole.count
        variances += share * (left_out.variance_along(directions, others.mean) + noise @ directions**2)
        total += share * float(left_out.total_variance(others.mean) + noise.sum())
    left = size - rank
    rest = (total - float(variances.sum())) / left if left else float(variances[-1]) if rank else 1.0
    *eigenvalues, rest = non_increasing([*variances.tolist(), rest], [1] * rank + [max(left, 1e-9)])
    gaussian = LatentGaussian(shape, rank)
    gaussian.mean.copy_(whole.mean.view(shape))
    gaussian.basis.copy_(whole.principal_directions(rank, noise))
    gaussian.eigenvalues.copy_(torch.tensor(eigenvalues).clamp_min(SMALLEST_VARIANCE))
    gaussian.rest.fill_(max(rest, SMALLEST_VARIANCE))
    return gaussian


def rank_of(latent_shape: tuple[int, int, int], asked: int | None) -> int:
    """The number of principal components: as many as asked for, and no more than there are.

    None takes all of latents of up to 1,024 numbers, and 512 of larger ones.
    """
    size = math.prod(latent_shape)
    most = size if size <= WHOLE_SPECTRUM else MOST_COMPONENTS
    return most if asked is None else min(asked, size)


def check_size(latent_shape: tuple[int, int, int], folds: int = FOLDS) -> None:
    """Raise ConfigError for latents so large that their covariance takes more than `MEMORY`."""
    size = math.prod(latent_shape)
    if (needed := (folds + 3) * size**2 * 8) > MEMORY:
        raise ConfigError(
            f"the covariance of latents of {size:,} numbers takes {needed / 2**30:.1f} GiB to fit, and more than"
            f" {MEMORY / 2**30:g} is not spent on it"
        )


@dataclass(frozen=True)
class Moments:
    """The number of vectors of a set, their sum and the sum of their outer products."""

    count: int
    sum: Tensor
    products: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> "Moments":
        """Those of the rows of a matrix."""
        return cls(len(vectors), vectors.sum(0), vectors.mT @ vectors)

    @classmethod
    def joined(cls, parts: Sequence["Moments"]) -> "Moments":
        """Those of several sets together."""
        total, products = (torch.zeros_like(each) for each in (parts[0].sum, parts[0].products))
        for part in parts:
            total += part.sum
            products += part.products
        return cls(sum(part.count for part in parts), total, products)

    @property
    def mean(self) -> Tensor:
        """The mean vector."""
        return self.sum / self.count

    def principal_directions(self, rank: int, noise: Tensor) -> Tensor:
        """The first eigenvectors, as columns, of the covariance with the variance of the noise on its diagonal."""
        covariance = (self.products / self.count).addr_(self.mean, self.mean, alpha=-1)
        covariance.diagonal().add_(noise)
        return eigenvectors(covariance, rank)

    def variance_along(self, directions: Tensor, center: Tensor) -> Tensor:
        """Mean squared distance from `center` along each direction."""
        squares = (directions * (self.products @ directions)).sum(0) / self.count
        along, at_center = self.mean @ directions, center @ directions
        return squares - 2 * along * at_center + at_center**2

    def total_variance(self, center: Tensor) -> Tensor:
        """Mean squared distance from `center`."""
        return self.products.trace() / self.count - 2 * self.mean @ center + center @ center


def eigenvectors(matrix: Tensor, rank: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues of a symmetric matrix, as columns, the largest first.

    Where they are few of many they come from subspace iteration (Halko et al. 2011), which is enough: directions of
    nearly equal eigenvalues may be mixed.
    """
    size = len(matrix)
    if size <= WHOLE_SPECTRUM or 4 * rank > size:
        return torch.linalg.eigh(matrix).eigenvectors.flip(1)[:, :rank]
    start = torch.randn(size, min(rank + 64, size), dtype=matrix.dtype, generator=generator(0, "eigenvectors"))
    subspace = torch.linalg.qr(matrix @ start).Q
    for _ in range(5):
        subspace = torch.linalg.qr(matrix @ subspace).Q
    return subspace @ torch.linalg.eigh(subspace.mT @ matrix @ subspace).eigenvectors.flip(1)[:, :rank]


def folds_of(count: int, groups: Sequence[Hashable] | None, folds: int = FOLDS) -> list[list[int]]:
    """Indices of the images of each fold: groups in random order, each to the fold with the fewest images so far."""
    members: dict[Hashable, list[int]] = {}
    for index in range(count):
        members.setdefault(index if groups is None else groups[index], []).append(index)
    together, chosen = list(members.values()), [list[int]() for _ in range(min(folds, len(members)))]
    if len(chosen) < 2:
        raise ConfigError(f"{len(members)} group(s) of latents cannot be cross-validated: there must be two or more")
    for place in torch.randperm(len(together), generator=generator(0, "folds")).tolist():
        min(chosen, key=len).extend(together[place])
    return chosen


def non_increasing(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-increasing sequence that is nearest to `values` (isotonic regression, by pooling adjacent violators)."""
    pools: list[tuple[float, float, int]] = []  # weighted mean, weight, how many
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] < pool[0]:
            before = pools.pop()
            joint = before[1] + pool[1]
            pool = ((before[0] * before[1] + pool[0] * pool[1]) / joint, joint, before[2] + pool[2])
        pools.append(pool)
    return [value for value, _, count in pools for _ in range(count)]
