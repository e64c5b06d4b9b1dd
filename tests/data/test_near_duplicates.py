"""Near-duplicates of held-out images in training are named, and images that only look a little alike are not."""

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from ldm.data.config import FolderConfig
from ldm.data.datasets import Dataset, Subset
from ldm.data.near_duplicates import describe_near_duplicates, find_near_duplicates, hashes, thumbnails

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_photos = pytest.mark.skipif(not (DATA / "photos").is_dir(), reason=f"the photographs are not at {DATA}")
needs_emoji = pytest.mark.skipif(not (DATA / "noto-emoji-64").is_dir(), reason=f"the emoji are not at {DATA}")


def dataset(pictures: Sequence[np.ndarray], **config: Any) -> Dataset:
    """Pictures [channels, height, width] in memory."""
    names = [f"{index}.png" for index in range(len(pictures))]
    channels, *sides = pictures[0].shape
    given = FolderConfig(path="drawn", **{"size": tuple(sides), "channels": channels, **config})
    made = Dataset(given, names, np.zeros(len(names), np.int64), [], names.copy(), "drawn", lambda i: pictures[i])
    made.preload()
    return made


def halves(training: Sequence[np.ndarray], held_out: Sequence[np.ndarray], **config: Any) -> tuple[Subset, Subset]:
    whole = dataset([*training, *held_out], **config)
    return Subset(whole, list(range(len(training)))), Subset(whole, list(range(len(training), len(whole))))


def smooth(count: int, channels: int = 3, side: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Pictures of random low frequencies."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, channels, 6, 6)).astype(np.uint8)
    sizes = (side, side)
    return [
        np.stack([np.asarray(Image.fromarray(part).resize(sizes, Image.Resampling.BICUBIC)) for part in one])
        for one in small
    ]


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def encoded(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def photos() -> list[Image.Image]:
    """Ninety square parts of the photographs, none of which overlap."""
    parts = []
    for file in sorted((DATA / "photos").glob("*.jpg")):
        with Image.open(file) as image:
            image.draft("RGB", (512, 512))
            side = min(image.size) // 2
            boxes = [(0, 0), (image.width - side, 0), (0, image.height - side)]
            parts += [image.crop((x, y, x + side, y + side)).convert("RGB").resize((64, 64)) for x, y in boxes]
    return parts[:90]


VERSIONS = {
    "encoded again": lambda image: encoded(image, 60),
    "resized": lambda image: image.resize((48, 48)).resize((64, 64)),
    "slightly brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "with less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
}


@needs_photos
def test_other_versions_of_a_photograph_are_found_and_other_photographs_are_not() -> None:
    images = photos()
    for name, version in VERSIONS.items():
        found, flat = find_near_duplicates(*halves(list(map(array, images)), [array(version(one)) for one in images]))
        assert all(match == index - len(images) for index, match in found.items()), name
        assert len(found) >= 0.93 * len(images) and flat == 0, name
    found, flat = find_near_duplicates(*halves(list(map(array, images[:45])), list(map(array, images[45:]))))
    assert not found and flat == 0


@needs_emoji
def test_the_emoji_have_near_duplicates_across_a_split_without_groups() -> None:
    lines = (DATA / "noto-emoji-64" / "metadata.jsonl").read_text().splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: row["file_name"])
    rows = [row for row in rows if row["label"] == "people-body"][:600]
    pictures = []
    for row in rows:
        with Image.open(DATA / "noto-emoji-64" / row["file_name"]) as image:
            white = Image.new("RGBA", image.size, "white")
            pictures.append(array(Image.alpha_composite(white, image.convert("RGBA"))))
    whole = dataset(pictures, held_out=0.2)
    loose = find_near_duplicates(*whole.split())[0]
    groups = [row["group"] for row in rows]
    assert len(loose) > 60 and np.mean([groups[mine] == groups[other] for mine, other in loose.items()]) > 0.5
    grouped = dataset(pictures, held_out=0.2)
    grouped.groups = groups
    assert len(find_near_duplicates(*grouped.split())[0]) < len(loose) / 2


def test_hundreds_of_images_take_a_moment() -> None:
    training, held_out = halves(smooth(400), smooth(100, seed=1))
    began = time.process_time()
    find_near_duplicates(training, held_out)
    assert time.process_time() - began < 0.003 * 500


def test_a_line_says_how_many_and_what_to_do() -> None:
    pictures = smooth(30)
    copies = [(pictures[3] * 0.9).astype(np.uint8), pictures[7]]
    assert describe_near_duplicates(*halves(pictures, [*smooth(4, seed=1), *copies])) == (
        "2 of 6 held-out images have one in training, e.g. 34.png ~ 3.png: name a group in metadata.jsonl to keep them"
        " together"
    )
    assert describe_near_duplicates(*halves(pictures, smooth(4, seed=1))) == (
        "none of 4 held-out images has one in training"
    )
    assert describe_near_duplicates(*halves(pictures, [])) == "no images are held out"


def test_flat_images_are_not_called_duplicates_but_counted() -> None:
    flat = [np.full((3, 40, 40), level, dtype=np.uint8) for level in (0, 90, 90, 200)]
    noise = np.random.default_rng(0).integers(0, 2, (3, 40, 40)).astype(np.uint8)
    line = describe_near_duplicates(*halves([*smooth(9), flat[1], flat[1] + noise], [*flat, flat[1] + noise]))
    assert line == "none of 5 held-out images has one in training; 5 flat ones were not compared"


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_images_of_any_channels_are_compared(channels: int) -> None:
    pictures = smooth(12, channels)
    assert find_near_duplicates(*halves(pictures, pictures[4:6])) == ({12: 4, 13: 5}, 0)


def test_images_that_are_not_in_memory_are_not_decoded_for_it() -> None:
    training, held_out = halves(smooth(4), smooth(1), cache_gb=0)
    training.dataset.source = lambda index: pytest.fail(f"image {index} was decoded")
    assert describe_near_duplicates(training, held_out) == "not looked for, as the images do not fit into data.cache_gb"


def test_the_candidates_of_the_bands_are_all_pairs_that_differ_by_few_bits() -> None:
    """Against every pair compared: a near-duplicate is found exactly where there is one."""
    rng = np.random.default_rng(0)
    known = smooth(300, 1, 32)
    shown = []
    for one in known[:60]:
        noise = rng.normal(0, rng.uniform(0, 30), one.shape)
        shown.append((one + noise).clip(0, 255).astype(np.uint8))
    training, held_out = halves(known, shown)
    mine, others = (thumbnails(part).reshape(len(part), -1).astype(np.float64) for part in (held_out, training))
    bits = np.bitwise_count(hashes(thumbnails(held_out))[:, None] ^ hashes(thumbnails(training)))
    expected = (np.corrcoef(mine, others)[: len(mine), len(mine) :] >= 0.97) & (bits <= 7)
    found = find_near_duplicates(training, held_out)[0]
    assert sorted(found) == (np.flatnonzero(expected.any(axis=1)) + 300).tolist() and 10 < len(found) < 60
    assert all(expected[index - 300, match] for index, match in found.items())
