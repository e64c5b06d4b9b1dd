"""Corruptions hit the stated fraction, leave the rest alone, and do not depend on how a batch is cut."""

import pytest
import torch

from ldm.data.corruption import hide_patches, mix_in_noise
from ldm.randomness import StepRandom

CORRUPTIONS = {
    "hidden patches": lambda x, random: hide_patches(x, 0.6, 4, random),
    "latent noise": lambda x, random: mix_in_noise(x, 2.0, random),
}


def images(count: int = 6, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_sample_is_corrupted_alike_in_any_cut_of_the_batch(name):
    whole = CORRUPTIONS[name](images(), StepRandom(1, 5, 6))
    parts = [
        CORRUPTIONS[name](images()[2 * part : 2 * part + 2], StepRandom.of_part(1, 5, total=6, parts=3, part=part))
        for part in range(3)
    ]
    assert torch.cat(parts).equal(whole)
    assert not whole.equal(images())


def test_none_is_none():
    given = images()
    assert hide_patches(given, 0.0, 4, StepRandom(0, 0, 6)) is given
    assert mix_in_noise(given, 0.0, StepRandom(0, 0, 6)) is given


@pytest.mark.parametrize("size", [16, 18])
def test_whole_patches_are_hidden_and_everything_else_is_as_it_was(size):
    given = images(64, size)
    hidden = hide_patches(given, 0.7, 4, StepRandom(0, 0, 64)) == 0
    kept = hide_patches(given, 0.7, 4, StepRandom(0, 0, 64))
    assert kept[~hidden].equal(given[~hidden])
    squares = hidden[..., :16, :16].unfold(2, 4, 4).unfold(3, 4, 4).flatten(-2)
    assert squares.any(-1).equal(squares.all(-1))
    assert bool((hidden.all(1) == hidden.any(1)).all()), "all channels of a patch go together"


def test_the_stated_fraction_is_hidden():
    """max(0, U(-0.1, m)) has mean m² / (2 (m + 0.1)), and is 0 with probability 0.1 / (m + 0.1)."""
    given = torch.ones(4000, 1, 16, 16)
    fractions = (hide_patches(given, 0.6, 4, StepRandom(0, 0, 4000)) == 0).double().mean((1, 2, 3))
    assert abs(fractions.mean() - 0.36 / 1.4) < 4 * fractions.std() / 4000**0.5
    assert (fractions == 0).double().mean() > 0.1 / 0.7


def test_noise_that_is_mixed_in_keeps_its_share_whatever_the_scale_of_the_latent():
    latents = torch.randn(2000, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    noisy = mix_in_noise(latents, 3.0, StepRandom(0, 0, 2000))
    torch.testing.assert_close(
        mix_in_noise(100 * latents, 3.0, StepRandom(0, 0, 2000)), 100 * noisy, rtol=1e-3, atol=1e-3
    )
    # E[(1 - t)²] + 9 E[t²] = 1/3 + 3
    assert abs(noisy.var() / latents.var() - 10 / 3) < 0.2


def test_a_constant_latent_has_no_noise_and_a_finite_gradient():
    latents = torch.ones(3, 2, 1, 1, requires_grad=True)
    mix_in_noise(latents, 3.0, StepRandom(0, 0, 3)).sum().backward()
    assert bool(latents.grad.isfinite().all())
