"""The networks an autoencoder can be made of: images to moments of the latent, and latents to images."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ldm.autoencoder.settings import KLNetwork as KLSettings

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class KLNetwork(nn.Module):
    """diffusers' convolutional encoder and decoder and two 1 x 1 convolutions: AutoencoderKL's parameters, by name.

    An image of C x H x W becomes moments of 2c x H/f x W/f, with f = 2 ** (levels - 1).
    """

    def __init__(self, settings: KLSettings, *, image_channels: int, latent_channels: int):
        super().__init__()
        from diffusers.models.autoencoders.vae import Decoder, Encoder

        levels = len(settings.widths)
        self.image_channels = image_channels
        self.factor = 2 ** (levels - 1)  # how many pixels wide one latent position is
        self.config = {
            "in_channels": image_channels,
            "out_channels": image_channels,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": list(settings.widths),
            "layers_per_block": settings.blocks,
            "latent_channels": latent_channels,
            "norm_num_groups": settings.norm_groups,
            "mid_block_add_attention": settings.mid_attention,
        }
        shared = {
            "block_out_channels": settings.widths,
            "layers_per_block": settings.blocks,
            "norm_num_groups": settings.norm_groups,
            "mid_block_add_attention": settings.mid_attention,
        }
        self.encoder = Encoder(
            image_channels,
            2 * latent_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            double_z=False,
            **shared,  # type: ignore[arg-type]
        )
        self.decoder = Decoder(
            latent_channels,
            image_channels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            **shared,  # type: ignore[arg-type]
        )
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The convolution that makes the image."""
        return self.decoder.conv_out

    def encode(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


class StockNetwork(nn.Module):
    """Any AutoencoderKL of diffusers, ours or not, behind the same two methods."""

    def __init__(self, stock: "AutoencoderKL"):
        super().__init__()
        self.stock = stock
        self.image_channels: int = stock.config["in_channels"]
        self.factor = 2 ** (len(stock.config["block_out_channels"]) - 1)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The convolution that makes the image."""
        return self.stock.decoder.conv_out

    def encode(self, images: Tensor) -> Tensor:
        moments = self.stock.encoder(images)
        return moments if self.stock.quant_conv is None else self.stock.quant_conv(moments)

    def decode(self, latents: Tensor) -> Tensor:
        if self.stock.post_quant_conv is not None:
            latents = self.stock.post_quant_conv(latents)
        return self.stock.decoder(latents)


NETWORKS = {KLSettings: KLNetwork}
