"""The fit of the lapped transform: whatever the images, it is finite, and never worse than what it starts from."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.autoencoder import lapped_transform
from ldm.verify.known_data import smooth_images


def reconstructed(transform: lapped_transform.LappedTransform, images: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    mean = transform.mean.view(-1, 1, 1)
    code = F.conv2d(F.pixel_unshuffle(images, patch).double() - mean, transform.encoder, padding=1)
    return code, F.pixel_shuffle(F.conv2d(code, transform.decoder, padding=1) + mean, patch)


@pytest.mark.parametrize(
    ("count", "channels", "height", "width", "patch", "latent"),
    [
        (30, 3, 16, 16, 4, 4),
        (30, 1, 32, 16, 8, 5),
        (9, 2, 8, 24, 2, 3),
        (3, 3, 16, 16, 16, 8),  # one position
        (2, 3, 64, 32, 32, 12),  # patches of 3,072 values, of fewer images than channels
        (1, 1, 4, 4, 4, 2),
        (20, 4, 6, 10, 1, 4),  # as many channels as values
        (2, 1, 160, 16, 4, 4),  # longer than a window
    ],
)
def test_any_images_have_a_transform_with_a_code_of_variance_one(count, channels, height, width, patch, latent):
    images = smooth_images(count, channels, height, width)
    transform = lapped_transform.fit(images, patch, latent, 0.05)
    assert transform.encoder.shape == (latent, channels * patch**2, 3, 3) and transform.encoder.dtype == torch.float64
    code, again = reconstructed(transform, images, patch)
    assert code.isfinite().all() and again.isfinite().all()
    if count * height * width > 4 * patch**2:  # and not a single position
        assert 0.3 < code.square().mean((0, 2, 3)).max() < 2
    mean = F.pixel_shuffle(transform.mean.view(1, -1, 1, 1).expand(1, -1, height // patch, width // patch), patch)
    assert (again - images).square().mean() <= (images - mean).square().mean() * (1 + 1e-9)


def test_uncorrelated_channels_are_another_basis_of_the_same_transform():
    images = smooth_images(60, 3, 16, 16)
    plain, separated = (lapped_transform.fit(images, 4, 5, 0.1, uncorrelated=each) for each in (False, True))
    (_, expected), (code, again) = (reconstructed(each, images, 4) for each in (plain, separated))
    torch.testing.assert_close(again, expected, rtol=1e-6, atol=1e-6)
    correlations = torch.corrcoef(code.transpose(0, 1).flatten(1)) - torch.eye(5)
    assert correlations.abs().max() < 0.15  # the spectrum is of images that are continued by the mean patch
    atoms = torch.einsum("vcyx,vdyx->cd", separated.decoder, separated.decoder)
    lengths = atoms.diag().sqrt()
    assert (atoms / torch.outer(lengths, lengths) - torch.eye(5)).abs().max() < 1e-9
    assert (lengths.diff() < 0).all()


def test_constant_images_have_a_code_of_nothing_and_come_back():
    images = torch.full((8, 3, 16, 16), 0.25)
    transform = lapped_transform.fit(images, 4, 4, 0.05)
    code, again = reconstructed(transform, images, 4)
    assert code.abs().max() < 1e-6 and (again - images).abs().max() < 1e-6
    assert transform.encoder.isfinite().all() and transform.encoder.flatten(1).norm(dim=1).sub(1).abs().max() < 1e-6


def test_a_channel_with_nothing_to_say_has_no_say_and_no_division_by_nothing():
    """Images that differ in one direction only leave three of four channels silent."""
    pattern = smooth_images(1, 3, 4, 4)
    images = pattern.repeat(1, 1, 4, 4) * torch.linspace(-1, 1, 20).double().view(-1, 1, 1, 1)
    transform = lapped_transform.fit(images, 4, 4, 0.05)
    _, again = reconstructed(transform, images, 4)
    assert transform.encoder.isfinite().all() and transform.decoder.isfinite().all()
    assert (again - images).square().mean() < 0.02 * images.square().mean()


def test_the_fit_does_not_depend_on_the_global_generator_nor_move_it():
    images = smooth_images(4, 3, 64, 64)
    torch.manual_seed(1)
    first, state = lapped_transform.fit(images, 16, 4, 0.05), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert lapped_transform.fit(images, 16, 4, 0.05).encoder.equal(first.encoder)
