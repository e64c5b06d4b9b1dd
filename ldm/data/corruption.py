"""What may be done to an image, or to its latent, before somebody has to make it good again."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.randomness import StepRandom
from ldm.shapes import Images


def hide_patches(images: Images, largest: float, patch: int, random: StepRandom) -> Images:
    """The images with some of their patch x patch squares set to 0, the middle of the range.

    The probability of a patch to be hidden is drawn for each image, uniformly from -0.1 to `largest`, and below 0 means
    never, so that whole images remain in training (l-DeTok, Yang et al. 2025).
    """
    if largest == 0:
        return images
    rows, columns = (-(-side // patch) for side in images.shape[-2:])
    fraction = random.uniform("hidden fraction", 1, 1, 1, device=images.device) * (largest + 0.1) - 0.1
    seen = random.uniform("hidden patches", 1, rows, columns, device=images.device) >= fraction
    mask = F.interpolate(seen.to(images), scale_factor=patch, mode="nearest")
    return images * mask[..., : images.shape[-2], : images.shape[-1]]


def mix_in_noise(latents: Tensor, strength: float, random: StepRandom) -> Tensor:
    """(1 - t) latents + t * strength * spread * noise, with t uniform in [0, 1) for each sample.

    The noise of denoising tokenizers (l-DeTok, Yang et al. 2025; RAE, Zheng et al. 2025). `spread` is the
    standard deviation of the sample's own latent, so that latents cannot escape the noise by growing.
    """
    if strength == 0:
        return latents
    noise = random.normal("latent noise", *latents.shape[1:], device=latents.device)
    t = random.uniform("latent noise share", 1, 1, 1, device=latents.device)
    spread = torch.std(latents.detach(), dim=(1, 2, 3), correction=0, keepdim=True)
    return (1 - t) * latents + t * strength * spread * noise
