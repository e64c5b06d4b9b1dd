"""The chosen scores of a batch of images: one number per image and one map per image and score."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ldm.anomaly.combination import LogisticTail
from ldm.anomaly.config import NEEDS, SCORES, DetectorConfig, chosen_scores
from ldm.anomaly.maps import component_means, pooled, weighted_map
from ldm.anomaly.scores import ScoreParts
from ldm.anomaly.subject import Subject
from ldm.autoencoder.losses.config import PerceptualConfig
from ldm.autoencoder.losses.perceptual import LEARNED, Perceptual
from ldm.diffusion.gaussian import check_size
from ldm.errors import ConfigError, DataError
from ldm.evaluation.metrics import SSIM_SIDE
from ldm.shapes import Images, format_size

LEAST = 1e-12  # of a variance, when it is divided by


@dataclass(frozen=True)
class ComponentWeights:
    """The weight of each component of a score's map, and what is added once."""

    weights: tuple[float, ...]
    offset: float = 0.0

    @classmethod
    def fit(cls, name: str, means: Tensor) -> Self:
        """The weights of a score from the means of its components over normal images, images x components.

        By deviation: each component by its own standard deviation over the images, as the sum would else be that of the
        largest one alone. Likelihood: errors by 1 / 2 s², as those of a Gaussian of variance s², beside a KL.
        """
        kind, count = SCORES[name].weights, means.shape[1]
        if kind == "by deviation" and len(means) > 1:
            deviations = means.std(0)
            return cls(tuple((1 / deviations.clamp_min(LEAST)).tolist()))
        if kind == "likelihood":
            variances = means[:, :-1].mean(0).clamp_min(LEAST)
            offset = float((0.5 * (2 * math.pi * variances).log()).sum())
            return cls((*(0.5 / variances).tolist(), 1.0), offset)
        return cls((1.0,) * count)


@dataclass(frozen=True)
class ScoreScale:
    """What is known of a score over normal images, to put it beside others."""

    components: ComponentWeights
    tail: LogisticTail
    map_mean: float = 0.0  # over all places of all maps
    map_std: float = 1.0


@dataclass(frozen=True, eq=False)
class BatchScores:
    """One number per image and score, float64 on the CPU, and maps, batch x 1 x H x W, of the scores that have some."""

    values: dict[str, Tensor]
    maps: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Scorer:
    """A subject and the scores that are taken of images of one shape with it."""

    subject: Subject
    config: DetectorConfig
    shape: tuple[int, int, int]  # channels, height and width
    names: list[str]
    parts: ScoreParts

    @classmethod
    def create(cls, subject: Subject, config: DetectorConfig, shape: tuple[int, int, int]) -> Self:
        """The scores that the config asks for; ConfigError for one that the subject cannot give."""
        subject.check(shape)
        names = chosen_scores(config.scores, unmet_needs(subject, config, shape), subject.source)
        needs_backbone = any("backbone" in SCORES[name].needs for name in names)
        return cls(subject, config, shape, names, ScoreParts(config, perceptual=opened(config, needs_backbone)))

    @property
    def identity(self) -> str:
        """A hash of the weights that scores depend on."""
        perceptual = self.parts.perceptual
        return self.subject.identity + ("" if perceptual is None else f"+{perceptual.backbone.reference}")

    def to(self, device: torch.device) -> None:
        """Move all of it to a device."""
        self.subject.to(device)
        for module in (*self.parts.densities.values(), self.parts.perceptual):
            if module is not None:
                module.to(device)

    def check(self, images: Images) -> None:
        """Raise DataError for images of another shape."""
        self.subject.check(tuple(images.shape[1:]))
        if tuple(images.shape[1:]) != self.shape:
            given, fitted = (
                f"{format_size(shape[1:])}, {shape[0]} channels" for shape in (images.shape[1:], self.shape)
            )
            raise DataError(f"images of {given} were given to a detector of images of {fitted}")

    @torch.no_grad()
    def components(self, images: Images) -> dict[str, list[Tensor]]:
        """The components of each score's map."""
        view = self.subject.view(images)
        return {name: SCORES[name].load()(view, self.parts) for name in self.names}

    def component_means(self, images: Images) -> dict[str, Tensor]:
        """Of each score, batch x components."""
        return {name: component_means(found) for name, found in self.components(images).items()}

    def measure(self, images: Images, weights: dict[str, ComponentWeights]) -> BatchScores:
        """The scores of a batch of images, on the device that they are on."""
        values, maps = {}, {}
        for name, components in self.components(images).items():
            weighed = weights[name]
            found = weighted_map(components, weighed.weights, self.shape[1:], self.config.smoothing)
            if found is not None:
                maps[name] = found.float().cpu()
            if found is None or self.config.pool == "mean":  # that of the components: a blur changes it at the borders
                scored = component_means(components) @ torch.tensor(weighed.weights, dtype=torch.float64)
            else:
                scored = pooled(found, self.config.pool)
            values[name] = scored + weighed.offset
        return BatchScores(values, maps)


def unmet_needs(subject: Subject, config: DetectorConfig, shape: tuple[int, int, int]) -> dict[str, str]:
    """Which needs of scores are not met, and why not."""
    missing = dict(subject.missing)
    if not config.backbone:
        missing["backbone"] = NEEDS["backbone"]
    if min(shape[1:]) < SSIM_SIDE:
        missing["windows"] = NEEDS["windows"]
    latent_shape = subject.latent_shape(shape)
    try:
        if latent_shape is not None:
            check_size(latent_shape)
    except ConfigError as error:
        missing["latents"] = f"{NEEDS['latents']} ({error})"
    return missing


def opened(config: DetectorConfig, is_needed: bool) -> Perceptual | None:
    """The pretrained network that features are compared in, if a score needs it."""
    if not is_needed:
        return None
    kind, weights = (config.backbone, "") if config.backbone in LEARNED else ("features", config.backbone)
    return Perceptual(PerceptualConfig(backbone=kind, weights_file=weights)).eval()  # type: ignore[arg-type]
