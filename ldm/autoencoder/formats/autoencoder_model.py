"""The class of diffusers for autoencoders in our own format: what AutoModel opens, and the `vae` of a pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.config import AutoencoderConfig
from ldm.autoencoder.formats.ours import code, latent_facts, load, settings, write
from ldm.autoencoder.model import Autoencoder, create
from ldm.component.code_file import CodeFile
from ldm.component.own_model import OwnModel
from ldm.config.plain import from_plain
from ldm.shapes import Images, Latents


class AutoencoderModel(OwnModel):
    """An autoencoder that diffusers has no class for, called as its AutoencoderKL is.

    Latents have zero mean and unit variance per channel, so that scaling_factor is 1 and shift_factor 0. An image whose
    sides the downsampling does not divide is padded to the right and below by `encode`: crop what `decode` gives, as
    `forward` does. Images and latents come in the precision of what was given, whatever that of the weights is.
    """

    @register_to_config
    def __init__(
        self,
        image: Sequence[int],
        network: dict[str, Any],
        bottleneck: dict[str, Any],
        decodes_images: bool = True,
        classes: int = 0,
    ):
        """`image` is channels, height and width of the training images; the rest as `ldm.autoencoder.config` has it."""
        super().__init__()
        config = from_plain(AutoencoderConfig, {"network": network, "bottleneck": bottleneck})
        channels, height, width = image
        self.autoencoder = create(config, image=(channels, height, width), classes=classes)
        self.autoencoder.decodes_images = decodes_images
        self.register_to_config(**latent_facts(self.autoencoder))

    @classmethod
    def around(cls, autoencoder: Autoencoder) -> Self:
        """The component of an autoencoder that is there already."""
        with torch.device("meta"):
            component = cls(**settings(autoencoder))
        component.autoencoder = autoencoder
        return component.eval()

    @classmethod
    def read(cls, folder: Path, variant: str | None) -> Self:
        return cls.around(load(folder, variant))

    def write(self, folder: Path, variant: str | None) -> None:
        write(self.autoencoder, folder, variant)

    def code(self) -> CodeFile:
        return code(self.config["network"]["kind"], self.config["bottleneck"]["kind"])

    @apply_forward_hook
    def encode(self, x: Images, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The posterior of each image over the latents, as `latent_dist`: `sample(generator)`, `mode()`, `mean`, ..."""
        posterior = diagonal_gaussian(self.autoencoder.encode(x), x.dtype)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self, z: Latents, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Images]:
        """The image of each latent, as `sample`; `generator` is what diffusers' pipelines give, and draws nothing."""
        images = self.autoencoder.decode(z).to(z.dtype)
        return DecoderOutput(sample=images) if return_dict else (images,)

    def forward(
        self,
        sample: Images,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Images]:
        """Each image through the mode of its posterior, or a sample, and back, at its own size."""
        posterior = self.autoencoder.encode(sample)
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        height, width = sample.shape[-2:]
        images = self.autoencoder.decode(latents)[..., :height, :width].to(sample.dtype)
        return DecoderOutput(sample=images) if return_dict else (images,)


def diagonal_gaussian(posterior: Posterior, dtype: torch.dtype) -> DiagonalGaussianDistribution:
    """The same distribution in diffusers' class; a code without noise has variance 0."""
    deterministic = posterior.logvar is None
    logvar = torch.zeros_like(posterior.mean) if posterior.logvar is None else posterior.logvar
    return DiagonalGaussianDistribution(torch.cat([posterior.mean, logvar], 1).to(dtype), deterministic=deterministic)
