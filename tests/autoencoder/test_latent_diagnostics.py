"""The spectrum of noise that is made to have one, and Jacobians against automatic differentiation and closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.autoencoder.bottleneck import GaussianBottleneck
from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, KLNetworkConfig
from ldm.autoencoder.latent_diagnostics import encoder_jacobian, power_spectrum, slope_of, spectrum_slope
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.randomness import generator


def colored_noise(exponent: float, count: int, size: int) -> Tensor:
    """Noise with power ∝ frequency ** exponent, cut out of a periodic field so that its edges do not match."""
    large = 4 * size
    white = torch.randn(count, 2, large, large, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axis = torch.fft.fftfreq(large, dtype=torch.float64)
    radius = (axis[:, None].square() + axis.square()).sqrt()
    radius[0, 0] = 1
    return torch.fft.ifft2(torch.fft.fft2(white) * radius ** (exponent / 2)).real[..., :size, :size]


@pytest.mark.parametrize("exponent", [0.0, -1.0, -2.0, -3.0])
def test_the_slope_of_noise_is_the_one_it_was_made_with(exponent):
    assert spectrum_slope(colored_noise(exponent, 64, 32)) == pytest.approx(exponent, abs=0.1)


def test_the_slope_of_an_exact_power_law_is_exact_also_where_height_and_width_differ():
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (12, 20))
    frequency = (rows[:, None].square() + columns.square()).sqrt()
    frequency[0, 0] = 1
    power = torch.stack([frequency**-1.7, 1e6 * frequency**-1.7])
    assert slope_of(power) == pytest.approx(-1.7, abs=1e-12)


def test_power_is_energy():
    latents = colored_noise(-1.0, 3, 6)
    torch.testing.assert_close(power_spectrum(latents).sum((1, 2)), latents.square().sum((0, 2, 3)))


def test_scaling_and_shifting_channels_leaves_the_slope():
    latents = torch.cat([colored_noise(-2.0, 8, 16), colored_noise(0.0, 8, 16)], 1)
    scale, shift = torch.tensor([100.0, 1.0, 0.01, 3.0]).view(-1, 1, 1), torch.arange(4).view(-1, 1, 1)
    assert spectrum_slope(scale * latents + shift) == pytest.approx(spectrum_slope(latents), abs=1e-6)


def test_tiny_or_constant_latents_have_no_slope():
    assert spectrum_slope(torch.randn(5, 2, 3, 8)) is None
    assert spectrum_slope(torch.zeros(5, 2, 8, 8)) is None and spectrum_slope(torch.full((5, 2, 9, 8), 0.3)) is None
    assert spectrum_slope(torch.full((5, 2, 8, 8), math.nan)) is None


class Patches(AutoencoderNetwork):
    """A linear encoder: each 2 x 2 patch times a matrix; with certain posteriors and no decoder."""

    downsampling, image_channels = (2, 2), 1

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        means = nn.functional.conv2d(images, self.weight, stride=2)
        return torch.cat([means, torch.full_like(means, -30.0)], 1)


def linear(weight: Tensor) -> Autoencoder:
    return Autoencoder(Patches(weight), GaussianBottleneck(GaussianConfig(channels=len(weight))))


def white_images(count: int, size: int = 32, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_the_jacobian_of_a_linear_encoder_is_its_matrix_over_the_spread_of_its_latents():
    weight, images = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(2)), white_images(64)
    with torch.no_grad():
        std = linear(weight).encode(images).mean.transpose(0, 1).flatten(1).std(1, correction=0)
    expected = ((weight.flatten(1).square().sum(1) / std.square()).sum() / 3).sqrt().item()
    assert encoder_jacobian(linear(weight), images, generator(0, "jacobian")) == pytest.approx(expected, rel=0.02)


def test_white_images_through_any_linear_encoder_move_its_latents_as_much_as_themselves():
    """Unit noise has unit standard deviation, which is what a unit step is measured in."""
    weight = torch.tensor([[[[5.0, 0.0], [0.0, 0.0]]], [[[0.0, 0.3], [0.4, 0.0]]]])
    assert encoder_jacobian(linear(weight), white_images(64), generator(0, "jacobian")) == pytest.approx(1, rel=0.02)


def small_network() -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(KLNetworkConfig(widths=(4, 4), norm_groups=2), GaussianConfig(channels=2))
    return create_trainable(config, image=(1, 4, 4)).double()


def test_the_estimate_agrees_with_the_jacobian_formed_in_full():
    autoencoder, images = small_network(), white_images(3, size=4).double()
    exact = torch.func.jacrev(lambda pixels: autoencoder.encode(pixels[None]).mean[0])
    with sdpa_kernel(SDPBackend.MATH):  # the others have no batching rule
        jacobians = torch.stack([exact(image) for image in images]).detach()  # n c h w 1 H W
    posterior = autoencoder.encode(images)
    variance = posterior.mean.var((0, 2, 3), correction=0) + posterior.logvar.exp().mean((0, 2, 3))
    scaled = jacobians.square().sum((4, 5, 6)) / variance.detach().view(-1, 1, 1)
    estimate = encoder_jacobian(autoencoder, images.repeat(300, 1, 1, 1), generator(0, "jacobian"), at_once=300)
    assert estimate == pytest.approx(scaled.mean().sqrt().item(), rel=0.03)


def test_standardizing_the_latents_leaves_the_jacobian():
    autoencoder, images = small_network(), white_images(3, size=4).double()
    before = encoder_jacobian(autoencoder, images, generator(0, "jacobian"))
    autoencoder.standardize(torch.tensor([1.0, -2.0]), torch.tensor([0.01, 30.0]))
    assert encoder_jacobian(autoencoder, images, generator(0, "jacobian")) == pytest.approx(before, rel=1e-9)


def test_the_cut_of_the_batch_leaves_the_jacobian_and_no_gradient_stays_behind():
    autoencoder, images = small_network(), white_images(5, size=4).double()
    with torch.no_grad():
        whole, cut = (encoder_jacobian(autoencoder, images, generator(0, "jacobian"), at_once=n) for n in (5, 2))
    assert all(parameter.grad is None for parameter in autoencoder.parameters())
    assert cut == pytest.approx(whole, rel=1e-9)
