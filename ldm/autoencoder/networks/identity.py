"""The identity: its latents are the pixels, and a denoiser of them is pixel diffusion."""

from torch import Tensor

from ldm.autoencoder.config import PixelNetworkConfig
from ldm.autoencoder.network import AutoencoderNetwork


class IdentityNetwork(AutoencoderNetwork):
    """Images in, images out; nothing is learned."""

    def __init__(
        self, config: PixelNetworkConfig, *, image: tuple[int, int, int], encoder_channels: int, latent_channels: int
    ):
        super().__init__()
        self.image_channels, self.downsampling = image[0], (1, 1)
        self.downsampling_setting = "autoencoder.network.kind pixels"

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        return images

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return latents
