"""Memorization: copies of training images are found, whatever hides them, and chance is not called a copy."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.evaluation.memorization import PAIRS, Memorization, Rows, find_neighbors, fisher_exact, pixel_rows
from ldm.evaluation.neighbors import Neighbors, distinct_groups, nearest_rows
from ldm.shapes import rounded, to_uint8
from ldm.training.processes import Processes


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, seed: int = 0) -> Tensor:
    """Smooth random images of 8 x 8 pixels."""
    return rounded((drawn(count, 3, 4, 4, seed=seed) / 2).repeat_interleave(2, 2).repeat_interleave(2, 3).clamp(-1, 1))


@dataclass(frozen=True)
class Found:
    """What was found, and its report as JSON has it: no number in it is infinite or NaN."""

    memorization: Memorization
    report: dict[str, Any]


def found(
    samples: Tensor, training: Tensor, held_out: Tensor, groups: Sequence[str] | None = None, *, mirrored: bool = False
) -> Found:
    """In the spaces of pixels and of mean colors; the training images are named by their number."""
    names = [f"{number:03d}.png" for number in range(len(training))]

    def rows(images: Tensor) -> Rows:
        return {"pixels": pixel_rows(images), "colors": images.mean((2, 3))}

    def of_training(part: slice) -> Iterator[Rows]:
        yield rows(training[part])
        if mirrored:
            yield rows(training[part].flip(-1))

    numbers = distinct_groups(to_uint8(training), groups or names, mirrored=mirrored)
    memorization = find_neighbors(
        rows(samples), rows(held_out), of_training, names, numbers, Processes("cpu"), mirrored=mirrored
    )
    return Found(memorization, json.loads(json.dumps(memorization.report(), allow_nan=False)))


# Nearest neighbors.


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_nearest_and_the_nearest_of_another_group_are_those_of_brute_force(parts: int) -> None:
    """Whatever the parts in which the rows come; groups are neither sorted nor in one part."""
    queries, rows = drawn(40, 6), drawn(50, 6, seed=1)
    groups = torch.arange(50) * 7 % 50 % 12
    distances = (queries.double()[:, None] - rows.double()).norm(dim=2)
    nearest: Neighbors | None = None
    for chunk in torch.arange(50).chunk(parts):
        each = nearest_rows(queries, rows[chunk], groups[chunk], first=int(chunk[0]))
        nearest = each if nearest is None else nearest.joined(each)
    assert nearest is not None and nearest.places.equal(distances.argmin(1))
    for query in range(40):
        others = distances[query][groups != groups[nearest.places[query]]]
        assert nearest.distances[query].item() == pytest.approx(distances[query].min().item(), rel=1e-12)
        assert nearest.seconds[query].item() == pytest.approx(others.min().item(), rel=1e-12)
    assert nearest.ratios.equal(nearest.distances / nearest.seconds)


def test_rounding_kept_equal_rows_apart() -> None:
    """‖a‖² + ‖b‖² - 2 a·b of equal rows far from 0 is not 0."""
    rows = 1000 + drawn(8, 300)
    nearest = nearest_rows(rows, rows.clone(), torch.arange(8))
    assert nearest.places.tolist() == list(range(8)) and not nearest.distances.any() and (nearest.seconds > 1).all()


def test_a_single_group_has_no_second_and_two_equal_rows_cannot_be_told_apart() -> None:
    alone = nearest_rows(drawn(3, 4), drawn(5, 4, seed=1), torch.zeros(5, dtype=torch.int64))
    assert alone.seconds.isinf().all() and alone.ratios.isnan().all()
    twins = nearest_rows(torch.zeros(1, 4), torch.zeros(2, 4), torch.arange(2))
    assert twins.ratios.tolist() == [1.0]


def test_the_same_image_under_two_groups_hid_its_copies() -> None:
    """Group b has an image of group a, and c the mirror image of one of d; e is alone."""
    images = pictures(7)
    images[2], images[4] = images[0], images[5].flip(-1)
    groups = ["a", "a", "b", "c", "c", "d", "e"]
    assert distinct_groups(to_uint8(images), groups, mirrored=False).tolist() == [0, 0, 0, 2, 2, 3, 4]
    assert distinct_groups(to_uint8(images), groups, mirrored=True).tolist() == [0, 0, 0, 2, 2, 2, 4]
    report = found(images[:1], images, pictures(5, seed=1), groups).report
    assert report["spaces"]["pixels"]["copies"] == 1


# Copies.


def test_planted_copies_are_counted_and_named() -> None:
    """Of 40 samples 10 are training images with a little noise, as two other groups are variants of one picture."""
    images, others = pictures(60), pictures(40, seed=1)
    images[1] = (images[0] + 0.02 * drawn(3, 8, 8, seed=2)).clamp(-1, 1)
    groups = ["alike", "alike", *map(str, range(2, 60))]
    copies = list(range(0, 20, 2))
    samples = others.clone()
    samples[copies] = (images[copies] + 0.05 * drawn(10, 3, 8, 8, seed=3)).clamp(-1, 1)
    result = found(samples, images, pictures(50, seed=4), groups)
    pixels = result.report["spaces"]["pixels"]
    assert result.report["flagged"] is True
    assert (pixels["copies"], pixels["copied_images"], pixels["held_out"]["copies"]) == (0.25, 10, 0)
    assert {pair["sample"] for pair in pixels["pairs"][:10]} == set(copies) and len(pixels["pairs"]) == PAIRS
    for pair in pixels["pairs"][:10]:
        assert pair["ratio"] < 1 / 3 and not pair["mirrored"] and pair["distance"] == pytest.approx(0.05, rel=0.2)
        assert pair["training_image"] in (f"{pair['sample']:03d}.png", "001.png")
    ratios = [pair["ratio"] for pair in pixels["pairs"]]
    assert ratios == sorted(ratios) and ratios[10] > 1 / 3
    assert pixels["near"] >= 0.25 and pixels["held_out"]["near"] == pytest.approx(0.05, abs=0.02)


def test_a_variant_of_the_copied_picture_hid_that_it_is_a_copy() -> None:
    """As the second nearest image of any group, it is as near as the first."""
    images = pictures(20)
    images[1:5] = (images[:1] + 0.05 * drawn(4, 3, 8, 8, seed=2)).clamp(-1, 1)
    sample = (images[:1] + 0.05 * drawn(1, 3, 8, 8, seed=3)).clamp(-1, 1)
    for groups, copies in ((["variants"] * 5 + list("abcdefghijklmno"), 1), (None, 0)):
        report = found(sample, images, pictures(9, seed=1), groups).report
        assert report["spaces"]["pixels"]["copies"] == copies


def test_a_mirrored_copy_is_a_copy_where_mirror_images_were_trained_on() -> None:
    images = pictures(20)
    for mirrored in (False, True):
        report = found(images[3:6].flip(-1), images, pictures(9, seed=1), mirrored=mirrored).report
        pixels = report["spaces"]["pixels"]
        assert pixels["copies"] == mirrored
        assert [pair["mirrored"] for pair in pixels["pairs"]] == [mirrored] * 3
        if mirrored:
            assert {pair["training_image"] for pair in pixels["pairs"]} == {"003.png", "004.png", "005.png"}


def test_samples_that_are_like_held_out_images_were_flagged() -> None:
    """Of 300 sets none is expected, though a tenth of all images has a near twin in training."""
    flagged = 0
    for trial in range(300):
        rows = drawn(140, 4, seed=trial)
        rows[40:50], rows[90:100] = rows[:10] + 0.01, rows[10:20] + 0.01
        training, held_out, samples = rows[:40], rows[40:90], rows[90:]
        neighbors = [{"rows": nearest_rows(each, training, torch.arange(40))} for each in (samples, held_out)]
        memorization = Memorization([""] * 40, False, neighbors[0], neighbors[1], {"rows": 4})
        space = memorization.report()["spaces"]["rows"]
        assert space["copies"] >= 0.15 and space["held_out"]["copies"] >= 0.15
        flagged += bool(memorization.report()["flagged"])
    assert flagged <= 1


def test_the_test_of_two_shares_is_fishers() -> None:
    stats = pytest.importorskip("scipy.stats")
    for found_, of, others, of_others in (
        (3, 10, 1, 50),
        (0, 10, 0, 50),
        (10, 10, 50, 50),
        (7, 1000, 5, 378),
        (9, 9, 0, 1),
    ):
        table = [[found_, of - found_], [others, of_others - others]]
        expected = stats.fisher_exact(table, alternative="greater").pvalue
        assert fisher_exact(found_, of, others, of_others) == pytest.approx(expected, rel=1e-9)


# What is not defined.


def test_without_held_out_images_there_is_nothing_to_compare_with() -> None:
    images = pictures(20)
    report = found(images[:4], images, images[:0]).report
    pixels = report["spaces"]["pixels"]
    assert report["flagged"] is None and pixels["p_value"] is None and pixels["held_out"] is None
    assert pixels["copies"] == 1 and pixels["near"] is None and pixels["near_distance"] is None


@pytest.mark.parametrize("count", [1, 6])
def test_a_single_group_gave_numbers_that_are_none(count: int) -> None:
    images = pictures(count)
    report = found(images[:1], images, pictures(9, seed=1), ["one"] * count).report
    pixels = report["spaces"]["pixels"]
    assert report["flagged"] is None and pixels["copies"] is None and pixels["held_out"]["copies"] is None
    assert pixels["pairs"][0]["distance"] == 0 and pixels["pairs"][0]["ratio"] is None


def test_blank_images_gave_numbers_that_are_none() -> None:
    """Blank training images of different groups are one picture; with others beside it, a blank sample is its copy."""
    blank, others = torch.ones(6, 3, 8, 8), pictures(6)
    for held_out in (blank[:0], blank[:2], others[:3]):
        report = found(blank, blank, held_out).report
        assert report["flagged"] is None and report["spaces"]["pixels"]["copies"] is None
    report = found(blank, torch.cat([blank, others]), blank).report
    assert report["spaces"]["pixels"]["copies"] == report["spaces"]["pixels"]["held_out"]["copies"] == 1
    assert report["flagged"] is False


def test_images_of_many_pixels_are_compared_by_means_over_squares() -> None:
    large = drawn(2, 3, 130, 150).clamp(-1, 1)
    rows = pixel_rows(large)
    assert rows.shape == (2, 3 * 44 * 50) and rows[0, 0].item() == pytest.approx(large[0, 0, :3, :3].mean().item())
    assert pixel_rows(large[..., :64, :64]).equal(large[..., :64, :64].flatten(1))


def test_the_pairs_are_each_sample_above_its_nearest_training_image() -> None:
    images = pictures(20)
    samples = torch.cat([images[[7, 4]], images[[2]].flip(-1)])
    result = found(samples, images, pictures(9, seed=1), mirrored=True).memorization
    pairs = result.pair_images("pixels", to_uint8(samples), lambda place: to_uint8(images[place]))
    chosen = to_uint8(samples)[result.worst("pixels")]
    assert pairs.shape == (2 * PAIRS, 3, 8, 8)
    assert pairs[:3].equal(chosen) and pairs[PAIRS : PAIRS + 3].equal(chosen) and (pairs[3:PAIRS] == 255).all()
