"""The table of scores, and which of them are chosen."""

import pytest

from ldm.anomaly.config import NEEDS, SCORES, DetectorConfig, chosen_scores
from ldm.errors import ConfigError


def test_every_score_is_found_and_needs_what_is_in_the_table() -> None:
    for facts in SCORES.values():
        assert callable(facts.load())
        assert set(facts.needs) <= set(NEEDS)


def test_all_and_default_take_what_the_model_can_give_in_the_order_of_the_table() -> None:
    missing = {name: NEEDS[name] for name in ("denoiser", "posterior", "hidden patches", "backbone")}
    everything = ["reconstruction", "reconstruction-l1", "reconstruction-ssim", "latent-density", "pixel-density"]
    assert chosen_scores(["all"], missing, "run") == everything
    assert chosen_scores(["default"], missing, "run") == ["reconstruction", "reconstruction-ssim", "pixel-density"]
    assert chosen_scores(["reconstruction-l1", "default"], missing, "run") == [*everything[:3], everything[4]]


def test_a_score_that_the_model_cannot_give_is_refused_with_those_that_it_can() -> None:
    missing = {name: words for name, words in NEEDS.items() if name != "latents"}
    with pytest.raises(
        ConfigError,
        match=r"no score denoising, .* diffusion model not tuned for few steps; it gives latent-density, pixel-density",
    ):
        chosen_scores(["denoising"], missing, "run")
    assert chosen_scores(["default"], NEEDS, "run") == ["pixel-density"]


def test_settings_out_of_bounds_are_refused() -> None:
    for wrong in ({"scores": ("residual",)}, {"alpha": 1.0}, {"sigmas": ()}, {"scores": ()}, {"sigmas": (0.0,)}):
        with pytest.raises(ValueError, match=r"must (be|hold)"):
            DetectorConfig(**wrong)  # type: ignore[arg-type]
