"""Perceptual distance (LPIPS): the distance between the features of two images in a pretrained network."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder.losses.config import PerceptualConfig
from ldm.errors import ConfigError
from ldm.nn.backbone import open_backbone
from ldm.nn.pretrained_weights import read_weights
from ldm.shapes import Images, Scalars, full_precision

LEARNED = ("vgg", "alex", "squeeze")  # backbones for which the lpips package has weights learned from people's answers


class Perceptual(nn.Module):
    """LPIPS (Zhang et al. 2018, eq. 1): sum over maps l of the mean over pixels of |√w_l · (f_l(x) − f_l(y))|².

    f_l is the vector of the channels of map l at a pixel, at unit length, and w_l the weight of each channel, learned
    from what people called similar. A backbone without learned weights has w_l = 1 / (number of maps): its distance
    is the mean over maps and pixels of |f_l(x) − f_l(y)|², from 0 to 4, and to 2 where features are never negative.

    The backbone sees three channels. Images with another number of them are shown to it as one or several pictures,
    and their distance is the weighted mean of those of the pictures:

        1           gray
        2           gray, and alpha as gray: half and half
        3           RGB
        4           RGB, of weight 3/4, and alpha as gray, of weight 1/4
        5 and more  every three consecutive channels as RGB; the last of all is repeated to fill the last picture

    Images with a shorter side below `size` are enlarged to it, bilinearly and in proportion. Nothing is clamped. The
    gradient reaches the reconstruction alone: not the images, not the backbone.
    """

    def __init__(self, config: PerceptualConfig):
        """Raises ConfigError where there are no weights, or where `size` leaves nothing of the deepest maps."""
        super().__init__()
        self.size = config.size
        self.backbone = open_backbone(config.backbone, config.weights_file)
        learned = learned_weights(config.backbone) if config.backbone in LEARNED else []
        self.channel_weights = nn.ParameterList(nn.Parameter(values, requires_grad=False) for values in learned)
        try:
            with torch.no_grad():
                self.backbone(torch.zeros(1, 3, self.size, self.size))
        except RuntimeError as error:
            name = self.backbone.name
            raise ConfigError(
                f"objective.perceptual.size {self.size} is too small for {name}: use 64 or more"
            ) from error

    def forward(self, images: Images, reconstruction: Images) -> Scalars:
        """The distance of every reconstruction from its image."""
        triples, shares = rgb_triples(images.shape[1])
        with torch.no_grad():
            expected = self.features(images, triples)
        found = self.features(reconstruction, triples)
        weights = list(self.channel_weights) or [1 / len(found)] * len(found)
        maps = zip(weights, expected, found, strict=True)
        distances = torch.stack([((x - y).square() * weight).sum(1).mean((1, 2)) for weight, x, y in maps]).sum(0)
        per_picture = distances.view(len(images), -1).unbind(1)
        return torch.stack([share * distance for share, distance in zip(shares, per_picture, strict=True)]).sum(0)

    def features(self, images: Images, triples: list[list[int]]) -> list[Tensor]:
        """Every map of the pictures, (batch * pictures) channels height width, the channels at unit length."""
        channels = resize_up(images, self.size).unbind(1)
        rgb = torch.stack([torch.stack([channels[i] for i in triple], 1) for triple in triples], 1).flatten(0, 1)
        return [unit_length(full_precision(features)) for features in self.backbone(rgb)]


def rgb_triples(channels: int) -> tuple[list[list[int]], list[float]]:
    """Which channels of an image make the RGB pictures that the backbone is shown, and the weight of each picture."""
    if channels == 2:
        return [[0, 0, 0], [1, 1, 1]], [1 / 2, 1 / 2]
    if channels == 4:
        return [[0, 1, 2], [3, 3, 3]], [3 / 4, 1 / 4]
    triples = [[min(first + i, channels - 1) for i in range(3)] for first in range(0, channels, 3)]
    return triples, [1 / len(triples)] * len(triples)


def resize_up(images: Images, size: int) -> Images:
    """The images with a shorter side of at least `size`; the deepest maps of smaller ones have too few pixels."""
    height, width = images.shape[2:]
    if min(height, width) >= size:
        return images
    scale = size / min(height, width)
    return F.interpolate(images, size=(round(height * scale), round(width * scale)), mode="bilinear", antialias=False)


def unit_length(features: Tensor) -> Tensor:
    """The channels of every pixel as a vector of length 1.

    The epsilon is inside the root, whose derivative at 0 is infinite: outside, where the lpips package has it, a
    pixel without any feature would turn the whole gradient into NaN.
    """
    return features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()


def learned_weights(backbone: str) -> list[Tensor]:
    """The weight of each channel of each map, (channels 1 1), version 0.1, from inside the lpips package."""
    import lpips

    tensors = read_weights(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{backbone}.pth")
    return [tensors[f"lin{place}.model.1.weight"][0] for place in range(len(tensors))]
