"""Distances between pixels: what each means, and what its gradient does."""

import math

import pytest
import torch
from torch.distributions import Normal

from ldm.autoencoder.distance import DISTANCES, gaussian, huber, l1


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, reconstruction = (torch.rand(2, 4, 3, 6, 6, generator=generator, dtype=torch.float64) * 2 - 1).unbind()
    return images, reconstruction.requires_grad_()


@pytest.mark.parametrize("name", DISTANCES)
def test_no_distance_is_smaller_than_that_of_an_image_to_itself(name):
    images, other = pair()
    logvar = torch.zeros(3, 1, 1, dtype=torch.float64)
    same = images.clone().requires_grad_()
    distance = DISTANCES[name](images, same, logvar)
    assert distance < DISTANCES[name](images, other, logvar)
    (gradient,) = torch.autograd.grad(distance, same)
    assert not bool(gradient.any())


@pytest.mark.parametrize("name", DISTANCES)
def test_a_reconstruction_outside_the_range_is_still_pulled_back(name):
    images, other = pair()
    far = (other.detach() * 3).requires_grad_()
    (gradient,) = torch.autograd.grad(DISTANCES[name](images, far, torch.zeros(3, 1, 1).double()), far)
    outside = far.detach().abs() > 1
    assert bool((gradient[outside] * far.detach()[outside] > 0).all())


def test_the_gaussian_distance_is_the_negative_log_likelihood_per_image_value():
    images, other = pair()
    logvar = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    expected = -Normal(other, (logvar / 2).exp()).log_prob(images).mean()
    torch.testing.assert_close(gaussian(images, other, logvar), expected, rtol=1e-12, atol=0)


def test_the_best_output_variance_is_the_mean_squared_error_of_its_channel():
    images, other = pair()
    logvar = (images - other.detach()).square().mean((0, 2, 3)).log().view(3, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(gaussian(images, other.detach(), logvar), logvar)
    assert gradient.abs().max() < 1e-12
    shifted = gaussian(images, other.detach(), logvar + 0.1)
    assert shifted > gaussian(images, other.detach(), logvar)


def test_huber_is_l1_far_away_and_a_parabola_nearby():
    images = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    none = torch.zeros(1, 1, 1)
    far, near = images + 0.7, images + 0.02
    assert math.isclose(huber(images, far, none), l1(images, far, none) - 0.05)
    assert math.isclose(huber(images, near, none), 0.02**2 / 0.2)
