"""Editing in latents by closed forms: part of a grid, known parts, inversion and back, arcs between noises."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.editing import (
    between_conditions,
    inverted,
    keeping_known,
    levels_of_strength,
    resample,
    spherical,
)
from ldm.diffusion.noise import karras_sigmas
from ldm.diffusion.samplers.one_step import heun
from ldm.errors import RequestError

GRID = karras_sigmas(10, 0.01, 40.0, 7.0)


def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
    """Of numbers from Gaussians of standard deviation 0.5 around -1 and 1: a curved path, which tells solvers apart."""
    square = sigma.view(-1, 1, 1, 1).to(noisy) ** 2
    whole = 0.25 + square
    return (0.25 * noisy + square * (noisy / whole).tanh()) / whole


def noise(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_strength_of_k_in_n_steps_leaves_the_last_k_as_diffusers_has_it() -> None:
    for left in range(1, 11):
        assert levels_of_strength(GRID, left / 10).equal(GRID[10 - left :])


def test_the_first_level_falls_to_0_with_the_strength_without_a_jump() -> None:
    first = [levels_of_strength(GRID, strength / 1000)[0].item() for strength in range(1000, 0, -1)]
    assert first[0] == GRID[0] and all(0 < lower < higher for higher, lower in pairwise(first))
    assert max(higher / lower for higher, lower in pairwise(first[:900])) < 1.05
    assert levels_of_strength(GRID, 1e-6)[0] < 1e-6 and len(levels_of_strength(GRID, 1e-6)) == 2


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, math.nan, "half"])
def test_a_strength_outside_0_to_1_is_refused(strength: float) -> None:
    with pytest.raises(RequestError, match=r"strength .* must be above 0 and at most 1"):
        levels_of_strength(GRID, strength)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++2m", "dpm++3m", "unipc", "ab3"])
def test_what_is_known_keeps_its_noise_on_the_way_and_is_itself_in_the_end(sampler: str) -> None:
    known, unit = noise(seed=1), noise(seed=2)
    hidden = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    hidden[..., :2] = True
    seen: list[Tensor] = []
    found = SAMPLERS[sampler].load()(
        keeping_known(denoise, known, hidden),
        known + GRID[0] * unit,
        GRID,
        on_step=lambda step, noisy: seen.append(noisy),
    )
    kept = ~hidden.expand_as(known)
    for noisy, sigma in zip(seen, GRID[1:].double(), strict=True):
        torch.testing.assert_close(noisy[kept], (known + sigma * unit)[kept], rtol=0, atol=1e-6 * (1 + float(sigma)))
    torch.testing.assert_close(found[kept], known[kept], rtol=0, atol=1e-9)
    assert (found - known)[hidden.expand_as(known)].abs().min() > 1e-3


def test_resampling_goes_down_and_up_with_noise_of_its_own_for_every_step() -> None:
    went: list[list[float]] = []
    drawn: list[int] = []

    def of_step(step: int) -> Tensor:
        drawn.append(step)
        return noise(seed=step)

    def along(noisy: Tensor, sigmas: Tensor, noise_of: object) -> Tensor:
        went.append(sigmas.tolist())
        for step in range(len(sigmas) - 1):
            noise_of(step)  # type: ignore[operator]
        return heun(denoise, noisy, sigmas)

    resample(along, noise() * GRID[0], GRID, times=3, noise=of_step)
    assert [levels for number, levels in enumerate(went) if number % 3 == 0] == [
        GRID[first : first + 4].tolist() for first in (0, 3, 6, 9)
    ]
    assert len(set(drawn)) == len(drawn) == 3 * 10 + 2 * 4
    went.clear()
    assert resample(along, noise() * GRID[0], GRID, times=1, noise=of_step).equal(
        heun(denoise, noise() * GRID[0], GRID)
    )


def test_inversion_and_back_misses_by_the_order_of_the_solver() -> None:
    """Half the steps, about four times the error of Heun's method."""
    latents = noise()

    def missed(steps: int) -> float:
        grid = karras_sigmas(steps, 0.02, 20.0, 5.0).double()
        start = inverted(denoise, latents, grid)
        return (heun(denoise, start, grid) - latents).abs().mean().item()

    errors = [missed(steps) for steps in (20, 40, 80)]
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3 and errors[2] < 1e-2


def test_an_arc_between_noises_has_exact_ends_and_their_length_all_along() -> None:
    one, other = noise(seed=1), noise(seed=2)
    assert spherical(one, other, 0.0).equal(one) and spherical(one, other, 1.0).equal(other)
    middle = spherical(one, other, torch.tensor([0.5, 0.5, 0.0]))
    assert middle[2].equal(one[2])
    lengths = [each.flatten(1).norm(dim=1)[:2] for each in (one, middle, other)]
    assert ((lengths[1] / (lengths[0] + lengths[2]) * 2 - 1).abs() < 0.1).all()
    assert spherical(one, one, 0.3).allclose(one) and spherical(one, -one, 0.5).isfinite().all()


def test_between_two_conditions_each_end_is_one_of_them() -> None:
    answers = noise(seed=1), noise(seed=2)
    between = between_conditions(
        lambda noisy, sigma: answers[0], lambda noisy, sigma: answers[1], torch.tensor([0.0, 0.5, 1.0])
    )
    found = between(noise(), torch.ones(3))
    assert found[0].equal(answers[0][0]) and found[2].equal(answers[1][2])
    torch.testing.assert_close(found[1], (answers[0][1] + answers[1][1]) / 2)
