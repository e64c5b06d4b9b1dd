"""Decoder atoms as images: what each unit of a code adds to the decoded image (its dictionary)."""

import torch

from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.networks.mlp import MLPNetwork
from ldm.shapes import Images


def has_dictionary(autoencoder: Autoencoder) -> bool:
    """Whether its units are worth a picture: those of a sparse code, and of fully connected networks."""
    return autoencoder.bottleneck.tracks_usage or isinstance(autoencoder.network, MLPNetwork)


@torch.no_grad()
def dictionary_images(autoencoder: Autoencoder, images: Images, count: int = 64) -> Images:
    """decode(unit) - decode(0) for the `count` units that are largest on these images, the largest first.

    A unit of a convolutional code stands at the middle of the latent. Each picture is scaled to reach from -1 to 1.
    """
    code = autoencoder.raw_posterior(images).mean
    chosen = code.abs().mean((0, 2, 3)).argsort(descending=True)[:count]
    one = code.new_zeros(len(chosen) + 1, *code.shape[1:])  # the last one stays 0
    one[range(len(chosen)), chosen, code.shape[2] // 2, code.shape[3] // 2] = 1.0
    decoded = autoencoder.decode_raw(one)
    features = decoded[:-1] - decoded[-1]
    return features / features.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
