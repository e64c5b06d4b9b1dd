"""The contract of every network an autoencoder can be made of: images to moments of the latent, latents to images."""

from torch import Tensor, nn


class AutoencoderNetwork(nn.Module):
    """Encoder and decoder, and what the rest of the autoencoder may know of them.

    A new one is a class that takes (config, *, image, encoder_channels, latent_channels), `image` being the channels,
    height and width it is trained on, and a line in `ldm.autoencoder.config.NETWORKS`.
    """

    encoder: nn.Module
    decoder: nn.Module
    image_channels: int
    downsampling: tuple[int, int]  # pixels high and wide of one latent position
    downsampling_setting: str  # the setting that says so, for messages
    fixed_size: tuple[int, int, int] | None = None  # channels, height, width of the only images it takes; None: any
    can_skip_patches = False  # whether the encoder can leave out hidden patches, and the decoder put a token there
    is_convolutional = True  # whether a scaled image has a scaled latent
    hides: int | None = None  # how many patches of each image are hidden in training, where that is known beforehand
    layers = 0  # how many layers, of a fully connected network, can be trained one by one
    is_tied = False  # whether encoder and decoder share their weights
    starts_from_data = False  # whether `initialize` sets weights from training images
    freezes_encoder = False  # whether the decoder alone is trained
    has_autoencoder_kl_shape = False  # whether diffusers' AutoencoderKL has a place for each of its weights

    def initialize(self, images: Tensor, noise: float | None, *, uncorrelated: bool = False) -> None:
        """Set what starts from training images, for a code with noise of so many standard deviations; None: learned.

        Its channels may be asked to be `uncorrelated`. Called once for a new autoencoder, on one process, and never for
        one that is loaded.
        """
        raise NotImplementedError

    @property
    def channel_gains(self) -> Tensor | None:
        """How large an error in the image one in each channel of the code makes, as it starts; None: not known."""
        return None

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Moments of the latent: batch x encoder_channels x h x w.

        `hidden`, batch x h x w, names latent positions whose patch is hidden, for networks that can skip patches.
        """
        raise NotImplementedError

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Images: batch x image_channels x H x W."""
        raise NotImplementedError

    @property
    def output_layer(self) -> nn.Module:
        """The layer that makes the image."""
        raise NotImplementedError

    def output_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient at what `output_layer` gives, from that at the images."""
        return gradient

    @property
    def decoder_in_weight(self) -> Tensor:
        """The weight that the code meets first: outputs x latent channels x ..."""
        raise NotImplementedError

    def pretrained_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation per channel of the latents of a pretrained network; None for a new one."""
        return None

    def layer_input(self, layer: int, images: Tensor) -> Tensor:
        """The input of layer number `layer`, from 1: what the layers before it make of the images."""
        raise NotImplementedError

    def encode_layer(self, layer: int, x: Tensor) -> Tensor:
        """One layer of the encoder, without the bottleneck."""
        raise NotImplementedError

    def decode_layer(self, layer: int, x: Tensor) -> Tensor:
        """The layer of the decoder that undoes it."""
        raise NotImplementedError

    def train_mask_token(self, trains: bool) -> None:
        """Say whether patches are hidden in training; a mask token that is never used stays frozen."""
