"""Real images edited: what is known is kept to the bit, ends are met, and what cannot be done is one line."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm.batch import Condition
from ldm.editing.image_to_image import image_to_image, inpaint
from ldm.editing.interpolation import drawn_end, image_end, interpolate, same_conditions
from ldm.editing.masks import hidden_latents, spread
from ldm.errors import ConfigError, RequestError
from ldm.pipeline import LatentDiffusion
from ldm.shapes import to_float, to_uint8
from tests.support.diffusion_models import diffusion_model

LEVEL = 2 / 255


@pytest.fixture(scope="module", params=["kl", "tiny", "pixels"])
def model(request: pytest.FixtureRequest) -> LatentDiffusion:
    return diffusion_model(request.param)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def hole() -> Tensor:
    hidden = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    hidden[..., 3:12, 5:14] = True
    return hidden


def any_class(model: LatentDiffusion, count: int = 2) -> Condition:
    return model.config.schema.request(["disc"] * count)


def test_known_pixels_changed_by_a_level_where_something_else_was_drawn_anew(
    model: LatentDiffusion, pixels: Tensor
) -> None:
    plan = model.plan(steps=6)
    found = to_uint8(inpaint(model, to_float(pixels), hole(), any_class(model), plan, resamplings=2))
    known = ~hole().expand_as(found)
    assert found[known].equal(pixels[known])
    assert (found.int() - pixels.int())[~known].abs().float().mean() > 5


def test_nothing_of_the_hidden_part_is_seen_at_strength_1(model: LatentDiffusion, pixels: Tensor) -> None:
    other = torch.where(hole(), 255 - pixels, pixels)
    found = [
        inpaint(model, to_float(each), hole(), any_class(model), model.plan(steps=4), resamplings=1)
        for each in (pixels, other)
    ]
    assert found[0].equal(found[1])
    weak = model.plan(steps=4, strength=0.25)
    begun = [inpaint(model, to_float(each), hole(), any_class(model), weak, resamplings=1) for each in (pixels, other)]
    assert not begun[0].equal(begun[1])


def test_toward_strength_0_an_image_comes_back_as_its_reconstruction(model: LatentDiffusion, pixels: Tensor) -> None:
    images = to_float(pixels)
    reconstruction = model.decode(model.encode(images))
    assert len(found := image_to_image(model, images, any_class(model), model.plan(strength=1e-5))) == 2
    assert (found - reconstruction).abs().max() < 1e-3
    changed = image_to_image(model, images, any_class(model), model.plan(strength=0.5))
    assert (changed - reconstruction).abs().max() > LEVEL


def test_the_ends_of_a_way_are_the_samples_and_the_reconstructions(model: LatentDiffusion, pixels: Tensor) -> None:
    plan, shares, condition = model.plan(steps=6), torch.tensor([0.0, 0.5, 1.0]), any_class(model, 1)
    samples = model.sample(numbers=[3, 8], labels=["disc", "square"], steps=6, batch_size=1)
    ends = [drawn_end(model, (n,), model.config.schema.request(c), plan) for n, c in ((3, "square"), (8, "disc"))]
    way = interpolate(model, *ends, shares, plan)
    torch.testing.assert_close(way[[0, 2]], samples, rtol=0, atol=1e-4)
    assert (way[1] - samples).abs().amax((1, 2, 3)).min() > LEVEL
    image = to_float(pixels[:1])
    real = interpolate(model, image_end(model, image, condition, plan), ends[1], shares, plan)
    torch.testing.assert_close(real[:1], model.decode(model.encode(image)), rtol=0, atol=1e-3)
    torch.testing.assert_close(real[2:], samples[1:], rtol=0, atol=1e-4)


def test_ends_that_both_left_a_number_or_a_text_out_were_taken_for_different_conditions() -> None:
    """Each step then asked the denoiser twice."""

    def condition(angle: float, tokens: float) -> Condition:
        values = {"label": torch.tensor([1]), "angle": torch.tensor([angle]), "text": torch.full((1, 2, 3), tokens)}
        return Condition(values)

    assert same_conditions(condition(math.nan, math.nan), condition(math.nan, math.nan))
    assert not same_conditions(condition(math.nan, math.nan), condition(1.0, math.nan))
    assert not same_conditions(condition(1.0, math.nan), condition(1.0, 0.5))


def test_another_size_than_trained_is_drawn_where_the_networks_allow_it() -> None:
    model = diffusion_model("kl")
    images = model.sample(2, steps=2, size=(24, 16))
    assert images.shape == (2, 3, 24, 16)
    for size, words in (((23, 16), "size .* is not divisible by 2"), ((18, 16), "makes latents of 9 x 8")):
        with pytest.raises(RequestError, match=words):
            model.sample(1, size=size)


def test_half_precision_leaves_the_skip_in_full(finished_diffusion: object) -> None:
    """Its numbers were rounded with the weights, which no network repairs at small noise."""
    model = LatentDiffusion.load(str(finished_diffusion)).to(torch.bfloat16)
    assert model.denoiser.gaussian is not None and model.denoiser.gaussian.basis.dtype == torch.float32
    assert model.denoiser.network_dtype == torch.bfloat16 and model.sample(1, steps=2).isfinite().all()


def test_a_latent_is_hidden_where_any_of_its_pixels_is() -> None:
    hidden = torch.zeros(1, 1, 6, 7, dtype=torch.bool)
    hidden[0, 0, 1, 6] = hidden[0, 0, 4, 0] = True
    assert hidden_latents(hidden, (2, 2))[0, 0].int().tolist() == [[0, 0, 0, 1], [0] * 4, [1, 0, 0, 0]]


def test_a_membrane_between_equal_borders_is_flat_near_them_and_keeps_its_start_far_away() -> None:
    known = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    known[..., 0] = known[..., -1] = True
    flat = spread(torch.full((1, 1, 5, 5), 0.7), known, torch.zeros(1, 1, 5, 5))
    assert (flat - 0.7).abs().max() < 0.01
    far = spread(torch.ones(1, 1, 3, 201), torch.arange(201).eq(0).expand(1, 1, 3, 201), torch.zeros(1, 1, 3, 201))
    assert far[..., 100:].abs().max() == 0 and far[..., 1].min() > 0.8


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda model, images: inpaint(model, images, hole()[..., :8], any_class(model), model.plan()),
            "mask of 16 x 8",
        ),
        (lambda model, images: inpaint(model, images, hole() & False, any_class(model), model.plan()), "hides nothing"),
        (
            lambda model, images: image_to_image(model, images[:, :1], any_class(model), model.plan()),
            "batch of 3 channels",
        ),
        (lambda model, images: model.plan(strength=1.5), "strength 1.5 must be above 0"),
        (
            lambda model, images: image_end(model, images, any_class(model), model.plan(sampler="ddim")),
            "sampler ddim draws noise on its way",
        ),
        (lambda model, images: model.with_graph(), "graph needs a CUDA GPU, and the model is on cpu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_edited_is_refused_in_one_line(
    pixels: Tensor, edit: Callable[[LatentDiffusion, Tensor], object], words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        edit(diffusion_model("tiny"), to_float(pixels))
    assert words in str(refused.value) and "\n" not in str(refused.value)
