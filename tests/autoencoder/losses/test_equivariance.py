"""Equivariance: latent and image are transformed in the same steps, alike for every part of the batch."""

import pytest
import torch

from ldm.autoencoder.losses.config import EquivarianceConfig
from ldm.autoencoder.losses.equivariance import transform_together
from ldm.randomness import StepRandom


def blobs(height: int, width: int) -> torch.Tensor:
    """Smooth pictures of `height` x `width` latent positions, four pixels each, and no two alike."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 2, 3, 4, generator=generator, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, (4 * height, 4 * width), mode="bicubic")


@pytest.mark.parametrize("sides", [(8, 8), (4, 12)])
def test_a_latent_that_is_a_small_picture_stays_the_small_picture_of_the_image(sides):
    """For the encoder 'average every 4 x 4 square' scaling and turning commute with encoding."""
    images = blobs(*sides)
    latents = torch.nn.functional.avg_pool2d(images, 4)
    shapes, mirrored = set(), []
    for step in range(40):
        image, latent = transform_together(images, latents, EquivarianceConfig(probability=1.0), StepRandom(0, step, 3))
        assert [4 * side for side in latent.shape[-2:]] == list(image.shape[-2:])
        again = torch.nn.functional.avg_pool2d(image, 4)
        assert (again - latent).abs().mean() < 0.2 * latents.std()  # two filters, not one
        mirrored.append((again.flip(-1) - latent).abs().mean() / latents.std())
        shapes.add(tuple(latent.shape[-2:]))
    assert torch.stack(mirrored).mean() > 0.6, "another way round would be noticed"
    assert len(shapes) > 3
    min_scale = min(min(shape) / min(sides) for shape in shapes)
    assert 0.25 <= min_scale < 0.5


def test_turns_alone_are_exact():
    images = blobs(8, 8)
    latents = torch.nn.functional.avg_pool2d(images, 4)
    turned = 0
    for step in range(20):
        config = EquivarianceConfig(probability=1.0, min_scale=1.0)
        image, latent = transform_together(images, latents, config, StepRandom(0, step, 3))
        torch.testing.assert_close(torch.nn.functional.avg_pool2d(image, 4), latent, rtol=0, atol=1e-12)
        turned += not image.equal(images)
    assert 10 <= turned <= 19


def test_the_stated_fraction_of_steps_is_transformed():
    images = blobs(8, 8)
    latents = torch.nn.functional.avg_pool2d(images, 4)
    config = EquivarianceConfig(probability=0.3, min_scale=0.5, rotate90=False)
    changed = sum(
        transform_together(images, latents, config, StepRandom(0, step, 3))[0].shape != images.shape
        for step in range(400)
    )
    assert abs(changed / 400 - 0.3 * 7 / 8) < 4 * (0.3 * 0.7 / 400) ** 0.5  # 1/8 of the scales round to 1


def test_every_part_of_a_batch_is_transformed_alike():
    images = blobs(8, 8)
    latents = torch.nn.functional.avg_pool2d(images, 4)
    for step in range(10):
        whole, _ = transform_together(images, latents, EquivarianceConfig(), StepRandom(3, step, 3))
        for part in range(3):
            rng = StepRandom.of_part(3, step, total=3, parts=3, part=part)
            cut, _ = transform_together(images[part : part + 1], latents[part : part + 1], EquivarianceConfig(), rng)
            assert cut.equal(whole[part : part + 1])
