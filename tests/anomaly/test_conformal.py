"""Split conformal thresholds and p-values, and the selection of Benjamini and Hochberg."""

import math

import pytest
import torch

from ldm.anomaly.conformal import benjamini_hochberg, conformal_p_values, conformal_threshold, images_needed
from ldm.errors import ConfigError, DataError


def test_threshold_is_the_order_statistic_of_the_definition() -> None:
    calibration = torch.randperm(99).double() + 1
    assert conformal_threshold(calibration, 0.05) == 95  # ⌈100 · .95⌉-th of 1..99
    assert conformal_threshold(calibration, 0.01) == 99
    assert conformal_threshold(torch.arange(1.0, 20.0), 0.1) == 18  # 20 · .9 = 18 exactly, not 18.000000000000004


def test_threshold_with_too_few_images_says_how_many_it_takes() -> None:
    assert images_needed(0.05) == 19 and images_needed(0.01) == 99
    conformal_threshold(torch.arange(19.0), 0.05)
    with pytest.raises(DataError, match=r"18 calibration images .* at least 19 to calibrate with"):
        conformal_threshold(torch.arange(18.0), 0.05)
    with pytest.raises(ConfigError, match="alpha 1 must be"):
        conformal_threshold(torch.arange(18.0), 1.0)


@pytest.mark.parametrize("count", [19, 50, 99, 137])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_p_value_is_at_most_alpha_exactly_where_the_score_is_above_the_threshold(count: int, alpha: float) -> None:
    calibration = torch.randn(count, generator=torch.Generator().manual_seed(count)).double().round(decimals=1)  # ties
    threshold = conformal_threshold(calibration, alpha)
    scores = torch.cat([calibration, calibration + 0.05, torch.tensor([threshold, threshold + 1e-9])])
    p_values = conformal_p_values(scores, calibration)
    as_high = torch.tensor([int((calibration >= score).sum()) for score in scores], dtype=torch.float64)
    assert torch.allclose(p_values, (1 + as_high) / (count + 1), rtol=1e-12)
    assert torch.equal(p_values <= alpha + 1e-12, scores > threshold)


def test_p_value_of_a_score_that_is_not_finite_is_the_smallest() -> None:
    scores = torch.tensor([math.nan, math.inf, -math.inf, 1e300], dtype=torch.float64)
    assert conformal_p_values(scores, torch.arange(9.0)).tolist() == [0.1] * 4
    with pytest.raises(DataError, match="1 of 2 calibration scores"):
        conformal_threshold(torch.tensor([1.0, math.nan]), 0.5)


def test_benjamini_hochberg_selects_all_up_to_the_last_that_passes() -> None:
    p_values = torch.tensor([0.01, 0.9, 0.045, 0.02, 0.3], dtype=torch.float64)
    assert benjamini_hochberg(p_values, 0.1).tolist() == [True, False, True, True, False]  # .045 ≤ 3/5 · .1
    assert not benjamini_hochberg(p_values, 0.01).any()
    assert benjamini_hochberg(
        torch.tensor([0.04, 0.05], dtype=torch.float64), 0.05
    ).all()  # .04 > .05 / 2, but .05 ≤ .05 passes both
    with pytest.raises(ConfigError, match="false-discovery rate"):
        benjamini_hochberg(p_values, 0.0)


def test_false_discovery_rate_of_normal_images_beside_anomalies_is_kept() -> None:
    rng, shares = torch.Generator().manual_seed(0), []
    for _ in range(300):
        calibration = torch.randn(200, generator=rng)
        scores = torch.cat([torch.randn(80, generator=rng), torch.randn(20, generator=rng) + 4])
        found = benjamini_hochberg(conformal_p_values(scores, calibration), 0.1)
        shares.append(int(found[:80].sum()) / max(int(found.sum()), 1))
    rates = torch.tensor(shares)
    assert rates.mean() <= 0.1 * 0.8 + 3 * rates.std() / 300**0.5
    assert rates.mean() > 0.04  # and it is not kept by selecting nothing
