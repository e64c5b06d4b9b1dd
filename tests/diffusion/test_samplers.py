"""Samplers: the exact path of Gaussian data, the order of each method, and diffusers as a second implementation."""

import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.noise import karras_sigmas
from ldm.diffusion.samplers import SAMPLERS, euler, euler_ancestral, starting_noise
from ldm.randomness import generator

MEAN, STD = 0.7, 0.6
ORDERS = {"euler": 1, "heun": 2, "dpm++2m": 2}


def gaussian(noisy: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean of data N(MEAN, STD²): the best denoiser there is."""
    variance = sigma[:, None] ** 2
    return (STD**2 * noisy + variance * MEAN) / (STD**2 + variance)


def path(start: Tensor, sigma_max: float, sigma: float) -> Tensor:
    """Where the exact path from `start` at sigma_max is at `sigma`."""
    return MEAN + (start - MEAN) * math.sqrt((STD**2 + sigma**2) / (STD**2 + sigma_max**2))


def error(name: str, intervals: int) -> float:
    """Distance from the exact path at sigma_min, after that many steps; the grid's final zero is left out."""
    sigmas = karras_sigmas(intervals + 1, 0.02, 20.0, 7.0)[:-1]
    start = 20.0 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    final = SAMPLERS[name](gaussian, start, sigmas)
    return (final - path(start, sigmas[0].item(), sigmas[-1].item())).abs().max().item()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("intervals", [32, 64, 128])
def test_halving_the_step_divides_the_error_by_two_to_the_order(name: str, intervals: int) -> None:
    assert error(name, intervals) / error(name, 2 * intervals) > {1: 1.8, 2: 3.5}[ORDERS[name]]


@pytest.mark.parametrize("name", SAMPLERS)
def test_many_steps_end_on_the_exact_path(name: str) -> None:
    assert error(name, 512) < {1: 2e-2, 2: 2e-4}[ORDERS[name]]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", range(1, 61))
def test_a_single_image_is_reached_in_any_number_of_steps(name: str, steps: int) -> None:
    image = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 4)
    start = 40 * torch.randn(2, 3, 4, dtype=torch.float64, generator=generator(0, "start"))
    reached = SAMPLERS[name](lambda noisy, sigma: image.expand_as(noisy), start, karras_sigmas(steps, 0.01, 40.0, 7.0))
    assert torch.allclose(reached, image.expand(2, 3, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_the_last_step_to_zero_returns_the_denoised_tensor(name: str, steps: int) -> None:
    answers: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        answers.append(gaussian(noisy, sigma))
        return answers[-1]

    final = SAMPLERS[name](denoise, torch.full((1, 1), 30.0), karras_sigmas(steps, 0.01, 40.0, 7.0))
    assert torch.equal(final, answers[-1])
    assert len(answers) == (2 * steps - 1 if name == "heun" else steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_scaling_data_noise_and_grid_together_only_scales_the_result(name: str) -> None:
    scale = 3.7
    start = 40 * torch.randn(5, 2, dtype=torch.float64, generator=generator(0, "start"))
    sigmas = karras_sigmas(7, 0.01, 40.0, 7.0).double()

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        return (noisy / (1 + sigma[:, None] ** 2)).sin()

    def scaled(noisy: Tensor, sigma: Tensor) -> Tensor:
        return scale * denoise(noisy / scale, sigma / scale)

    sampler = SAMPLERS[name]
    expected = scale * sampler(denoise, start, sigmas)
    assert torch.allclose(sampler(scaled, scale * start, scale * sigmas), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_progress_counts_the_steps_done(name: str) -> None:
    counted: list[int] = []
    SAMPLERS[name](gaussian, torch.ones(2, 1), karras_sigmas(5, 0.01, 40.0, 7.0), on_step=counted.append)
    assert counted == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sample_is_told_the_noise_level_of_the_grid(name: str) -> None:
    told: set[float] = set()

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (3,) and sigma.dtype == noisy.dtype
        told.update(sigma.tolist())
        return gaussian(noisy, sigma)

    sigmas = karras_sigmas(6, 0.01, 40.0, 7.0)
    SAMPLERS[name](denoise, torch.ones(3, 1), sigmas)
    assert told == set(sigmas[:-1].tolist())


class Network(torch.nn.Module):
    """A fixed smooth network, so that a scheduler of diffusers can apply its own preconditioning to it."""

    def forward(self, scaled: Tensor, noise_condition: Tensor, labels: Tensor | None = None) -> Tensor:
        return (1.7 * scaled + noise_condition[:, None]).sin()


def visited(name: str, sigmas: Tensor, start: Tensor) -> list[Tensor]:
    """Where our sampler calls the denoiser, and where it ends."""
    denoiser = Denoiser(Network())
    places: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        places.append(noisy)
        return denoiser(noisy, sigma)

    final = SAMPLERS[name](denoise, start, sigmas)
    return [*places, final]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.allclose(mine, other, rtol=2e-5, atol=2e-5), f"step {step}: {(mine - other).abs().max()}"


@pytest.mark.parametrize("steps", [1, 2, 5, 18])
@pytest.mark.parametrize(
    ("name", "scheduler_of"),
    [("euler", diffusers.EDMEulerScheduler), ("dpm++2m", diffusers.EDMDPMSolverMultistepScheduler)],
)
def test_grid_preconditioning_and_every_step_equal_those_of_diffusers(
    name: str, scheduler_of: Callable[..., Any], steps: int
) -> None:
    scheduler = scheduler_of(sigma_min=0.01, sigma_max=40.0, sigma_data=1.0)
    scheduler.set_timesteps(steps)
    sigmas = karras_sigmas(steps, 0.01, 40.0, 7.0)
    assert torch.allclose(sigmas, scheduler.sigmas, rtol=2e-5)
    start = 40 * torch.randn(4, 3, generator=generator(0, "start"))
    theirs, network = [start], Network()
    for time in scheduler.timesteps:
        output = network(scheduler.scale_model_input(theirs[-1], time), time.expand(4))
        theirs.append(scheduler.step(output, time, theirs[-1]).prev_sample)
    assert_same(visited(name, sigmas, start), theirs)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("steps", [2, 5, 18])
def test_every_step_of_heun_equals_that_of_diffusers(steps: int) -> None:
    scheduler: Any = diffusers.HeunDiscreteScheduler(use_karras_sigmas=True, prediction_type="sample")
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas[:-1]  # one per call of the denoiser; the last one is the final zero
    start = levels[0] * torch.randn(4, 3, generator=generator(0, "start"))
    theirs, denoiser = [start], Denoiser(Network())
    for time, level in zip(scheduler.timesteps, levels, strict=True):
        denoised = denoiser(theirs[-1], level.expand(4))
        theirs.append(scheduler.step(denoised, time, theirs[-1]).prev_sample)
    assert_same(visited("heun", scheduler.sigmas.unique().flip(0), start), theirs)


def test_an_ancestral_step_has_the_mean_and_variance_of_the_posterior_of_ddpm() -> None:
    sigma, lower, clean = 3.0, 2.0, 0.4
    unit = torch.randn(100_000, 1, dtype=torch.float64, generator=generator(0, "unit"))
    start = torch.full_like(unit, 5.0)
    final = euler_ancestral(
        lambda noisy, level: torch.full_like(noisy, clean),
        start,
        torch.tensor([sigma, lower], dtype=torch.float64),
        noise=lambda step: unit,
    )
    # Product of the two Gaussians N(5; x, σ² − σ'²) and N(x; clean, σ'²), normalized.
    variance = 1 / (1 / (sigma**2 - lower**2) + 1 / lower**2)
    mean = variance * (5.0 / (sigma**2 - lower**2) + clean / lower**2)
    assert abs(final.mean() - mean) < 4 * math.sqrt(variance / 100_000)
    assert abs(final.var() / variance - 1) < 4 * math.sqrt(2 / 100_000)


def test_ancestral_sampling_of_gaussian_data_has_its_moments() -> None:
    count, sigmas = 20_000, karras_sigmas(200, 0.01, 20.0, 7.0)

    def unit(step: int) -> Tensor:
        return torch.randn(count, 1, dtype=torch.float64, generator=generator(0, "step", step))

    final = euler_ancestral(gaussian, MEAN + math.sqrt(STD**2 + 20.0**2) * unit(-1), sigmas, noise=unit)
    assert abs(final.mean() - MEAN) < 4 * STD / math.sqrt(count)
    assert abs(final.std() / STD - 1) < 0.04


@pytest.mark.parametrize("steps", range(1, 61))
def test_ancestral_sampling_reaches_a_single_image_in_any_number_of_steps(steps: int) -> None:
    drawn: list[int] = []

    def unit(step: int) -> Tensor:
        drawn.append(step)
        return torch.randn(2, 3, dtype=torch.float64, generator=generator(0, "step", step))

    sigmas = karras_sigmas(steps, 0.01, 40.0, 7.0)
    final = euler_ancestral(lambda noisy, sigma: torch.full_like(noisy, 0.3), 40 * unit(0), sigmas, noise=unit)
    assert torch.allclose(final, torch.full_like(final, 0.3), rtol=0, atol=1e-12)
    assert drawn[1:] == list(range(steps))


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 5, 7), (1,)])
def test_an_image_starts_from_the_same_bits_in_any_batch(shape: tuple[int, ...]) -> None:
    together = starting_noise(shape, range(20), seed=3)
    assert together.shape == (20, *shape) and together.dtype == torch.float32
    for size in (1, 3, 7):
        batches = [starting_noise(shape, range(20)[first : first + size], seed=3) for first in range(0, 20, size)]
        assert torch.equal(torch.cat(batches), together)
    assert torch.equal(starting_noise(shape, [13, 2], seed=3), together[[13, 2]])


def test_images_and_seeds_start_from_different_unit_noise() -> None:
    noise = torch.cat([starting_noise((4, 8, 8), range(50), seed=seed) for seed in (0, 1)]).flatten(1)
    assert abs(noise.mean()) < 4 / math.sqrt(noise.numel())
    assert abs(noise.std() - 1) < 4 / math.sqrt(2 * noise.numel())
    correlations = torch.corrcoef(noise) - torch.eye(100)
    assert correlations.abs().max() < 6 / math.sqrt(256)


def test_the_float32_result_does_not_depend_on_the_batch() -> None:
    denoiser, sigmas = Denoiser(Network()), karras_sigmas(18, 0.01, 40.0, 7.0)
    together = euler(denoiser, 40 * starting_noise((6,), range(9), seed=0), sigmas)
    for index in range(9):
        alone = euler(denoiser, 40 * starting_noise((6,), [index], seed=0), sigmas)
        assert torch.allclose(alone[0], together[index], rtol=0, atol=1 / 255)


def test_sampling_is_a_function_of_the_denoiser_that_gradients_flow_through() -> None:
    start = torch.full((1, 1), 30.0, dtype=torch.float64, requires_grad=True)
    sigmas = karras_sigmas(512, 0.02, 40.0, 7.0)[:-1]
    (slope,) = torch.autograd.grad(SAMPLERS["heun"](gaussian, start, sigmas).sum(), start)
    assert math.isclose(slope.item(), math.sqrt((STD**2 + 0.02**2) / (STD**2 + 40.0**2)), rel_tol=1e-3)
