"""Fully connected autoencoders: a layer is a matrix, a bias and an activation, and the decoder mirrors the encoder.

    image -> layer 1 -> layer 2 -> ... -> code -> ... -> layer 2 -> layer 1 -> image

Layer i of the encoder and layer i of the decoder are a small autoencoder of what layer i - 1 gives: that is how a
stack is trained layer by layer.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder.config import LinearNetworkConfig, MLPNetworkConfig
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class MLPNetwork(AutoencoderNetwork):
    """An image of just `fixed_size` = C x H x W becomes a code of encoder_channels x 1 x 1, and a latent an image.

    `encoder[i]` and `decoder[i]` belong together, the first being next to the image. Kind `linear` has no layers
    between.
    """

    encoder: nn.ModuleList
    decoder: nn.ModuleList
    fixed_size: tuple[int, int, int]
    is_convolutional = False

    def __init__(
        self,
        config: LinearNetworkConfig | MLPNetworkConfig,
        *,
        image: tuple[int, int, int],
        encoder_channels: int,
        latent_channels: int,
    ):
        super().__init__()
        widths = config.widths if isinstance(config, MLPNetworkConfig) else ()
        activation = config.activation if isinstance(config, MLPNetworkConfig) else "none"
        if config.tied and encoder_channels != latent_channels:
            raise ConfigError(
                "autoencoder.network.tied needs a code as wide as the encoder's output: use"
                " autoencoder.bottleneck.kind identity or sparse"
            )
        self.fixed_size, self.image_channels, self.is_tied = image, image[0], config.tied
        self.downsampling = image[1], image[2]  # there is only one latent position
        self.downsampling_setting = f"the fully connected autoencoder.network.kind {config.kind}"
        self.activation = ACTIVATIONS[activation]
        self.is_centered = isinstance(config, LinearNetworkConfig) and config.centered
        down = [math.prod(image), *widths, encoder_channels]
        up = [math.prod(image), *widths, latent_channels]
        self.encoder = nn.ModuleList([nn.Linear(*pair) for pair in pairwise(down)])
        self.decoder = nn.ModuleList([nn.Linear(above, below) for below, above in pairwise(up)])
        self.layers = len(self.encoder)
        if config.tied:
            for layer in self.decoder:
                del layer.weight
        elif isinstance(config, LinearNetworkConfig) and encoder_channels == latent_channels:
            with torch.no_grad():  # so that a unit begins by writing what it reads
                self.matrix(1).copy_(self.encoder[0].get_parameter("weight").T)

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """batch x encoder_channels x 1 x 1; a mask needs nothing more than the zeros that it left in the images."""
        x = images
        for layer in range(1, self.layers + 1):
            x = self.encode_layer(layer, x)
        return x

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        """batch x C x H x W."""
        x = latents
        for layer in range(self.layers, 0, -1):
            x = self.decode_layer(layer, x)
        return x

    def layer_input(self, layer: int, images: Tensor) -> Tensor:
        """The input of layer number `layer`, from 1: the images, or batch x width x 1 x 1."""
        for each in range(1, layer):
            images = self.encode_layer(each, images)
        return images

    def encode_layer(self, layer: int, x: Tensor) -> Tensor:
        """One layer of the encoder; the activation of the last one is the bottleneck's."""
        if self.is_centered:
            x = x.flatten(1) - self.decoder[0].get_parameter("bias")
        x = self.encoder[layer - 1](x.flatten(1))
        return (x if layer == self.layers else self.activation(x))[:, :, None, None]

    def decode_layer(self, layer: int, x: Tensor) -> Tensor:
        """The layer of the decoder that undoes it; there is no activation before the image."""
        x = F.linear(x.flatten(1), self.matrix(layer), self.decoder[layer - 1].get_parameter("bias"))
        return x.view(-1, *self.fixed_size) if layer == 1 else self.activation(x)[:, :, None, None]

    def matrix(self, layer: int) -> Tensor:
        """The decoder's matrix of a layer, outputs x inputs."""
        if self.is_tied:
            return self.encoder[layer - 1].get_parameter("weight").T
        return self.decoder[layer - 1].get_parameter("weight")

    @property
    def decoder_in_weight(self) -> Tensor:
        """The weight that the code meets first: outputs x latent channels."""
        return self.matrix(self.layers)

    @property
    def output_layer(self) -> nn.Module:
        """The layer that makes the image."""
        return self.decoder[0]
