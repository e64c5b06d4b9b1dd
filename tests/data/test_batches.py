"""The k-th batch is a function of the seed and k: for any number of processes, and after any interruption."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from ldm.data.batches import BatchSampler, ImageBatches, shuffled
from ldm.data.config import AugmentConfig, FolderConfig
from ldm.data.datasets import Dataset, Subset
from ldm.data.decoding import UnreadableImage
from ldm.errors import ConfigError, DataError
from ldm.randomness import StepRandom, derived_seed, generator
from ldm.shapes import to_float, to_uint8
from ldm.training.config import RunConfig
from tests.support.batch_parts import tiled

SAMPLES = tuple(range(100, 137))
EVERYTHING = AugmentConfig(rotate90=True, flip_vertical=True, zoom=1.5, brightness=0.2, contrast=0.3)
DIVISIONS = list(product((1, 2, 4), (1, 2, 4)))  # processes, accumulation


def sampler(**more: Any) -> BatchSampler:
    return BatchSampler(**{"samples": SAMPLES, "seed": 0, "batch_size": 16, **more})


def pixels(index: int) -> np.ndarray:
    """An image whose three channels say which image, which row and which column."""
    rows, columns = np.mgrid[0:11, 0:9]
    return np.stack([np.full_like(rows, index), rows, columns]).astype(np.uint8)


def dataset(count: int = 40, **more: Any) -> Dataset:
    config = FolderConfig(**{"path": "drawn", "size": 8, "resize": False, **more})
    labels = np.arange(count, dtype=np.int64) % 3
    names = [str(index) for index in range(count)]
    return Dataset(config, names, labels, ["a", "b", "c"], names, "drawn", pixels)


def batches(seed: int = 0, batch_size: int = 8, samples: int = 40, **more: Any) -> ImageBatches:
    return ImageBatches(dataset(samples, **more), BatchSampler(tuple(range(samples)), seed, batch_size))


# ---- which images


@pytest.mark.parametrize("batch_size", [1, 16, 37])
def test_each_epoch_sees_each_sample_exactly_once(batch_size: int):
    specs = [sampler(batch_size=batch_size).spec(step) for step in range(math.ceil(3 * 37 / batch_size))]
    indices = [index for spec in specs for index in spec.indices]
    epochs = [epoch for spec in specs for epoch in spec.epochs]
    passes = [indices[37 * epoch : 37 * (epoch + 1)] for epoch in range(3)]
    assert all(sorted(one) == list(SAMPLES) for one in passes)
    assert epochs == [place // 37 for place in range(len(epochs))]
    assert passes[0] != passes[1] != passes[2] != list(SAMPLES)


def test_the_order_does_not_depend_on_the_batch_size():
    small = [index for step in range(12) for index in sampler(batch_size=4).spec(step).indices]
    large = [index for step in range(3) for index in sampler(batch_size=16).spec(step).indices]
    assert small == large


def test_another_seed_is_another_order():
    assert sampler(seed=1).spec(0).indices != sampler(seed=0).spec(0).indices


@pytest.mark.parametrize(("processes", "accumulation"), DIVISIONS)
def test_the_parts_of_a_step_tile_the_same_global_batch(processes: int, accumulation: int):
    for step in range(5):
        whole = sampler().spec(step)
        parts = tiled(sampler, step, processes=processes, accumulation=accumulation)
        for draw in ("normal", "uniform"):
            numbers = [getattr(part.rng, draw)("noise", 3, 2) for part in parts]
            assert torch.equal(torch.cat(numbers), getattr(whole.rng, draw)("noise", 3, 2))


def test_a_batch_does_not_depend_on_what_was_drawn_before():
    forward = [sampler().spec(step) for step in range(8)]
    backward = [sampler().spec(step) for step in reversed(range(8))][::-1]
    assert forward == backward


# ---- random numbers


def test_random_numbers_depend_on_seed_purpose_and_step_and_on_nothing_else():
    def numbers(seed: int, step: int, purpose: str) -> tuple[float, ...]:
        torch.manual_seed(len(purpose) + step)  # must not matter
        return tuple(StepRandom(seed, step, 4).normal(purpose).tolist())

    places = list(product((0, 1), (0, 1, 11), ("noise", "posterior")))
    found = {numbers(*place) for place in places}
    assert len(found) == len(places) and found == {numbers(*place) for place in places}


def test_seeds_of_different_positions_never_meet():
    texts = [("a", 1, 23), ("a", 12, 3), ("a", 123), ("a1", 23), ("a", 1, 2, 3)]
    seeds = [derived_seed(seed, *text) for seed, text in product((0, 1, 10), texts)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert torch.rand(1, generator=generator(0, "a", 1)) != torch.rand(1, generator=generator(0, "a", 2))


def test_normal_and_uniform_numbers_are_what_they_are_called():
    rng, count = StepRandom(0, 0, 50_000), 50_000
    normal, uniform = rng.normal("noise").double(), rng.uniform("dropout").double()
    assert abs(normal.mean()) < 4 / math.sqrt(count) and abs(normal.std() - 1) < 4 / math.sqrt(2 * count)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 4 / math.sqrt(12 * count)


# ---- how they are seen


def views(given: ImageBatches, epochs: int) -> dict[tuple[int, int], torch.Tensor]:
    """What each epoch shows of each image, as the levels of its pixels."""
    found = {}
    for step in range(epochs * len(given.dataset) // given.sampler.batch_size):
        spec = given.sampler.spec(step)
        levels = to_uint8(given.batch(step).images)
        found |= dict(zip(zip(spec.epochs, spec.indices, strict=True), levels, strict=True))
    return found


def test_what_an_epoch_shows_of_an_image_does_not_depend_on_its_neighbors():
    small, large = (views(batches(batch_size=size, flip=True, crop="random"), 2) for size in (4, 16))
    assert small.keys() == large.keys() and len(small) == 80
    assert all(torch.equal(small[place], large[place]) for place in small)


def test_another_epoch_or_seed_shows_an_image_in_another_way():
    first, again, other = (views(batches(seed=seed, flip=True, crop="random"), 2) for seed in (0, 0, 1))
    assert all(torch.equal(first[place], again[place]) for place in first)
    for changed in ({place: first[1, place[1]] for place in first if not place[0]}, other):
        assert not all(torch.equal(first[place], changed[place]) for place in changed)


def test_about_half_of_the_views_are_exact_mirror_images():
    given, mirrored = batches(flip=True), 0
    for (_, index), view in views(given, 25).items():
        plain = given.dataset.eval_view(index)
        is_mirrored = torch.equal(view, plain.flip(-1))
        assert is_mirrored != torch.equal(view, plain)
        mirrored += is_mirrored
    assert abs(mirrored - 500) < 4 * math.sqrt(250)


def test_without_augmentation_every_view_is_the_plain_one():
    given = batches()
    for (_, index), view in views(given, 3).items():
        assert torch.equal(view, given.dataset.eval_view(index))


def test_random_crops_are_squares_of_the_image_and_reach_every_place():
    places = []
    for (_, index), view in views(batches(crop="random"), 20).items():
        top, left = int(view[1, 0, 0]), int(view[2, 0, 0])
        assert torch.equal(view, torch.tensor(pixels(index))[:, top : top + 8, left : left + 8])
        places.append((top, left))
    counts = [places.count(place) for place in product(range(4), range(2))]  # of an image of 11 x 9
    assert sum(counts) == 800 and min(counts) > 100 - 4 * math.sqrt(100)


def test_the_plain_view_is_the_center_and_never_mirrored():
    for crop in ("center", "random"):
        view = dataset(flip=True, crop=crop).eval_view(5)
        top, left = int(view[1, 0, 0]), int(view[2, 0, 0])
        assert abs(top - 1.5) <= 0.5 and abs(left - 0.5) <= 0.5
        assert torch.equal(view, torch.tensor(pixels(5))[:, top : top + 8, left : left + 8])


def test_a_batch_is_in_range_and_has_its_labels():
    given = batches(flip=True)
    for step in range(10):
        spec, batch = given.sampler.spec(step), given.batch(step)
        assert batch.images.dtype == torch.float32 and batch.images.min() >= -1 and batch.images.max() <= 1
        assert batch.labels.dtype == torch.int64 and batch.labels.tolist() == [index % 3 for index in spec.indices]


STORED = [{}, {"crop": "random"}, {"crop": "random", "augment": EVERYTHING}, {"size": (6, 8), "augment": EVERYTHING}]


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("more", STORED)
def test_the_store_and_the_workers_give_the_same_bits(depth: str, more: dict[str, Any]):
    """Whether the images lie on the device decides where they are cropped, and nothing else."""
    given = dataset(depth=depth, flip=True, **more)
    scale = {"uint8": 1, "uint16": 4099, "float32": 1 / 64}[depth]
    given.source = lambda index: (scale * pixels(index).astype(np.float64)).astype(depth)
    sampler = BatchSampler(tuple(range(40)), 0, 8)
    loaded = ImageBatches(given, sampler)
    assert loaded.loads_data, "nothing is decoded beforehand"
    given.preload()
    stored = ImageBatches(given, sampler)
    assert not stored.loads_data and stored[0].pixels is None
    asked = ImageBatches(given, sampler, "cpu", RunConfig(store="host"))
    for step in range(10):
        expected = stored.batch(step).images
        assert torch.equal(loaded.batch(step).images, expected) and torch.equal(asked.batch(step).images, expected)


def test_images_of_several_sizes_are_cropped_by_the_workers():
    """They do not make one array, so each is cut before they become a batch."""
    given, drawn = dataset(crop="random"), pixels
    given.source = lambda index: drawn(index)[:, : 9 + index % 3]
    given.preload()
    batches = ImageBatches(given, BatchSampler(tuple(range(40)), 0, 8))
    assert batches.loads_data
    with pytest.raises(ConfigError, match=r"run\.store device needs all decoded images in memory, and of one size"):
        ImageBatches(given, BatchSampler(tuple(range(40)), 0, 8), "cpu", RunConfig(store="device"))
    for (_, index), view in views(batches, 2).items():
        top, left = int(view[1, 0, 0]), int(view[2, 0, 0])
        assert torch.equal(view, torch.tensor(pixels(index))[:, top : top + 8, left : left + 8])


def test_an_unreadable_image_is_replaced_in_the_store_too():
    given = dataset(max_unreadable=0.1)

    def read(index: int) -> np.ndarray:
        if index == 4:
            raise UnreadableImage("4.png", "torn")
        return pixels(index)

    given.source = read
    given.preload()
    stack = given.stacked()
    assert stack is not None and (stack[4, 0] == 7).all() and (stack[5, 0] == 5).all()


def test_what_a_worker_cannot_read_was_said_with_its_traceback():
    given = dataset(max_unreadable=0)

    def torn(index: int) -> np.ndarray:
        raise UnreadableImage(f"{index}.png", "torn")

    given.source = torn
    batches = ImageBatches(given, BatchSampler(tuple(range(40)), 0, 8))
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(2), num_workers=1)
    with pytest.raises(DataError, match=r"^1 of 40 images cannot be read.*\.png: torn$"):
        next(batches.on_device(iter(loader), "cpu", 0))


def test_chunks_hold_every_image_once_in_its_plain_view():
    data, asked = dataset(), [7, 3, 3, 39, 0, 12, 1]
    chunks = list(Subset(data, asked).chunks(3))
    assert [index for chunk in chunks for index in chunk.indices] == asked
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    expected = torch.stack([data.eval_view(index) for index in asked])
    assert torch.equal(torch.cat([chunk.images() for chunk in chunks]), to_float(expected))
    assert torch.equal(Subset(data, asked).images(), to_float(expected))


def test_a_late_step_is_drawn_as_fast_as_an_early_one() -> None:
    """Resuming at step 10,000 shuffles the one pass it stands in, not the hundreds before it."""
    shuffled.cache_clear()
    BatchSampler(tuple(range(100)), seed=0, batch_size=8).spec(10_000)
    assert shuffled.cache_info().misses <= 2
