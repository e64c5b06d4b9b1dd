"""Corruptions hit the stated fraction, leave the rest alone, and do not depend on how a batch is cut."""

import dataclasses
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from ldm.corruption import (
    Blur,
    Corrupted,
    Corruption,
    GaussianNoise,
    Interpolation,
    Mask,
    SaltAndPepper,
)
from ldm.randomness import StepRandom

KINDS = get_args(Corruption)
EXAMPLES = [
    *(kind() for kind in KINDS),
    GaussianNoise(sigma=(0.1, 2.0)),
    Blur(sigma=(0.3, 2.0)),
    SaltAndPepper(probability=1.0, low=-0.5, high=0.25),
    *(Mask(unit=unit, fraction=(0.1, 0.6), p_clean=0.3) for unit in ("element", "pixel", "patch")),
    *(Mask(unit=unit, fraction=0.4) for unit in ("element", "pixel")),
    Mask(fraction=0.5, patch=2),
]
LOCAL = [each for each in EXAMPLES if isinstance(each, SaltAndPepper | Mask)]
every = pytest.mark.parametrize("corruption", EXAMPLES, ids=str)


def images(count: int = 6, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    """No value of theirs is 0, -1 or 1, which corruptions put in their place."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64) * 0.8 + 0.1


def corrupt(corruption: Any, clean: Tensor, rng: StepRandom | None = None, name: str = "input") -> Corrupted:
    found: Corrupted = corruption(clean, rng or StepRandom(1, 5, len(clean)), name=name, patch=(4, 4))
    return found


def share(told: Tensor) -> float:
    return told.double().mean().item()


# ---- what is true of each


def test_each_has_its_own_kind_and_is_what_the_settings_offer():
    assert len({kind().kind for kind in KINDS}) == len(KINDS) >= 5
    assert all(dataclasses.is_dataclass(kind) and kind.__doc__ for kind in KINDS)


@every
def test_each_sample_is_corrupted_alike_in_any_cut_of_the_batch(corruption):
    whole = corrupt(corruption, images())
    for count in (1, 2, 3):
        parts = [
            corrupt(
                corruption,
                images()[count * part : count * (part + 1)],
                StepRandom.of_part(1, 5, total=6, parts=6 // count, part=part),
            )
            for part in range(6 // count)
        ]
        torch.testing.assert_close(torch.cat([part.values for part in parts]), whole.values, rtol=1e-12, atol=1e-14)
        for name in ("elements", "hidden"):
            cut, uncut = [getattr(part, name) for part in parts], getattr(whole, name)
            assert (uncut is None) == (cut[0] is None)
            assert uncut is None or torch.cat(cut).equal(uncut), name


@every
def test_a_corruption_is_a_function_of_seed_step_and_name(corruption):
    found = corrupt(corruption, images()).values
    assert found.equal(corrupt(corruption, images()).values) and not found.equal(images())
    if corruption == Blur():  # the only one that draws nothing
        return
    others = [
        corrupt(corruption, images(), StepRandom(2, 5, 6)),
        corrupt(corruption, images(), StepRandom(1, 6, 6)),
        corrupt(corruption, images(), name="latent"),
    ]
    assert not any(found.equal(other.values) for other in others)


@every
def test_the_images_that_are_given_are_not_touched_and_shape_and_type_are_kept(corruption):
    for dtype in (torch.float32, torch.float64):
        given = images().to(dtype)
        before = given.clone()
        found = corrupt(corruption, given).values
        assert given.equal(before) and found.shape == given.shape and found.dtype == dtype
        assert bool(found.isfinite().all())


@every
def test_touched_says_where_values_may_differ(corruption):
    given, found = images(40), corrupt(corruption, images(40))
    if found.elements is None:
        assert share(found.values != given) > 0.99
        return
    elements = found.elements.expand_as(given)
    assert found.elements.dtype == torch.bool and (found.values != given).equal(elements)


@every
def test_a_gradient_comes_through_wherever_something_of_the_value_is_left(corruption):
    given = images().requires_grad_()
    found = corrupt(corruption, given)
    found.values.sum().backward()
    assert given.grad is not None and bool(given.grad.isfinite().all())
    if found.elements is not None:
        assert (given.grad == 0).equal(found.elements.expand_as(given))


@pytest.mark.parametrize("corruption", LOCAL, ids=str)
def test_whatever_was_there_the_same_places_are_touched(corruption):
    one, other = corrupt(corruption, images()), corrupt(corruption, images(seed=1))
    assert one.elements.equal(other.elements)


# ---- Gaussian noise


def test_gaussian_noise_has_the_stated_strength():
    noise = corrupt(GaussianNoise(sigma=0.3), images(200)).values - images(200)
    count = noise.numel()
    assert abs(noise.mean()) < 4 * 0.3 / math.sqrt(count)
    assert abs(noise.std() - 0.3) < 4 * 0.3 / math.sqrt(2 * count)
    assert abs((noise.abs() < 0.3).double().mean() - math.erf(math.sqrt(0.5))) < 4 * 0.5 / math.sqrt(count)


def test_of_two_strengths_each_image_gets_one_that_is_log_uniform_between_them():
    low, high, count = 0.01, 1.0, 2000
    clean = torch.zeros(count, 3, 16, 16, dtype=torch.float64)
    sigmas = corrupt(GaussianNoise(sigma=(low, high)), clean).values.flatten(1).std(1)
    position = (sigmas / low).log() / math.log(high / low)  # uniform in [0, 1), up to the error of a standard deviation
    assert position.min() > -0.02 and position.max() < 1.02
    assert abs(position.mean() - 0.5) < 4 / math.sqrt(12 * count)
    for quarter in (0.25, 0.5, 0.75):
        assert abs(share(position < quarter) - quarter) < 4 * math.sqrt(quarter * (1 - quarter) / count)


# ---- salt and pepper


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_half_of_what_is_replaced_is_salt_and_half_is_pepper(probability):
    found = corrupt(SaltAndPepper(probability=probability), images(100))
    count = found.values.numel()
    for value in (-1.0, 1.0):
        assert abs(share(found.values == value) - probability / 2) < 4 * math.sqrt(probability / count)
    assert abs(share(found.elements) - probability) <= 4 * math.sqrt(probability * (1 - probability) / count)
    assert found.elements.equal(found.values.abs() == 1)


def test_salt_and_pepper_are_as_bright_as_they_are_said_to_be():
    found = corrupt(SaltAndPepper(probability=0.5, low=-0.5, high=0.75), images())
    assert set(found.values[found.elements].unique().tolist()) == {-0.5, 0.75}


def test_salt_falls_on_channels_one_by_one():
    elements = corrupt(SaltAndPepper(probability=0.5), images()).elements
    assert not elements.all(1).equal(elements.any(1))


# ---- masks


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75, 0.7])
@pytest.mark.parametrize("patch", [0, 2, 8])
def test_of_patches_just_the_rounded_fraction_is_hidden_in_every_image(fraction, patch):
    side = patch or 4
    found = corrupt(Mask(fraction=fraction, patch=patch), images(20))
    count = (16 // side) ** 2
    assert found.hidden.shape == (20, 16 // side, 16 // side)
    assert found.hidden.sum((1, 2)).eq(round(fraction * count)).all()
    spread = found.hidden.repeat_interleave(side, 1).repeat_interleave(side, 2)
    assert found.elements.equal(spread[:, None]), "all pixels and channels of a patch go together, and no others"


def test_every_patch_is_hidden_equally_often():
    hidden, count = corrupt(Mask(fraction=0.25), images(3000, 1)).hidden, 3000
    assert bool(((hidden.double().mean(0) - 0.25).abs() < 4.5 * math.sqrt(0.25 * 0.75 / count)).all())


@pytest.mark.parametrize("unit", ["element", "pixel"])
def test_elements_and_pixels_are_hidden_each_with_the_stated_probability(unit):
    found = corrupt(Mask(unit=unit, fraction=0.3), images(100))
    assert found.hidden is None
    assert abs(share(found.elements) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / found.elements.numel())
    together = found.elements.expand(100, 3, 16, 16)
    assert together.all(1).equal(together.any(1)) == (unit == "pixel")


@pytest.mark.parametrize("unit", ["element", "pixel", "patch"])
def test_masking_puts_zeros_and_does_not_scale_up_what_remains(unit):
    """Dropout would."""
    found = corrupt(Mask(unit=unit, fraction=0.5), images())
    elements = found.elements.expand_as(found.values)
    assert not found.values[elements].any() and found.values[~elements].equal(images()[~elements])


def test_some_images_stay_whole_and_of_the_others_a_uniform_fraction_is_hidden():
    """The fraction that hides anything in miniature: [0, 0.6] of elements, and a tenth of the images left alone."""
    count = 4000
    found = corrupt(Mask(unit="element", fraction=(0.0, 0.6), p_clean=0.1), images(count, 1))
    fractions = found.elements.double().mean((1, 2, 3))
    whole = share(fractions == 0)
    assert 0.1 - 4 * math.sqrt(0.09 / count) < whole < 0.1 + 4 * math.sqrt(0.09 / count) + 0.9 / 256
    expected = 0.9 * 0.3
    assert abs(fractions.mean() - expected) < 4 * fractions.std() / math.sqrt(count)
    above = share(fractions > 0.3)
    assert abs(above - 0.45) < 4 * math.sqrt(0.45 * 0.55 / count) + 0.01


def test_a_patch_that_hangs_over_the_edge_is_cut_there():
    found = corrupt(Mask(fraction=0.5), images(size=18))
    assert found.hidden.shape == (6, 5, 5) and found.elements.shape == (6, 1, 18, 18)
    assert (found.values == 0).all(1, keepdim=True).equal(found.elements)


# ---- blur


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5, (0.5, 3.0)])
def test_a_blur_leaves_a_constant_and_the_mean_of_what_is_far_from_the_edge(sigma):
    constant = torch.full((3, 2, 9, 12), 0.37, dtype=torch.float64)
    torch.testing.assert_close(corrupt(Blur(sigma=sigma), constant).values, constant, rtol=1e-6, atol=0)
    inside = torch.zeros(3, 1, 33, 33, dtype=torch.float64)
    inside[..., 14:19, 13:20] = images(3, 1)[..., :5, :7]
    found = corrupt(Blur(sigma=sigma), inside).values
    torch.testing.assert_close(found.mean((1, 2, 3)), inside.mean((1, 2, 3)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("sigma", [0.7, 1.5, 3.0])
def test_a_blurred_point_is_as_wide_as_the_blur_is_said_to_be(sigma):
    """Up to what lies beyond three sigma, in both directions alike."""
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    found, places = corrupt(Blur(sigma=sigma), point).values[0, 0], torch.arange(41, dtype=torch.float64) - 20
    for one in (found.sum(0), found.sum(1)):
        assert (one * places.square()).sum().sqrt() == pytest.approx(sigma, rel=0.04)
    assert found.equal(found.flip(0)) and torch.allclose(found, found.T)


@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (1, 5), (5, 2)])
@pytest.mark.parametrize("sigma", [0.5, 10.0])
def test_the_smallest_images_can_be_blurred(sides, sigma):
    given = images()[..., : sides[0], : sides[1]]
    found = corrupt(Blur(sigma=sigma), given).values
    assert found.shape == given.shape and bool(found.isfinite().all())
    assert found.min() >= given.min() - 1e-9 and found.max() <= given.max() + 1e-9
    assert sides != (1, 1) or torch.allclose(found, given)


def test_every_image_has_a_blur_of_its_own():
    given = images(1).expand(8, -1, -1, -1)
    found = corrupt(Blur(sigma=(0.3, 3.0)), given, StepRandom(0, 0, 8)).values
    assert len({tuple(image.flatten().tolist()) for image in found}) == 8
    roughness = found.diff(dim=-1).square().mean((1, 2, 3))
    assert roughness.max() > 3 * roughness.min()


# ---- interpolation


def test_noise_that_is_mixed_in_keeps_its_share_whatever_the_scale_of_the_latent():
    latents = torch.randn(2000, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy, louder = (corrupt(Interpolation(strength=3.0), scale * latents).values for scale in (1, 100))
    torch.testing.assert_close(louder, 100 * noisy, rtol=1e-9, atol=1e-9)
    # E[(1 - t)²] + 9 E[t²] = 1/3 + 3
    assert abs(noisy.var() / latents.var() - 10 / 3) < 0.2


def test_a_constant_latent_has_no_noise_and_a_finite_gradient():
    latents = torch.ones(3, 2, 1, 1, requires_grad=True)
    corrupt(Interpolation(strength=3.0), latents).values.sum().backward()
    assert bool(latents.grad.isfinite().all())
    found = corrupt(Interpolation(strength=3.0), torch.ones(3, 2, 4, 4)).values
    assert found.flatten(1).std(1).max() < 1e-6


def test_a_latent_cannot_escape_the_noise_by_growing():
    """The noise's strength is no function of the latent that a gradient could use."""
    latents = images().requires_grad_()
    found = corrupt(Interpolation(strength=3.0), latents).values
    (gradient,) = torch.autograd.grad(found.sum(), latents)
    assert len({round(value, 9) for value in gradient.flatten(1)[0].tolist()}) == 1, "1 - t, and nothing else"


# ---- what is refused


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((kind, {"sigma": sigma}) for kind in (GaussianNoise, Blur) for sigma in (0.0, -1.0, math.nan, math.inf)),
        *((kind, {"sigma": pair}) for kind in (GaussianNoise, Blur) for pair in ((0.5, 0.1), (0.3, 0.3), (0.0, 1.0))),
        *((kind, {"sigma": pair}) for kind in (GaussianNoise, Blur) for pair in ((-1.0, 1.0), (0.1, math.inf))),
        *((SaltAndPepper, {"probability": value}) for value in (0.0, -0.1, 1.1, math.nan)),
        *((SaltAndPepper, {"low": low, "high": high}) for low, high in ((0.5, 0.5), (0.5, -0.5), (-1.1, 1), (-1, 1.1))),
        *((SaltAndPepper, {"low": low, "high": high}) for low, high in ((math.nan, 1), (-1, math.nan))),
        *((Mask, {"fraction": value}) for value in (0.0, -0.1, 1.0, 1.5, math.nan)),
        *((Mask, {"fraction": pair}) for pair in ((0.0, 0.0), (0.5, 0.1), (-0.1, 0.5), (0.5, 1.0), (0.1, math.nan))),
        (Mask, {"patch": -1}),
        *((Mask, {"p_clean": value}) for value in (-0.1, 1.0, math.nan)),
        *((Interpolation, {"strength": value}) for value in (0.0, -1.0, math.nan, math.inf)),
    ],
)
def test_a_setting_without_a_meaning_is_refused_in_one_line_by_name(kind, wrong):
    with pytest.raises(ValueError) as refused:
        kind(**wrong)
    message = str(refused.value)
    assert "\n" not in message and any(name in message for name in wrong)
    assert any(str(value) in message for value in wrong.values()), message


@pytest.mark.parametrize(
    ("mask", "sides", "position", "says"),
    [
        (Mask(patch=3), (16, 16), (4, 4), "patch 3 does not divide the size 16 x 16"),
        (Mask(), (16, 18), (4, 4), "patch 4 does not divide the size 16 x 18"),
        (Mask(fraction=0.1), (16, 16), (8, 8), "fraction 0.1 of 4 patches hides none of them"),
        (Mask(fraction=0.9), (16, 16), (8, 8), "fraction 0.9 of 4 patches hides all of them"),
        (Mask(fraction=(0.1, 0.9)), (16, 16), (8, 8), "hides all of them"),
        (Mask(), (16, 16), (16, 16), "of 1 patches hides all of them"),
    ],
)
def test_a_mask_of_patches_that_do_not_fit_an_image_says_why(mask, sides, position, says):
    found = mask.incompatibility(sides, position)
    assert found is not None and says in found and "\n" not in found


def test_what_fits_an_image_is_no_misfit():
    for corruption in (
        Mask(),
        Mask(patch=2),
        Mask(unit="pixel", fraction=0.01),
        GaussianNoise(),
        Blur(),
        SaltAndPepper(),
    ):
        assert corruption.incompatibility((16, 16), (4, 4)) is None
