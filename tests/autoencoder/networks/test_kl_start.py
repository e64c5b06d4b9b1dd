"""A new AutoencoderKL starts as the best linear autoencoder that its convolutions can hold."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.autoencoder import lapped_transform
from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, KLNetworkConfig
from ldm.autoencoder.model import Autoencoder, create
from ldm.autoencoder.networks import kl_start
from ldm.autoencoder.networks.kl import KLNetwork
from ldm.randomness import generator


def smooth_images(count: int = 32, side: int = 32) -> Tensor:
    """Noise whose spectrum falls with the frequency, as that of photographs does; not around 0."""
    noise = torch.randn(count, 3, side, side, generator=generator(0, "images"))
    frequencies = torch.fft.fftfreq(side)
    falls = 1 / (frequencies[:, None] ** 2 + frequencies[: side // 2 + 1].abs() ** 2 + 1e-3)
    images = torch.fft.irfft2(torch.fft.rfft2(noise) * falls)
    return 0.3 * images / images.std() + torch.tensor([0.3, 0.0, -0.2]).view(3, 1, 1)


def untrained(widths: tuple[int, ...], groups: int, channels: int = 4, attention: bool = True) -> Autoencoder:
    torch.manual_seed(0)
    network = KLNetworkConfig(widths=widths, norm_groups=groups, mid_attention=attention)
    return create(AutoencoderConfig(network, GaussianConfig(channels=channels)), image=(3, 32, 32))


@pytest.mark.parametrize("widths, groups", [((12, 12, 24), 2), ((16, 8, 8), 1), ((8, 16), 1)])
def test_the_stock_network_is_the_linear_chain_in_spite_of_norms_and_activations(widths: tuple[int, ...], groups: int):
    network, images = untrained(widths, groups, channels=3).network, smooth_images(4)
    assert isinstance(network, KLNetwork) and network.linear_start is not None
    chain = kl_start.first_guess(images, network.linear_start)
    kl_start.balance(chain, images)
    factor, mean = 2 ** (len(widths) - 1), images.mean((0, 2, 3))
    kl_start.write(chain, images, network.encoder, network.decoder)

    with torch.no_grad():
        codes = network.encode(images)[:, :3]
        decoded = network.decode(codes)
    patches = F.pixel_unshuffle(images - mean.view(3, 1, 1), factor)
    expected = F.conv2d(patches, chain.encoder().float(), padding=1)
    assert (codes - expected).std() < 0.01 * expected.std()
    expected = F.pixel_shuffle(F.conv2d(codes, chain.decoder().float(), padding=1), factor) + mean.view(3, 1, 1)
    inside = slice(2 * factor, -2 * factor)  # a filter of a held code and a held filter differ beyond the border
    assert (decoded - expected)[..., inside, inside].std() < 0.01 * expected.std()


def test_it_starts_near_the_best_lapped_transform_and_not_at_random():
    autoencoder, images = untrained((8, 16, 32), 1), smooth_images()
    assert isinstance(autoencoder.network, KLNetwork)
    random = (autoencoder.reconstruct(images) - images).square().mean()
    autoencoder.network.initialize(images, None)
    with torch.no_grad():
        posterior = autoencoder.encode(images)
        linear = (autoencoder.decode(posterior.mean) - images).square()[..., 8:-8, 8:-8].mean()
    transform = lapped_transform.fit(images, 4, 4, 0.05)
    patches = F.pixel_unshuffle(images, 4) - transform.mean.float().view(-1, 1, 1)
    best = F.conv2d(F.conv2d(patches, transform.encoder.float(), padding=1), transform.decoder.float(), padding=1)
    lapped = (F.pixel_shuffle(best - patches, 4)[..., 8:-8, 8:-8]).square().mean()
    assert lapped < 1.05 * linear and linear < 1.6 * lapped and linear < 0.2 * random
    assert posterior.mean.std((0, 2, 3)).sub(1).abs().max() < 0.3  # of the border, which the fit does not know
    torch.testing.assert_close(posterior.variance.sqrt(), torch.full_like(posterior.mean, 0.05))


@pytest.mark.parametrize("widths, groups", [((16, 32, 64), 16), ((8, 8), 4), ((8,), 1), ((2, 8), 1)])
def test_no_linear_start_where_norm_groups_or_widths_leave_no_room(widths: tuple[int, ...], groups: int):
    network = untrained(widths, groups).network
    assert isinstance(network, KLNetwork) and not network.starts_from_data


def test_the_noise_of_an_untrained_posterior_does_not_drown_the_code():
    """diffusers' own start has noise of standard deviation 1 around a code of a third of that."""
    with torch.no_grad():
        posterior = untrained((16, 32, 64), 16).encode(smooth_images())
    torch.testing.assert_close(posterior.variance.sqrt(), torch.full_like(posterior.mean, 0.05))
    assert posterior.mean.std() > 3 * 0.05 and not math.isnan(posterior.mean.std())
