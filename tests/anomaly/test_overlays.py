"""Overlays: what is colored in which color, and which images a sheet shows."""

import math

import pytest
import torch

from ldm.anomaly.overlays import AT_THRESHOLD, MOST, HeatScale, ends, overlay, rgb

SCALE = HeatScale(start=1.0, threshold=3.0)


def colored(*values: float) -> list[tuple[int, int, int]]:
    """The colors that places of a gray image get."""
    shown = overlay(torch.full((1, 1, len(values)), 100, dtype=torch.uint8), torch.tensor([[values]]), SCALE)
    assert shown.dtype == torch.uint8 and shown.shape == (3, 1, len(values))
    return [tuple(place) for place in shown[:, 0].T.tolist()]


def test_what_is_no_higher_than_in_most_normal_images_stays_as_it_is() -> None:
    assert colored(-9, 0, 1, -math.inf) == [(100, 100, 100)] * 4


def test_yellow_up_to_the_threshold_and_red_above_it() -> None:
    for red, green, blue in colored(1.5, 2, 3):
        assert red > green > 100 > blue
    for red, green, blue in colored(3.01, 9, math.inf, math.nan):
        assert red > 100 > blue > green


def test_opacity_grows_with_the_value_and_never_hides_the_image() -> None:
    opacity = SCALE.opacity(torch.tensor([1.0, 2, 3, 3.001, 5, 1e3, math.inf]))
    assert opacity[0] == 0 and opacity[2] == AT_THRESHOLD and opacity[3] == pytest.approx(AT_THRESHOLD, abs=1e-3)
    assert (opacity.diff() > 0).all() and opacity[-1] == MOST < 1
    assert SCALE.opacity(torch.tensor([math.nan])) == MOST


def test_the_scale_colors_little_in_normal_images() -> None:
    peaks = torch.arange(1.0, 101.0)
    opacity = HeatScale.of_peaks(peaks, 96.0).opacity(peaks)
    assert (opacity == 0).sum() == 10 and (opacity > AT_THRESHOLD).sum() == 4


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
