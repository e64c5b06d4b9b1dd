"""Every change of a training image is drawn from (seed, epoch, image) alone, and does what it is called."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from ldm.data.augmentation import Draws, draws, flips, mirrored_and_turned, zoomed_and_toned
from ldm.data.batches import BatchSampler, ImageBatches
from ldm.data.config import AugmentConfig, FolderConfig
from ldm.data.datasets import Dataset, Subset
from ldm.randomness import uniform_at
from ldm.shapes import to_float

ALL = {"rotate90": True, "flip_vertical": True, "zoom": 1.5, "brightness": 0.2, "contrast": 0.3}
STILL = Draws(*torch.full((len(Draws._fields), 1), 0.5))
IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def still(**changed: float) -> Draws:
    """Of one image: numbers at which nothing happens, but for some."""
    return STILL._replace(**{name: torch.tensor([value]) for name, value in changed.items()})


def augmented(images: torch.Tensor, drawn: Draws, augment: AugmentConfig) -> torch.Tensor:
    turned = mirrored_and_turned(images, drawn, FolderConfig(path="drawn", augment=augment))
    return zoomed_and_toned(turned, drawn, augment)


def dataset(**more: Any) -> Dataset:
    config = FolderConfig(path="drawn", **{"size": (8, 8), **more})
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, *config.sides)).astype(np.uint8)
    names = [str(index) for index in range(20)]
    return Dataset(config, names, np.zeros(20, dtype=np.int64), [], names, "drawn", lambda index: pixels[index])


def batches(batch_size: int = 4, seed: int = 0, **more: Any) -> ImageBatches:
    return ImageBatches(dataset(**more), BatchSampler(tuple(range(20)), seed, batch_size))


def seen(given: ImageBatches, epochs: int) -> dict[tuple[int, int], torch.Tensor]:
    found = {}
    for step in range(20 * epochs // given.sampler.batch_size):
        spec = given.sampler.spec(step)
        found |= dict(zip(zip(spec.epochs, spec.indices, strict=True), given.batch(step).images, strict=True))
    return found


def test_a_setting_never_changes_what_another_one_draws() -> None:
    """The numbers of crop and flip stand first, where they stood before there were others."""
    image, epoch = torch.tensor([7]), torch.tensor([1])
    numbers = uniform_at(3, "augmentation", image, epoch, 20)[0, : len(Draws._fields)]
    assert torch.equal(torch.cat(draws(3, epoch, image)), numbers) and Draws._fields[:3] == ("top", "left", "flip")
    drawn, with_all = draws(0, torch.tensor([0]), torch.tensor([0])), AugmentConfig(**ALL)
    neutral = {"rotate90": {"turn": 0.0}, "flip_vertical": {"flip_vertical": 0.9}, "zoom": {"zoom": 0.0}}
    for name in ALL:
        without = AugmentConfig(**{**ALL, name: getattr(AugmentConfig(), name)})
        changed = {field: torch.tensor([value]) for field, value in neutral.get(name, {name: 0.5}).items()}
        same = drawn._replace(**changed)  # at which the setting changes nothing
        torch.testing.assert_close(augmented(IMAGE, same, with_all), augmented(IMAGE, drawn, without))


def test_what_an_epoch_shows_does_not_depend_on_the_batch_and_every_epoch_shows_another() -> None:
    augment = AugmentConfig(**ALL)
    small, large = seen(batches(4, augment=augment), 2), seen(batches(10, augment=augment), 2)
    assert small.keys() == large.keys() and all(torch.equal(small[place], large[place]) for place in small)
    assert all(not torch.equal(small[0, index], small[1, index]) for index in range(20))
    assert not torch.equal(small[0, 0], seen(batches(seed=1, augment=augment), 1)[0, 0])
    assert all(image.dtype == torch.float32 and image.abs().max() <= 1 for image in small.values())


def test_no_augmentation_and_one_that_does_nothing_are_the_same() -> None:
    plain, nothing = seen(batches(flip=True), 1), seen(batches(flip=True, augment=AugmentConfig()), 1)
    assert all(torch.equal(plain[place], nothing[place]) for place in plain)


def test_evaluation_and_the_latent_cache_see_plain_views() -> None:
    given, plain = dataset(augment=AugmentConfig(**ALL)), dataset()
    assert torch.equal(Subset(given, [3, 1]).images(), Subset(plain, [3, 1]).images())


@pytest.mark.parametrize("sides", [(8, 8), (6, 8)])
def test_quarter_turns_are_exact_and_equally_frequent_and_a_rectangle_keeps_its_sides(sides: tuple[int, int]) -> None:
    given = batches(size=sides, augment=AugmentConfig(rotate90=True))
    quarters = [0, 1, 2, 3] if sides[0] == sides[1] else [0, 2]
    counts = dict.fromkeys(quarters, 0)
    for (_, index), image in seen(given, 20).items():
        plain = to_float(given.dataset.image(index))
        (turned,) = [quarter for quarter in quarters if torch.equal(image, torch.rot90(plain, quarter, (-2, -1)))]
        counts[turned] += 1
    expected = 400 / len(quarters)
    assert all(abs(count - expected) < 4 * math.sqrt(expected) for count in counts.values())


def test_about_half_of_the_images_are_mirrored_top_to_bottom() -> None:
    given = batches(augment=AugmentConfig(flip_vertical=True))
    mirrored = 0
    for (_, index), image in seen(given, 20).items():
        plain = to_float(given.dataset.image(index))
        is_mirrored = torch.equal(image, plain.flip(-2))
        assert is_mirrored != torch.equal(image, plain)
        mirrored += is_mirrored
    assert abs(mirrored - 200) < 4 * math.sqrt(100)


def test_zoom_enlarges_a_part_of_the_image_that_lies_anywhere_in_it() -> None:
    """On a ramp, what is seen is again a ramp, flatter by the factor, between the ends of the whole."""
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 48, 64)
    slope = (ramp[0, 0, 0, 40] - ramp[0, 0, 0, 20]).item()
    starts = []
    for zoom, left in ((0.0, 0.5), (0.5, 0.0), (1.0, 0.0), (1.0, 0.999)):
        found = augmented(ramp, still(zoom=zoom, zoom_left=left), AugmentConfig(zoom=2.0))
        assert found.shape == ramp.shape and found.abs().max() <= 1
        assert (found[0, 0, 9, 40] - found[0, 0, 9, 20]).item() == pytest.approx(slope / 2**zoom, rel=0.02)
        starts.append(found[0, 0, 9, 0].item())
    assert starts == pytest.approx([-1, -1, -1, 0], abs=0.03)


def test_zoom_of_a_batch_is_that_of_torchvision_image_by_image() -> None:
    images = torch.rand(12, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    numbers = uniform_at(0, "zoom", torch.arange(12), 0, len(Draws._fields)).T
    drawn, sides = Draws(*numbers), [24, 32]
    found = zoomed_and_toned(images, drawn, AugmentConfig(zoom=3.0))
    for image, result, zoom, *place in zip(images, found, drawn.zoom, drawn.zoom_top, drawn.zoom_left, strict=True):
        part = [round(side / 3.0 ** zoom.item()) for side in sides]
        corner = [int(share * (side - size + 1)) for share, side, size in zip(place, sides, part, strict=True)]
        expected = resized_crop(image, *corner, *part, sides, InterpolationMode.BICUBIC).clamp(-1, 1)
        assert torch.allclose(result, expected, rtol=0, atol=1e-5)


def test_brightness_adds_contrast_multiplies_and_both_are_clipped() -> None:
    image = torch.tensor([[[[-1.0, -0.5, 0.0, 0.5, 1.0]]]])

    def toned(brightness: float, contrast: float) -> list[float]:
        drawn = still(brightness=brightness, contrast=contrast)
        return augmented(image, drawn, AugmentConfig(brightness=0.4, contrast=0.5)).flatten().tolist()

    assert toned(0.5, 0.5) == pytest.approx([-1, -0.5, 0, 0.5, 1])
    assert toned(0.75, 0.5) == pytest.approx([-0.8, -0.3, 0.2, 0.7, 1])
    assert toned(0.5, 0.0) == pytest.approx([-0.5, -0.25, 0, 0.25, 0.5])
    assert toned(0.0, 1.0) == pytest.approx([-1, -1, -0.4, 0.35, 1])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_the_alpha_of_two_and_four_channels_is_not_toned(channels: int) -> None:
    image = torch.full((1, channels, 4, 4), 0.25)
    found = augmented(image, still(brightness=0.9), AugmentConfig(brightness=0.5))
    colors = channels - (channels in (2, 4))
    assert bool((found[:, :colors] > 0.5).all()) and torch.equal(found[:, colors:], image[:, colors:])


def test_the_images_that_are_mirrored_are_those_of_all_that_is_drawn():
    indices, epochs = torch.arange(200), torch.arange(200) // 50
    assert torch.equal(flips(3, epochs, indices), draws(3, epochs, indices).flip < 0.5)
