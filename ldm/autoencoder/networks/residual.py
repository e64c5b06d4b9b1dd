"""An autoencoder that starts at the best linear one: a lapped transform, and residual blocks beside it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder import lapped_transform
from ldm.autoencoder.config import ResidualNetworkConfig
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.errors import ConfigError
from ldm.nn.outer_convolution import OuterConv2d


class PreNormBlock(nn.Module):
    """norm, SiLU, convolution, twice, beside a skip, which is all that the block is at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(width), group_norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class LinearAndResidual(nn.Module):
    """A linear branch plus a residual one, both on the positions of the latent; the latter is zero at the start.

    Without blocks there is no residual branch, and the whole is linear.
    """

    def __init__(self, channels: int, out_channels: int, width: int, blocks: int):
        super().__init__()
        self.linear = OuterConv2d(channels, out_channels, 3, padding=1)
        self.is_linear = blocks == 0
        if self.is_linear:
            return
        self.conv_in = OuterConv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(PreNormBlock(width) for _ in range(blocks)))
        self.norm_out = group_norm(width)
        self.conv_out = zeroed(OuterConv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_linear:
            return self.linear(x)
        return self.linear(x) + self.conv_out(F.silu(self.norm_out(self.blocks(self.conv_in(x)))))


class PatchEncoder(LinearAndResidual):
    """The same for patches less their mean: the zeros that convolutions see around the image are then mean patches."""

    lr_factor: float  # see training/optim.py

    def __init__(self, values: int, out_channels: int, width: int, blocks: int):
        super().__init__(values, out_channels, width, blocks)
        self.mean = nn.Parameter(torch.zeros(values, 1, 1))

    def forward(self, patches: Tensor) -> Tensor:
        return super().forward(patches - self.mean)


class ResidualNetwork(AutoencoderNetwork):
    """Everything happens at the resolution of the latent, of which each position is a patch of f x f pixels.

        image -> pixel unshuffle -> linear + residual -> code -> linear + residual -> pixel shuffle -> image

    Until it is trained it is the linear branch alone, which `initialize` makes the best lapped transform of the
    training images. An encoder without blocks stays linear. Any channels, any size.
    """

    starts_from_data = True

    def __init__(
        self, config: ResidualNetworkConfig, *, image: tuple[int, int, int], encoder_channels: int, latent_channels: int
    ):
        super().__init__()
        self.image_channels, self.latent_channels, self.patch = image[0], latent_channels, config.downsampling
        self.downsampling = (self.patch, self.patch)
        self.downsampling_setting = f"autoencoder.network.downsampling {self.patch}"
        values, most = image[0] * self.patch**2, lapped_transform.MOST_CHANNELS
        if latent_channels > min(values, most):
            limit = f"the {values} values of a patch" if values < most else f"{most}"
            raise ConfigError(f"autoencoder.bottleneck.channels {latent_channels} is more than {limit}: lower it")
        width, blocks = config.width, config.blocks
        decoder_blocks = config.decoder_blocks or blocks + 1
        self.encoder: PatchEncoder = PatchEncoder(values, encoder_channels, width, blocks)
        self.encoder.lr_factor = config.encoder_lr_factor
        self.freezes_encoder = config.encoder_lr_factor == 0
        self.decoder: LinearAndResidual = LinearAndResidual(latent_channels, values, width, decoder_blocks)

    @torch.no_grad()
    def initialize(self, images: Tensor, noise: float | None, *, uncorrelated: bool = False) -> None:
        noise = noise or lapped_transform.NOISE
        transform = lapped_transform.fit(images, self.patch, self.latent_channels, noise, uncorrelated=uncorrelated)
        self.encoder.mean.copy_(transform.mean.view(-1, 1, 1))
        encoder, decoder = self.encoder.linear, self.decoder.linear
        assert encoder.bias is not None and decoder.bias is not None
        encoder.weight.zero_()[: self.latent_channels] = transform.encoder.to(encoder.weight)
        encoder.bias.zero_()[self.latent_channels :] = 2 * math.log(noise)  # of log variances, where it gives any
        decoder.weight.copy_(transform.decoder)
        decoder.bias.copy_(transform.mean)

    @property
    def channel_gains(self) -> Tensor | None:
        return self.decoder.linear.weight.detach().transpose(0, 1).flatten(1).norm(dim=1)

    @property
    def output_layer(self) -> nn.Module:
        """The convolution that makes what the residual branch adds to the image, before the pixel shuffle."""
        return self.decoder.conv_out

    def output_gradient(self, gradient: Tensor) -> Tensor:
        return F.pixel_unshuffle(gradient, self.patch)

    @property
    def decoder_in_weight(self) -> Tensor:
        """The weights of both branches: outputs x latent channels x 3 x 3."""
        return torch.cat([self.decoder.linear.weight, self.decoder.conv_in.weight])

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.encoder(F.pixel_unshuffle(images, self.patch))

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return F.pixel_shuffle(self.decoder(latents), self.patch)


def group_norm(width: int) -> nn.GroupNorm:
    """Up to 16 groups."""
    return nn.GroupNorm(math.gcd(16, width), width)


def zeroed(convolution: nn.Conv2d) -> nn.Conv2d:
    """The same layer, starting as the zero function."""
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
