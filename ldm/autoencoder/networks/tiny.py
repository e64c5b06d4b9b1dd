"""A small, fast autoencoder of plain convolutions, shaped as diffusers' AutoencoderTiny."""

from torch import Tensor, nn

from ldm.autoencoder.config import TinyNetworkConfig
from ldm.autoencoder.network import AutoencoderNetwork


class Block(nn.Module):
    """Three 3 x 3 convolutions with ReLU between them, beside a skip, and a ReLU over the sum; no norm."""

    def __init__(self, width: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            convolution(width, width), nn.ReLU(), convolution(width, width), nn.ReLU(), convolution(width, width)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.convolutions(x))


def convolution(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """3 x 3, with zeros around the image."""
    return nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)


class TinyNetwork(AutoencoderNetwork):
    """One width at every level, strided convolutions down, nearest-neighbor upsampling up, no attention.

    An image of C x H x W becomes moments of 2c x H/f x W/f, with f = 2 ** levels. What happens at one latent position
    depends on its neighborhood alone, so memory grows with the image and no faster.
    """

    def __init__(
        self, config: TinyNetworkConfig, *, image: tuple[int, int, int], encoder_channels: int, latent_channels: int
    ):
        super().__init__()
        image_channels = image[0]
        self.image_channels = image_channels
        self.downsampling = (2**config.levels,) * 2
        self.downsampling_setting = f"autoencoder.network.levels {config.levels}"
        width, blocks = config.width, range(config.blocks)
        encoder: list[nn.Module] = [convolution(image_channels, width), Block(width)]
        decoder: list[nn.Module] = [convolution(latent_channels, width), nn.ReLU()]
        for _ in range(config.levels):
            encoder += [convolution(width, width, stride=2), *(Block(width) for _ in blocks)]
            decoder += [*(Block(width) for _ in blocks), nn.Upsample(scale_factor=2), convolution(width, width)]
        self.encoder: nn.Sequential = nn.Sequential(*encoder, convolution(width, encoder_channels))
        self.decoder: nn.Sequential = nn.Sequential(*decoder, Block(width), convolution(width, image_channels))

    @property
    def output_layer(self) -> nn.Module:
        """The convolution that makes the image."""
        return self.decoder[-1]

    @property
    def decoder_in_weight(self) -> Tensor:
        """The weight that the code meets first: outputs x latent channels x 3 x 3."""
        return self.decoder[0].get_parameter("weight")

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.encoder(images)

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.decoder(latents)
