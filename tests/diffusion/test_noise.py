"""Noise levels: the grid descends for every number of steps."""

import math

import pytest
import torch

from ldm.diffusion.config import SamplingConfig
from ldm.diffusion.noise import consistency_sigmas, karras_sigmas


@pytest.mark.parametrize("steps", range(1, 61))
def test_the_grid_descends_from_the_largest_to_the_smallest_level_and_then_to_zero(steps: int) -> None:
    sigmas = karras_sigmas(steps, 0.01, 40.0, 7.0)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
    assert bool((sigmas.diff() < 0).all())
    assert sigmas[0] == 40.0 and sigmas[-1] == 0
    assert steps == 1 or math.isclose(sigmas[-2], 0.01, rel_tol=1e-6)


def test_the_grid_is_even_in_the_rho_th_root_of_sigma() -> None:
    roots = karras_sigmas(10, 0.02, 30.0, 5.0)[:-1].double() ** (1 / 5)
    assert torch.allclose(roots.diff(), roots.diff().mean().expand(9), rtol=1e-5)


def test_scaling_both_ends_scales_the_grid() -> None:
    assert torch.allclose(karras_sigmas(12, 0.06, 120.0, 7.0), 3 * karras_sigmas(12, 0.02, 40.0, 7.0), rtol=1e-6)


def test_a_grid_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step, not 0"):
        karras_sigmas(0, 0.01, 40.0, 7.0)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (SamplingConfig, {"sigma_min": 0.0}),
        (SamplingConfig, {"sigma_min": 50.0}),
        (SamplingConfig, {"rho": 0.0}),
        (SamplingConfig, {"sigma_max": float("nan")}),
    ],
)
def test_configs_without_a_meaning_are_refused_by_name(config: type, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        config(**values)


def test_the_second_step_of_a_consistency_model_threw_away_what_the_first_had_drawn() -> None:
    """It began at σ 3 to 5, depending on the noise of the autoencoder's latents."""
    for sigma_min, sigma_max in ((0.01, 40.0), (0.05, 80.0), (0.01, 0.5)):
        for steps in range(1, 40):
            sigmas = consistency_sigmas(steps, sigma_min, sigma_max, 7.0)
            assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and sigmas[0] == sigma_max
            assert (sigmas[1:] < sigmas[:-1]).all() and sigmas[1] <= 1.2
