"""diffusers' AutoencoderKL as a network of ours: a new one, or a pretrained one to fine-tune."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldm.autoencoder.config import KLNetworkConfig, PretrainedNetworkConfig
from ldm.autoencoder.formats import diffusers
from ldm.autoencoder.lapped_transform import NOISE
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.autoencoder.networks import kl_start
from ldm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class AutoencoderKLNetwork(AutoencoderNetwork):
    """The parts of any AutoencoderKL of diffusers, around the same weights and under the same names.

    An image of C x H x W becomes moments of 2c x H/f x W/f, with f = 2 ** (levels - 1). `kl_config` is all that
    diffusers needs to build the class again.
    """

    has_autoencoder_kl_shape = True

    def __init__(self, kl: "AutoencoderKL"):
        super().__init__()
        self.describe({name: value for name, value in kl.config.items() if not name.startswith("_")})
        self.encoder, self.decoder = kl.encoder, kl.decoder
        self.quant_conv: nn.Module = kl.quant_conv or nn.Identity()
        self.post_quant_conv: nn.Module = kl.post_quant_conv or nn.Identity()

    def describe(self, kl_config: dict[str, Any]) -> None:
        """Take what there is to know from the configuration of an AutoencoderKL."""
        self.kl_config = kl_config
        self.image_channels = kl_config["in_channels"]
        levels = len(kl_config["block_out_channels"])
        self.downsampling = (2 ** (levels - 1),) * 2
        self.downsampling_setting = f"autoencoder.network.widths with {levels} levels"

    @property
    def output_layer(self) -> nn.Module:
        """The convolution that makes the image."""
        return self.decoder.get_submodule("conv_out")

    @property
    def decoder_in_weight(self) -> Tensor:
        """The weight that the code meets first: outputs x latent channels x 1 x 1."""
        return self.post_quant_conv.get_parameter("weight")

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def to_diffusers(self) -> "AutoencoderKL":
        """A copy of the weights in diffusers' own class, on the CPU in float32."""
        return diffusers.build(self.kl_config, self.state_dict())


class PretrainedNetwork(AutoencoderKLNetwork):
    """The pretrained AutoencoderKL that a config names."""

    def __init__(
        self,
        config: PretrainedNetworkConfig,
        *,
        image: tuple[int, int, int],
        encoder_channels: int,
        latent_channels: int,
    ):
        """Raises ConfigError if its channels are not those that are asked for, CheckpointError if there is none."""
        try:
            super().__init__(diffusers.read(config.path))
        except CheckpointError as error:
            raise CheckpointError(f"autoencoder.network.path: {error}") from error
        if encoder_channels != 2 * latent_channels:
            raise ConfigError(
                "autoencoder.network.kind pretrained needs autoencoder.bottleneck.kind gaussian, with noise null"
            )
        self.downsampling_setting = f"autoencoder.network.path {config.path}"
        self.kl_config["sample_size"] = max(image[1:])
        for name, wanted, found in (
            ("autoencoder.bottleneck.channels", latent_channels, self.kl_config["latent_channels"]),
            ("data.channels", image[0], self.image_channels),
        ):
            if wanted != found:
                raise ConfigError(f"{name} is {wanted}, but autoencoder.network.path {config.path} has {found}")

    def pretrained_statistics(self) -> tuple[Tensor, Tensor]:
        return diffusers.statistics(self.kl_config)


class KLNetwork(AutoencoderKLNetwork):
    """A new one: diffusers' convolutional encoder and decoder and two 1 x 1 convolutions."""

    def __init__(
        self, config: KLNetworkConfig, *, image: tuple[int, int, int], encoder_channels: int, latent_channels: int
    ):
        nn.Module.__init__(self)
        from diffusers.models.autoencoders.vae import Decoder, Encoder

        levels, image_channels = len(config.widths), image[0]
        shared: dict[str, Any] = {
            "block_out_channels": config.widths,
            "layers_per_block": config.blocks,
            "norm_num_groups": config.norm_groups,
            "mid_block_add_attention": config.mid_attention,
        }
        down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
        channels = {"in_channels": image_channels, "out_channels": image_channels, "latent_channels": latent_channels}
        self.describe(
            {**shared, **channels, "down_block_types": down, "up_block_types": up}
            | {"sample_size": max(image[1:]), "scaling_factor": 1.0, "force_upcast": False}
        )
        self.encoder = Encoder(image_channels, encoder_channels, down_block_types=down, double_z=False, **shared)
        self.decoder = Decoder(latent_channels, image_channels, up_block_types=up, **shared)
        self.quant_conv = nn.Conv2d(encoder_channels, encoder_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.latent_channels = latent_channels
        self.linear_start = kl_start.shape_of(config.widths, config.norm_groups, image_channels, latent_channels)
        self.starts_from_data = self.linear_start is not None
        self.start_moments(NOISE)

    @torch.no_grad()
    def start_moments(self, noise: float) -> None:
        """Let the 1 x 1 convolutions change nothing, and the log variance, if there is one, be that of this noise."""
        for convolution in (self.quant_conv, self.post_quant_conv):
            weight, bias = (convolution.get_parameter(name) for name in ("weight", "bias"))
            nn.init.dirac_(weight)
            nn.init.zeros_(bias)
            weight[self.latent_channels :], bias[self.latent_channels :] = 0, 2 * math.log(noise)

    @torch.no_grad()
    def initialize(self, images: Tensor, noise: float | None, *, uncorrelated: bool = False) -> None:
        """Start as the best linear autoencoder of these images that fits in; a learned variance starts at its noise."""
        assert self.linear_start is not None
        noise = noise or NOISE
        with torch.enable_grad():
            chain = kl_start.fit(images, self.linear_start, noise)
        kl_start.write(chain, images, self.encoder, self.decoder)
        self.start_moments(noise)
