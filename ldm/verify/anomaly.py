"""Anomaly detection where the laws of the scores are known, its false-alarm rate, and its metrics by brute force."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.anomaly.config import DetectorConfig
from ldm.anomaly.conformal import conformal_threshold
from ldm.anomaly.linear_model import LinearModel
from ldm.anomaly.maps import component_means
from ldm.anomaly.metrics import aupro, auroc, average_precision
from ldm.anomaly.scores import ScoreParts, latent_density, reconstruction
from ldm.anomaly.subject import PrincipalComponents
from ldm.diffusion.gaussian import LatentGaussian
from ldm.randomness import generator
from ldm.shapes import Images, Scalars
from ldm.verify.check import Check, at_least, at_most, info, skipped
from ldm.verify.known_data import gaussian
from ldm.verify.training import as_images, reproducible

SIZE, RANK, NOISE = 24, 4, 0.3  # numbers per image, of the subspace, and the standard deviation off it
SPLITS = 40


def checks(*, small: bool = False) -> Iterator[Check]:
    """Takes little time, so that the miniature is the whole but for the number of images."""
    yield from of_laws(400 if small else 4000)
    yield from of_planted_anomalies(200 if small else 2000)
    yield from of_false_alarms(1000 if small else 4000)
    yield from of_metrics()


class LinearGaussian:
    """Images x = A z + s n of unit Gaussian z and n, and the principal components that know A."""

    def __init__(self) -> None:
        variances = torch.cat([torch.tensor([9.0, 4.0, 2.0, 1.0]), torch.full((SIZE - RANK,), NOISE**2)])
        self.deviations = variances.sqrt()
        vectors, self.axes = gaussian(4 * SIZE, variances, "anomaly")
        self.subject = PrincipalComponents("pca:4", RANK, None)
        self.subject.model = LinearModel.fit(vectors, components=RANK)
        self.density = LatentGaussian((RANK, 1, 1), RANK)
        self.density.basis.copy_(torch.eye(RANK))
        self.density.eigenvalues.copy_(variances[:RANK])

    def images(self, count: int, purpose: str) -> Images:
        """New images of the law."""
        drawn = torch.randn(count, SIZE, generator=generator(0, purpose))
        return as_images(drawn * self.deviations @ self.axes.T)

    def residual(self, images: Images) -> Scalars:
        """The squared error of the reconstruction, summed over the image."""
        view, parts = self.subject.view(images), ScoreParts(DetectorConfig(blur=0))
        return component_means(reconstruction(view, parts))[:, 0] * SIZE

    def mahalanobis(self, images: Images) -> Scalars:
        """The squared Mahalanobis distance of the latents."""
        view, parts = self.subject.view(images), ScoreParts(DetectorConfig(), {"latent-density": self.density})
        return component_means(latent_density(view, parts))[:, 0]


@reproducible("truth anomaly laws")
def of_laws(count: int) -> list[Check]:
    """The residual of a linear-Gaussian model over s² is χ² with d − k degrees of freedom, its Mahalanobis distance χ²
    with k.
    """
    model = LinearGaussian()
    images = model.images(count, "anomaly laws")
    return [
        at_least(
            "residual / s² is χ² with d - k degrees of freedom: Kolmogorov-Smirnov p",
            ks_p_value(model.residual(images) / NOISE**2, SIZE - RANK),
            0.01,
        ),
        at_least(
            "Mahalanobis distance is χ² with k degrees of freedom: Kolmogorov-Smirnov p",
            ks_p_value(model.mahalanobis(images), RANK),
            0.01,
        ),
        at_most(
            "residual taken for χ² with d degrees of freedom: Kolmogorov-Smirnov p",
            ks_p_value(model.residual(images) / NOISE**2, SIZE),
            1e-6,
        ),
    ]


def ks_p_value(values: Scalars, degrees: int) -> float:
    """The p-value of the Kolmogorov-Smirnov test of values against χ², by the limiting distribution."""
    count = len(values)
    cumulated = torch.special.gammainc(torch.tensor(degrees / 2), values.double().sort().values / 2)
    steps = torch.arange(count + 1) / count
    distance = float(torch.maximum(cumulated - steps[:-1], steps[1:] - cumulated).max())
    scaled = (math.sqrt(count) + 0.12 + 0.11 / math.sqrt(count)) * distance
    return min(max(2 * sum((-1) ** (term - 1) * math.exp(-2 * (term * scaled) ** 2) for term in range(1, 101)), 0), 1)


@reproducible("truth anomaly planted")
def of_planted_anomalies(count: int) -> list[Check]:
    """What is planted off the subspace the residual sees and the density of the latents does not, and the reverse."""
    model = LinearGaussian()
    normal, same = model.images(count, "anomaly normal"), model.images(count, "anomaly odd")
    off, inside = (as_images(length * model.axes[:, axis][None]) for length, axis in ((4.0, -1), (20.0, 0)))
    labels = torch.arange(2 * count) >= count

    def area(score: Scalars, others: Scalars) -> float:
        return auroc(torch.cat([score, others]), labels)

    chance = 3 * math.sqrt((2 * count + 1) / (12 * count**2))  # three standard errors of an AUROC of ½
    return [
        at_least(
            "planted off the subspace: AUROC of the residual",
            area(model.residual(normal), model.residual(same + off)),
            1.0,
        ),
        at_most(
            "planted off the subspace: |AUROC - .5| of the density",
            abs(area(model.mahalanobis(normal), model.mahalanobis(same + off)) - 0.5),
            chance,
        ),
        at_most(
            "planted inside: |AUROC - .5| of the residual",
            abs(area(model.residual(normal), model.residual(same + inside)) - 0.5),
            chance,
        ),
        at_least(
            "planted inside: AUROC of the density",
            area(model.mahalanobis(normal), model.mahalanobis(same + inside)),
            0.99,
        ),
    ]


@reproducible("truth anomaly false alarms")
def of_false_alarms(count: int) -> list[Check]:
    """Principal components that overfit few images: conformal thresholds hold their rate, the naive quantile fails."""
    size, few = 64, 100
    scales = torch.logspace(0.5, -1, size)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator(0, "anomaly rotation"))).Q
    images = torch.randn(few + count, size, generator=generator(0, "anomaly images")) * scales @ rotation.T
    model = LinearModel.fit(images[:few], components=24)
    residuals = (images - model.vectors(model.coordinates(images))).square().sum(1)
    training, new = residuals[:few], residuals[few:]
    found = []
    for alpha in (0.05, 0.01):
        rates = torch.tensor([false_alarms(new, split, alpha) for split in range(SPLITS)])
        error = rates.std() / math.sqrt(SPLITS)
        found += [
            at_most(
                f"conformal threshold at {alpha:g}: |false alarms - alpha| in standard errors",
                (rates.mean() - alpha).abs() / error,
                3,
            ),
            info(f"conformal threshold at {alpha:g}: false alarms", rates.mean()),
            info(
                f"quantile of the training scores at {alpha:g}: false alarms",
                (new > training.quantile(1 - alpha)).double().mean(),
            ),
        ]
    return found


def false_alarms(scores: Scalars, split: int, alpha: float) -> float:
    """The share of scores above the threshold of 199 others, for which (n + 1) α is a whole number."""
    order = torch.randperm(len(scores), generator=generator(0, "anomaly split", split))
    calibration, others = scores[order[:199]], scores[order[199:]]
    return float((others > conformal_threshold(calibration, alpha)).double().mean())


@reproducible("truth anomaly metrics")
def of_metrics() -> list[Check]:
    """AUROC and average precision with ties, beside scikit-learn's; AUPRO beside one that tries every threshold."""
    rng = generator(0, "anomaly metrics")
    scores, labels = (torch.randn(300, generator=rng) * 4).round(), torch.rand(300, generator=rng) < 0.3
    maps, masks = (torch.rand(3, 12, 12, generator=rng) * 20).round(), torch.zeros(3, 12, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = masks[0, 8:10, 1:3] = masks[1, 6:11, 6:8] = True
    maps += 6 * masks * torch.rand(3, 12, 12, generator=rng)
    regions = [torch.zeros_like(masks) for _ in range(3)]
    regions[0][0, 2:5, 3:9] = regions[1][0, 8:10, 1:3] = regions[2][1, 6:11, 6:8] = True
    found = [
        at_most(
            "AUPRO to a false-positive rate of .3: |ours - every threshold tried|",
            abs(aupro(maps, masks) - tried_aupro(maps, masks, regions, 0.3)),
            1e-9,
        )
    ]
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError:
        return [*found, skipped("AUROC and average precision: |ours - scikit-learn's|", "needs scikit-learn")]
    ours, theirs = auroc(scores, labels), roc_auc_score(labels.numpy(), scores.numpy())
    precision = average_precision(scores, labels), average_precision_score(labels.numpy(), scores.numpy())
    return [
        *found,
        at_most("AUROC with ties: |ours - scikit-learn's|", abs(ours - theirs), 1e-9),
        at_most("average precision with ties: |ours - scikit-learn's|", abs(precision[0] - precision[1]), 1e-9),
    ]


def tried_aupro(maps: Tensor, masks: Tensor, regions: list[Tensor], limit: float) -> float:
    """The area under mean overlap over false-positive rate, up to `limit` and over it, by trying every threshold."""
    rates, overlaps = [0.0], [0.0]
    for threshold in maps.unique().flip(0):
        above = maps >= threshold
        rates.append(float(above[~masks].double().mean()))
        overlaps.append(sum(float(above[region].double().mean()) for region in regions) / len(regions))
    area = 0.0
    for place in range(1, len(rates)):
        left, right = rates[place - 1], min(rates[place], limit)
        if right > left:
            slope = (overlaps[place] - overlaps[place - 1]) / (rates[place] - rates[place - 1])
            area += (right - left) * (overlaps[place - 1] + slope * (right - left) / 2)
    return area / limit
