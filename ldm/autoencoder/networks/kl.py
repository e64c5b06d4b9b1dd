"""The networks an autoencoder can be made of: images to moments of the latent, and latents to images.

All say how many pixels high and wide one latent position is (`factors`) and, if they learn, which weight a code meets
first (`first_decoding`) and which layer makes the image (`last_layer`). `hidden` is for those that can leave patches
out.
"""

from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from ldm.autoencoder.config import (
    KLNetworkConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    PixelNetworkConfig,
    StockNetworkConfig,
    TinyNetworkConfig,
    ViTNetworkConfig,
)
from ldm.autoencoder.formats import diffusers
from ldm.autoencoder.networks.identity import PixelNetwork
from ldm.autoencoder.networks.mlp import MLPNetwork
from ldm.autoencoder.networks.tiny import TinyNetwork
from ldm.autoencoder.networks.vit import ViTNetwork
from ldm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class StockNetwork(nn.Module):
    """The parts of any AutoencoderKL of diffusers, around the same weights and under the same names.

    An image of C x H x W becomes moments of 2c x H/f x W/f, with f = 2 ** (levels - 1). `config` is all that diffusers
    needs to build the class again.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, kl: "AutoencoderKL"):
        super().__init__()
        self.describe({name: value for name, value in kl.config.items() if not name.startswith("_")})
        self.encoder, self.decoder = kl.encoder, kl.decoder
        self.quant_conv: nn.Module = kl.quant_conv or nn.Identity()
        self.post_quant_conv: nn.Module = kl.post_quant_conv or nn.Identity()

    @classmethod
    def start(
        cls, config: StockNetworkConfig, *, image: tuple[int, int, int], encoder_channels: int, latent_channels: int
    ) -> Self:
        """The autoencoder that the settings name; ConfigError if its channels are not those that are asked for."""
        if encoder_channels != 2 * latent_channels:
            raise ConfigError("autoencoder.network.kind stock needs autoencoder.bottleneck.kind gaussian")
        try:
            network = cls(diffusers.read(config.path))
        except CheckpointError as error:
            raise CheckpointError(f"autoencoder.network.path: {error}") from error
        network.downsampling_setting = f"autoencoder.network.path {config.path}"
        for name, asked, there in (
            ("autoencoder.bottleneck.channels", latent_channels, network.config["latent_channels"]),
            ("data.channels", image[0], network.image_channels),
        ):
            if asked != there:
                raise ConfigError(f"{name} is {asked}, but autoencoder.network.path {config.path} has {there}")
        return network

    def describe(self, config: dict[str, Any]) -> None:
        """Take what there is to know from the configuration of an AutoencoderKL."""
        self.config = config
        self.image_channels: int = config["in_channels"]
        levels = len(config["block_out_channels"])
        self.downsampling = (2 ** (levels - 1),) * 2  # how many pixels high and wide one latent position is
        self.downsampling_setting = f"autoencoder.network.widths with {levels} levels"

    @property
    def output_layer(self) -> nn.Conv2d:
        """The convolution that makes the image."""
        return self.decoder.conv_out  # type: ignore[return-value]

    @property
    def decoder_in_weight(self) -> Tensor:
        """The weight that the code meets first: outputs x latent channels x 1 x 1."""
        return self.post_quant_conv.weight  # type: ignore[return-value]

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def to_stock(self) -> "AutoencoderKL":
        """A copy of the weights in diffusers' own class, on the CPU in float32."""
        return diffusers.build(self.config, self.state_dict())


class KLNetwork(StockNetwork):
    """A new one: diffusers' convolutional encoder and decoder and two 1 x 1 convolutions."""

    def __init__(
        self, config: KLNetworkConfig, *, image: tuple[int, int, int], encoder_channels: int, latent_channels: int
    ):
        nn.Module.__init__(self)
        from diffusers.models.autoencoders.vae import Decoder, Encoder

        for width in config.widths:
            if width % config.norm_groups:
                raise ConfigError(
                    f"autoencoder.network.norm_groups {config.norm_groups} does not divide {width}, one of"
                    " autoencoder.network.widths"
                )
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
            | {"scaling_factor": 1.0, "force_upcast": False}
        )
        self.encoder = Encoder(image_channels, encoder_channels, down_block_types=down, double_z=False, **shared)
        self.decoder = Decoder(latent_channels, image_channels, up_block_types=up, **shared)
        self.quant_conv = nn.Conv2d(encoder_channels, encoder_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)


NETWORKS: dict[type, Any] = {
    KLNetworkConfig: KLNetwork,
    TinyNetworkConfig: TinyNetwork,
    StockNetworkConfig: StockNetwork.start,
    LinearNetworkConfig: MLPNetwork,
    MLPNetworkConfig: MLPNetwork,
    ViTNetworkConfig: ViTNetwork,
    PixelNetworkConfig: PixelNetwork,
}
