"""Overlays: what is colored, what is outlined, and which images a sheet shows."""

import math

import pytest
import torch

from ldm.anomaly.overlays import OUTLINE, HeatScale, ends, outline, overlay, rgb

SCALE = HeatScale(start=1.0, threshold=3.0)


def test_what_no_normal_image_exceeds_stays_as_it_is_and_what_exceeds_it_becomes_redder_with_its_value() -> None:
    image = torch.full((1, 1, 6), 100, dtype=torch.uint8)
    shown = overlay(image, torch.tensor([[[-9.0, 1.0, 1.5, 2.0, 2.5, 3.0]]]), SCALE)
    assert shown.dtype == torch.uint8 and shown.shape == (3, 1, 6)
    assert (shown[:, 0, :2] == 100).all()
    redness = (shown[0].int() - shown[2].int())[0].tolist()
    assert redness == sorted(redness) and redness[1] == 0 < redness[2] < redness[5]


def test_levels_grow_from_none_at_the_start_over_a_third_at_the_threshold_to_all() -> None:
    level = SCALE.level(torch.tensor([-math.inf, 0, 1, 2, 3, 5, 1e6, math.inf, math.nan]))
    assert level[:3].tolist() == [0, 0, 0] and level[4] == pytest.approx(1 / 3) and level[5] == 0.5
    assert level[6] < 1 and level[7:].tolist() == [1, 1] and (level.diff() >= 0).all()


def test_the_scale_colors_nothing_in_half_of_the_normal_images() -> None:
    peaks = torch.tensor([3.0, 1.0, 2.0, 9.0, 4.0])
    scale = HeatScale.of_peaks(peaks, 9.0)
    assert (scale.level(peaks) > 0).sum() == 2


def test_only_the_border_of_what_is_above_the_threshold_is_outlined() -> None:
    anomaly_map = torch.zeros(1, 7, 7)
    anomaly_map[0, 1:6, 1:6] = 4
    shown = overlay(torch.zeros(3, 7, 7, dtype=torch.uint8), anomaly_map, SCALE)
    is_outline = (shown == torch.tensor(OUTLINE)[:, None, None]).all(0)
    assert is_outline.sum() == 16 and not is_outline[2:5, 2:5].any() and is_outline[1, 1:6].all()
    assert not outline(torch.ones(1, 3, 3, dtype=torch.bool)).any()


@pytest.mark.parametrize(
    ("channels", "kept"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (9, [0, 1, 2])]
)
def test_images_of_any_number_of_channels_are_shown_in_three(channels: int, kept: list[int]) -> None:
    image = torch.arange(channels, dtype=torch.uint8)[:, None, None].expand(channels, 2, 2)
    assert rgb(image)[:, 0, 0].tolist() == kept


def test_a_sheet_shows_no_image_twice_and_the_extremes_first() -> None:
    assert ends([3, 1, 2, math.inf, 0], 2) == ([3, 0], [4, 1])
    assert ends([3, 1, 2], 12) == ([0, 2], [1])
    assert ends([1], 12) == ([0], [])
