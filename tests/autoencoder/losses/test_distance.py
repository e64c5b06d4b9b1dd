"""Distances between pixels: what each means, and what its gradient does."""

import math

import pytest
import torch
from torch.distributions import Normal

from ldm.autoencoder.config import DISTANCES
from ldm.autoencoder.losses.distance import emphasized, gaussian, huber, l1


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, reconstruction = (torch.rand(2, 4, 3, 6, 6, generator=generator, dtype=torch.float64) * 2 - 1).unbind()
    return images, reconstruction.requires_grad_()


@pytest.mark.parametrize("name", DISTANCES)
def test_no_distance_is_smaller_than_that_of_an_image_to_itself(name):
    images, other = pair()
    logvar = torch.zeros(3, 1, 1, dtype=torch.float64)
    same = images.clone().requires_grad_()
    distance = DISTANCES[name].load()
    found = distance(images, same, logvar)
    assert bool((found <= distance(images, other, logvar)).all())
    (gradient,) = torch.autograd.grad(found.mean(), same)
    assert not bool(gradient.any())


@pytest.mark.parametrize("name", DISTANCES)
def test_a_reconstruction_outside_the_range_is_still_pulled_back(name):
    images, other = pair()
    far = (other.detach() * 3).requires_grad_()
    (gradient,) = torch.autograd.grad(DISTANCES[name].load()(images, far, torch.zeros(3, 1, 1).double()).mean(), far)
    outside = far.detach().abs() > 1
    assert bool((gradient[outside] * far.detach()[outside] > 0).all())


def test_the_gaussian_distance_is_the_negative_log_likelihood_per_image_value():
    images, other = pair()
    logvar = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    expected = -Normal(other, (logvar / 2).exp()).log_prob(images)
    torch.testing.assert_close(gaussian(images, other, logvar), expected, rtol=1e-12, atol=0)


def test_the_best_output_variance_is_the_mean_squared_error_of_its_channel():
    images, other = pair()
    logvar = (images - other.detach()).square().mean((0, 2, 3)).log().view(3, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(gaussian(images, other.detach(), logvar).mean(), logvar)
    assert gradient.abs().max() < 1e-12
    shifted = gaussian(images, other.detach(), logvar + 0.1)
    assert shifted.mean() > gaussian(images, other.detach(), logvar).mean()


def test_huber_is_l1_far_away_and_a_parabola_nearby():
    images = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    none = torch.zeros(1, 1, 1)
    far, near = images + 0.7, images + 0.02
    assert math.isclose(huber(images, far, none), l1(images, far, none) - 0.05)
    assert math.isclose(huber(images, near, none), 0.02**2 / 0.2)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_has_one_value_per_value_of_the_image(name):
    images, other = pair()
    logvar = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    distance = DISTANCES[name].load()
    found = distance(images, other, logvar)
    assert found.shape == images.shape
    changed = images.clone()
    changed[1, 2, 3, 4] += 0.5
    differs = distance(changed, other, logvar) != found
    assert differs.sum() == 1 and bool(differs[1, 2, 3, 4])


@pytest.mark.parametrize("emphasis", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_emphasis_weighs_corrupted_elements_against_the_others(emphasis):
    """Vincent et al. 2010, equation 16, over the sum of the weights."""
    images, other = pair()
    distance = l1(images, other, torch.zeros(())).detach()
    order = images[:, :1].flatten(1).argsort(1).argsort(1).view(4, 1, 6, 6)
    corrupted_elements = order < 11  # as many pixels of every image, all channels of each
    both = corrupted_elements.expand_as(distance)
    weights = emphasis * both.double() + (1 - emphasis) * (~both).double()
    expected = (weights * distance).sum() / weights.sum()
    torch.testing.assert_close(emphasized(distance, corrupted_elements, emphasis), expected, rtol=1e-12, atol=0)


def test_full_emphasis_looks_at_corrupted_elements_alone():
    images, other = pair()
    corrupted_elements = images > 0.3
    (gradient,) = torch.autograd.grad(emphasized(l1(images, other, torch.zeros(())), corrupted_elements, 1.0), other)
    assert gradient.ne(0).equal(corrupted_elements)


def test_without_emphasis_and_where_all_or_nothing_was_corrupted_all_weigh_the_same():
    images, other = pair()
    distance = l1(images, other, torch.zeros(())).detach()
    corrupted_elements = images > 0.3
    found = [
        emphasized(distance, None, 0.9),
        emphasized(distance, corrupted_elements, None),
        emphasized(distance, corrupted_elements, 0.5),
        emphasized(distance, torch.ones_like(corrupted_elements), 0.9),
        emphasized(distance, torch.zeros_like(corrupted_elements), 0.9),
    ]
    for each in found:
        torch.testing.assert_close(each, distance.mean(), rtol=1e-12, atol=0)


def test_rmse_has_the_value_and_the_gradient_of_the_root_of_each_images_mean_square():
    images = torch.rand(3, 2, 4, 5, dtype=torch.float64)
    found = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(1)).double()
    plain = found.clone().requires_grad_()
    found.requires_grad_()
    value = DISTANCES["rmse"].load()(images, found, torch.zeros(2, 1, 1)).mean()
    expected = ((plain - images).square().mean((1, 2, 3)) + 1e-6).sqrt().mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(found.grad, plain.grad, rtol=1e-9, atol=0)
