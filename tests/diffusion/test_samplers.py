"""Samplers: bit equality, scaling, and diffusers as a second implementation.

The order of each, the moments of the stochastic one and the number of calls are measured by `ldm verify samplers`.
"""

import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.noise import karras_sigmas
from ldm.diffusion.samplers import Denoise, euler_ancestral, starting_noise, step_noise
from ldm.randomness import generator
from ldm.verify import samplers
from ldm.verify.samplers import STD


def sampled(name: str, denoise: Denoise, start: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    """The result of a sampler of the table, with noise of a fixed seed if it is stochastic."""
    facts = SAMPLERS[name]

    def noise(step: int) -> Tensor:
        return torch.randn(start.shape, dtype=start.dtype, generator=generator(0, "step", step))

    if facts.stochastic:
        options = {"noise": noise, **options}
    final: Tensor = facts.load()(denoise, start, sigmas, **options)
    return final


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_the_last_step_to_zero_returns_the_denoised_tensor(name: str, steps: int) -> None:
    answers: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        answers.append(samplers.denoise(noisy, sigma))
        return answers[-1]

    final = sampled(name, denoise, torch.full((1, 1), 30.0), karras_sigmas(steps, 0.01, 40.0, 7.0))
    assert torch.equal(final, answers[-1])
    assert len(answers) == SAMPLERS[name].calls * (steps - 1) + 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_scaling_data_noise_and_grid_together_only_scales_the_result(name: str) -> None:
    scale = 3.7
    start = 40 * torch.randn(5, 2, dtype=torch.float64, generator=generator(0, "start"))
    sigmas = karras_sigmas(7, 0.01, 40.0, 7.0).double()

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        return (noisy / (1 + sigma[:, None] ** 2)).sin()

    def scaled(noisy: Tensor, sigma: Tensor) -> Tensor:
        return scale * denoise(noisy / scale, sigma / scale)

    expected = scale * sampled(name, denoise, start, sigmas)
    assert torch.allclose(sampled(name, scaled, scale * start, scale * sigmas), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_progress_counts_the_steps_done(name: str) -> None:
    counted: list[int] = []

    def on_step(step: int, noisy: Tensor) -> None:
        counted.append(step)

    sampled(name, samplers.denoise, torch.ones(2, 1), karras_sigmas(5, 0.01, 40.0, 7.0), on_step=on_step)
    assert counted == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", SAMPLERS)
def test_latents_that_are_replaced_after_a_step_are_those_of_the_next(name: str) -> None:
    """Zeros after the third of five steps: the fourth begins at them, as the denoiser sees."""
    seen: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        seen.append(noisy)
        return noisy / 2

    def on_step(step: int, noisy: Tensor) -> Tensor | None:
        return torch.zeros_like(noisy) if step == 3 else None

    calls, sigmas = SAMPLERS[name].calls, karras_sigmas(5, 0.01, 40.0, 7.0)
    sampled(name, denoise, torch.ones(2, 1), sigmas, on_step=on_step)
    assert seen[3 * calls].eq(0).all() and not seen[3 * calls - 1].eq(0).any()


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_levels_of_every_sample_are_those_of_the_grid(name: str) -> None:
    levels: set[float] = set()

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (3,) and sigma.dtype == noisy.dtype
        levels.update(sigma.tolist())
        return samplers.denoise(noisy, sigma)

    sigmas = karras_sigmas(6, 0.01, 40.0, 7.0)
    sampled(name, denoise, torch.ones(3, 1), sigmas)
    assert levels == set(sigmas[:-1].tolist())


class Network(torch.nn.Module):
    """A fixed smooth network, so that a scheduler of diffusers can apply its own preconditioning to it."""

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        return (1.7 * scaled + noise_condition[:, None]).sin()


def visited(name: str, sigmas: Tensor, start: Tensor) -> list[Tensor]:
    """Where our sampler calls the denoiser, and where it ends."""
    denoiser = Denoiser(Network())
    places: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        places.append(noisy)
        return denoiser(noisy, sigma)

    final = sampled(name, denoise, start, sigmas)
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


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_step_noise_of_a_stochastic_sampler_is_drawn_once_for_each_step(steps: int) -> None:
    for name in (name for name, facts in SAMPLERS.items() if facts.stochastic):
        drawn: list[int] = []

        def noise(step: int, drawn: list[int] = drawn) -> Tensor:
            drawn.append(step)
            return torch.zeros(2, 1)

        sampled(name, samplers.denoise, torch.ones(2, 1), karras_sigmas(steps, 0.01, 40.0, 7.0), noise=noise)
        assert drawn == list(range(steps))


def late_step_noise(shape: tuple[int, ...], indices: list[int] | range, seed: int) -> Tensor:
    """Of step 5."""
    return step_noise(shape, indices, seed, 5)


@pytest.mark.parametrize("noise", [starting_noise, late_step_noise])
@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 5, 7), (1,)])
def test_noise_of_an_image_is_the_same_bits_in_any_batch(noise: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    together = noise(shape, range(20), seed=3)
    assert together.shape == (20, *shape) and together.dtype == torch.float32
    for size in (1, 3, 7):
        batches = [noise(shape, range(20)[first : first + size], seed=3) for first in range(0, 20, size)]
        assert torch.equal(torch.cat(batches), together)
    assert torch.equal(noise(shape, [13, 2], seed=3), together[[13, 2]])


def test_noise_of_images_seeds_and_steps_is_unit_and_different() -> None:
    shape = (4, 8, 8)
    noise = [starting_noise(shape, range(50), seed=seed) for seed in (0, 1)]
    noise += [step_noise(shape, range(50), seed=0, step=step) for step in (0, 1)]
    rows = torch.cat(noise).flatten(1)
    assert abs(rows.mean()) < 4 / math.sqrt(rows.numel())
    assert abs(rows.std() - 1) < 4 / math.sqrt(2 * rows.numel())
    correlations = torch.corrcoef(rows) - torch.eye(200)
    assert correlations.abs().max() < 6 / math.sqrt(256)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_float32_result_does_not_depend_on_the_batch(name: str) -> None:
    denoiser, sigmas = Denoiser(Network()), karras_sigmas(18, 0.01, 40.0, 7.0)

    def images(indices: list[int]) -> Tensor:
        options = {"noise": lambda step: step_noise((6,), indices, 0, step)} if SAMPLERS[name].stochastic else {}
        return sampled(name, denoiser, 40 * starting_noise((6,), indices, seed=0), sigmas, **options)

    together = images(list(range(9)))
    for index in range(9):
        assert torch.allclose(images([index])[0], together[index], rtol=0, atol=1 / 255)


def test_sampling_is_a_function_of_the_denoiser_that_gradients_flow_through() -> None:
    start = torch.full((1, 1), 30.0, dtype=torch.float64, requires_grad=True)
    sigmas = karras_sigmas(512, 0.02, 40.0, 7.0)[:-1]
    (slope,) = torch.autograd.grad(sampled("heun", samplers.denoise, start, sigmas).sum(), start)
    assert math.isclose(slope.item(), math.sqrt((STD**2 + 0.02**2) / (STD**2 + 40.0**2)), rel_tol=1e-3)
