"""Feature networks for perceptual metrics (LPIPS, FID, KID), and the names their metrics may bear."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.autoencoder.losses.config import PerceptualConfig
from ldm.autoencoder.losses.perceptual import LEARNED, Perceptual, resize_up, rgb_triples
from ldm.errors import ConfigError
from ldm.nn.backbone import open_backbone
from ldm.nn.inception import open_inception
from ldm.shapes import Images, Scalars


@dataclass(frozen=True)
class PerceptualMetric:
    """A perceptual distance: one number for each pair of images. `name` is its key among the metrics."""

    name: str
    measure: Callable[[Images, Images], Scalars]
    reference: str  # of its weights


@dataclass(frozen=True)
class FeatureExtractor:
    """Features for the Fréchet and the kernel distance, a row for each image, and the keys of these metrics."""

    frechet_name: str
    kernel_name: str
    features: Callable[[Images], Tensor]
    reference: str  # of its weights


def open_perceptual_metric(kind: str, weights: str, device: torch.device) -> PerceptualMetric | None:
    """LPIPS with that backbone, or the like with any other; None for `none`. Only with its learned weights it is LPIPS.

    Raises ConfigError or CheckpointError where there are no weights.
    """
    if kind == "none":
        return None
    if kind == "features" and not weights:
        raise ConfigError("--lpips features needs --lpips-weights FOLDER, with config.json and the weights")
    with naming_flag("--lpips-weights"):
        options: dict[str, Any] = {"backbone": kind, "weights_file": weights}
        perceptual = Perceptual(PerceptualConfig(**options)).to(device)
    name = f"lpips_{kind}" if kind in LEARNED else f"feature_distance_{perceptual.backbone.name}"
    return PerceptualMetric(name, perceptual, perceptual.backbone.reference)


def open_extractor(kind: str, weights: str, channels: int, device: torch.device) -> FeatureExtractor | None:
    """What the Fréchet and the kernel distance are measured with; None for `none`.

    `rfid` and `kid` are Inception with the official weights on gray or RGB images, and nothing else. Images of other
    channels are shown to the network as several pictures (`perceptual.rgb_triples`), whose features stand side by side
    in a row.
    """
    if kind == "none":
        return None
    if kind == "inception":
        inception = open_inception(weights).to(device)
        is_fid = inception.is_official and channels in (1, 3)
        names = ("rfid", "kid") if is_fid else ("frechet_inception", "kernel_distance_inception")
        return FeatureExtractor(*names, _pooled(inception, channels, size=1), inception.reference)
    if kind == "features" and not weights:
        raise ConfigError("--fid features needs --fid-weights FOLDER, with config.json and the weights")
    with naming_flag("--fid-weights"):
        backbone = open_backbone(kind, weights).to(device)
    names = f"frechet_{backbone.name}", f"kernel_distance_{backbone.name}"
    return FeatureExtractor(*names, _pooled(backbone, channels, PerceptualConfig().size), backbone.reference)


class PooledFeatures(Protocol):
    """A network that has one row of features for each RGB image."""

    def pooled(self, images: Images) -> Tensor:
        """batch x features"""
        ...


@contextmanager
def naming_flag(flag: str) -> Iterator[None]:
    """Errors name this flag for the weights, and not the setting, which is for those who train."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("--objective.perceptual.weights-file", flag)) from error


def _pooled(network: PooledFeatures, channels: int, size: int) -> Callable[[Images], Tensor]:
    """The network's pooled features of each image, enlarged to `size` where it is smaller."""
    triples, _ = rgb_triples(channels)

    def rows(images: Images) -> Tensor:
        rgb = resize_up(images[:, triples].flatten(0, 1), size)
        return network.pooled(rgb).reshape(len(images), -1)

    return rows
