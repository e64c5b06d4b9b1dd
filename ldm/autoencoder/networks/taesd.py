"""TAESD's network, which diffusers calls AutoencoderTiny: as the released files of that family have it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ldm.autoencoder.config import TAESDNetworkConfig
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.errors import ConfigError

NORM_GROUPS = 4  # of the group norm in the blocks next to the latent
LIMIT = 3.0  # the decoder takes latents as if they were between -LIMIT and LIMIT


class LatentClamp(nn.Module):
    """A smooth clamp of what the decoder is given."""

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(latents / LIMIT) * LIMIT


class TAESDBlock(nn.Module):
    """Three 3 x 3 convolutions beside a skip, a ReLU over the sum; before them perhaps a normalized 1 x 1 branch."""

    def __init__(self, width: int, *, normalizes: bool):
        super().__init__()
        self.conv = nn.Sequential(plain(width, width), nn.ReLU(), plain(width, width), nn.ReLU(), plain(width, width))
        self.fuse = nn.ReLU()
        wide = 4 * width
        narrow = nn.Conv2d(width, wide, 1, bias=False), nn.GroupNorm(NORM_GROUPS, wide), nn.ReLU()
        self.pool = nn.Sequential(*narrow, nn.Conv2d(wide, width, 1, bias=False)) if normalizes else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return self.fuse(self.conv(x) + x)


def plain(channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """3 x 3, with zeros around the image."""
    return nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=bias)


class TAESDNetwork(AutoencoderNetwork):
    """One width, strided convolutions down, nearest-neighbor upsampling up, no attention.

    An image of C x H x W becomes a code of c x H/f x W/f, with f = 2 ** (levels - 1). Layers have the numbers that they
    have in the released files, whose images are in [0, 1]: so the encoder sees them, for its zeros around the image are
    black; the decoder's last layer was scaled when it was read.
    """

    def __init__(
        self, config: TAESDNetworkConfig, *, image: tuple[int, int, int], encoder_channels: int, latent_channels: int
    ):
        super().__init__()
        self.image_channels, levels = image[0], len(config.blocks)
        if not levels:
            raise ConfigError("autoencoder.network.blocks must be one or more numbers, not none")
        self.downsampling = (2 ** (levels - 1),) * 2
        self.downsampling_setting = f"autoencoder.network.blocks with {levels} levels"
        self.encoder: nn.Sequential = nn.Sequential(*encoder_layers(config, image[0], encoder_channels))
        self.decoder: nn.Sequential = nn.Sequential(*decoder_layers(config, image[0], latent_channels))

    @property
    def output_layer(self) -> nn.Module:
        """The convolution that makes the image."""
        return self.decoder[-1]

    @property
    def decoder_in_weight(self) -> Tensor:
        """The weight that the code meets first, after the clamp: outputs x latent channels x 3 x 3."""
        return self.decoder[1].get_parameter("weight")

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.encoder(images / 2 + 0.5)

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.decoder(latents)


def encoder_layers(config: TAESDNetworkConfig, image_channels: int, out_channels: int) -> Iterator[nn.Module]:
    """From the image to the code."""
    width, last = config.width, len(config.blocks) - 1
    for level, blocks in enumerate(config.blocks):
        yield plain(width, width, stride=2, bias=False) if level else plain(image_channels, width)
        for _ in range(blocks):
            yield TAESDBlock(width, normalizes=config.latent_norm and level == last)
    yield plain(width, out_channels)


def decoder_layers(config: TAESDNetworkConfig, image_channels: int, latent_channels: int) -> Iterator[nn.Module]:
    """From the code to the image."""
    width, last = config.width, len(config.blocks) - 1
    yield LatentClamp()
    yield plain(latent_channels, width)
    yield nn.ReLU()
    for level, blocks in enumerate(reversed(config.blocks)):
        for _ in range(blocks):
            yield TAESDBlock(width, normalizes=config.latent_norm and level == 0)
        if level < last:
            yield nn.Upsample(scale_factor=2)
            yield plain(width, width, bias=False)
    yield plain(width, image_channels)
