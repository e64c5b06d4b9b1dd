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

from ldm.diffusion.config import SAMPLERS, SamplingConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.noise import karras_sigmas
from ldm.diffusion.samplers import Denoise, starting_noise, step_noise
from ldm.diffusion.samplers.options import checked_options
from ldm.diffusion.samplers.stochastic import euler_ancestral
from ldm.errors import RequestError
from ldm.randomness import generator
from ldm.verify import samplers
from ldm.verify.samplers import STD

# Of some schedulers of diffusers.
NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
ONCE = {name: samplers.without_restarts(name) for name in SAMPLERS}  # goes every part of the way once


def sampled(name: str, denoise: Denoise, start: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    """The result of a sampler of the table, with fixed noise and the Gaussian N(0, 1) where it asks."""
    facts = SAMPLERS[name]

    def noise(step: int) -> Tensor:
        return torch.randn(start.shape, dtype=start.dtype, generator=generator(0, "step", step))

    if facts.stochastic:
        options = {"noise": noise, **options}
    if facts.gaussian:
        options = {"gaussian": LatentGaussian(start.shape[1:], 0).to(start.dtype), **options}  # type: ignore[arg-type]
    final: Tensor = facts.load()(denoise, start, sigmas, **options)
    return final


@pytest.mark.parametrize("name", [name for name, facts in SAMPLERS.items() if not facts.gaussian])
def test_the_last_of_any_number_of_steps_goes_to_zero_and_returns_the_denoised_tensor(name: str) -> None:
    answers: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        answers.append(samplers.denoise(noisy, sigma))
        return answers[-1]

    for steps in range(1, 41):
        answers.clear()
        final = sampled(name, denoise, torch.full((1, 1), 30.0), karras_sigmas(steps, 0.01, 40.0, 7.0), **ONCE[name])
        assert torch.equal(final, answers[-1]) and final.isfinite().all()
        assert len(answers) == SAMPLERS[name].calls * (steps - 1) + 1


@pytest.mark.parametrize("name", [name for name, facts in SAMPLERS.items() if not facts.gaussian])
def test_scaling_data_noise_and_grid_together_only_scales_the_result(name: str) -> None:
    scale = 3.7
    start = 40 * torch.randn(5, 2, dtype=torch.float64, generator=generator(0, "start"))
    sigmas = karras_sigmas(7, 0.01, 40.0, 7.0).double()

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        return (noisy / (1 + sigma[:, None] ** 2)).sin()

    def scaled(noisy: Tensor, sigma: Tensor) -> Tensor:
        return scale * denoise(noisy / scale, sigma / scale)

    # The levels at which they add noise scale too.
    levels = {
        "heun_churn": {"churn_min": 0.1, "churn_max": 100.0},
        "restart": {"restart_min": 0.05, "restart_max": 2.0},
    }
    options = levels.get(name, {})
    expected = scale * sampled(name, denoise, start, sigmas, **options)
    larger = {option: scale * level for option, level in options.items()}
    found = sampled(name, scaled, scale * start, scale * sigmas, **larger)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


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
    sampled(name, denoise, torch.ones(2, 1), sigmas, on_step=on_step, **once_without_noise(name))
    assert seen[3 * calls].eq(0).all() and not seen[3 * calls - 1].eq(0).any()


def once_without_noise(name: str) -> dict[str, float]:
    """Options of a sampler that add no noise before a step and repeat none."""
    return ONCE[name] | ({"churn": 0.0} if "churn" in SAMPLERS[name].options else {})


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_levels_of_every_sample_are_those_of_the_grid(name: str) -> None:
    levels: set[float] = set()

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (3,) and sigma.dtype == noisy.dtype
        levels.update(sigma.tolist())
        return samplers.denoise(noisy, sigma)

    sigmas = karras_sigmas(6, 0.01, 40.0, 7.0)
    sampled(name, denoise, torch.ones(3, 1), sigmas, **once_without_noise(name))
    assert levels == set(sigmas[:-1].tolist())


class Network(torch.nn.Module):
    """A fixed smooth network, so that a scheduler of diffusers can apply its own preconditioning to it."""

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        return (1.7 * scaled + noise_condition[:, None]).sin()


def visited(name: str, sigmas: Tensor, start: Tensor, **options: Any) -> list[Tensor]:
    """Where our sampler calls the denoiser, and where it ends."""
    denoiser = Denoiser(Network())
    places: list[Tensor] = []

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        places.append(noisy)
        return denoiser(noisy, sigma)

    final = sampled(name, denoise, start, sigmas, **options)
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


@NUMPY
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


def scheduled(scheduler: Any, start: Tensor, sigmas: Tensor, **options: Any) -> list[Tensor]:
    """What a scheduler for clean + noise of together unit variance makes of a denoiser's answers, on our scale."""
    noisy, denoiser = [start], Denoiser(Network())
    for time, sigma, lower in zip(scheduler.timesteps, sigmas[:-1], sigmas[1:], strict=True):
        shrunk = noisy[-1] / (1 + sigma**2).sqrt()
        given = {name: value(len(noisy) - 1) for name, value in options.items() if callable(value)}
        plain = {name: value for name, value in options.items() if not callable(value)}
        moved = scheduler.step(denoiser(noisy[-1], sigma), time, shrunk, **plain, **given).prev_sample
        noisy.append(moved * (1 + lower**2).sqrt())
    return noisy


def unit_noise(step: int) -> Tensor:
    """That of `sampled` for a start of 4 x 3."""
    return torch.randn(4, 3, generator=generator(0, "step", step))


KARRAS = {"use_karras_sigmas": True, "prediction_type": "sample", "final_sigmas_type": "zero"}


@NUMPY
@pytest.mark.parametrize("steps", [1, 2, 5, 18])
@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [
        ("dpm++2m", diffusers.DPMSolverMultistepScheduler(solver_order=2, **KARRAS), {}),
        (
            "dpm++2m_sde",
            diffusers.DPMSolverMultistepScheduler(solver_order=2, algorithm_type="sde-dpmsolver++", **KARRAS),
            {"variance_noise": unit_noise},
        ),
        ("unipc", diffusers.UniPCMultistepScheduler(solver_order=2, **KARRAS), {}),
    ],
    ids=["dpm++2m", "dpm++2m_sde", "unipc"],
)
def test_a_multistep_method_equals_that_of_diffusers(
    name: str, scheduler: Any, options: dict[str, Any], steps: int
) -> None:
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas
    start = sigmas[0] * torch.randn(4, 3, generator=generator(0, "start"))
    assert_same(visited(name, sigmas, start), scheduled(scheduler, start, sigmas, **options))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_equals_that_of_diffusers_at_any_eta(eta: float) -> None:
    scheduler: Any = diffusers.DDIMScheduler(
        clip_sample=False, prediction_type="sample", timestep_spacing="trailing", beta_schedule="scaled_linear"
    )
    scheduler.set_timesteps(10)
    cumulative = scheduler.alphas_cumprod[scheduler.timesteps]
    sigmas = torch.cat([((1 - cumulative) / cumulative).sqrt(), torch.zeros(1)])
    start = sigmas[0] * torch.randn(4, 3, generator=generator(0, "start"))
    theirs = scheduled(scheduler, start, sigmas, eta=eta, **({"variance_noise": unit_noise} if eta else {}))
    assert_same(visited("ddim", sigmas, start, eta=eta), theirs)


@NUMPY
@pytest.mark.parametrize("order", [2, 3, 4])
def test_adams_bashforth_equals_the_lms_of_diffusers_down_to_the_last_level(order: int) -> None:
    scheduler: Any = diffusers.LMSDiscreteScheduler(use_karras_sigmas=True, prediction_type="sample")
    scheduler.set_timesteps(9)
    sigmas = scheduler.sigmas[:-1]  # their step to 0 is another
    start, denoiser = sigmas[0] * torch.randn(4, 3, generator=generator(0, "start")), Denoiser(Network())
    theirs = [start]
    for time, sigma in zip(scheduler.timesteps[:-1], sigmas[:-1], strict=True):
        scheduler.scale_model_input(theirs[-1], time)
        theirs.append(scheduler.step(denoiser(theirs[-1], sigma), time, theirs[-1], order=order).prev_sample)
    assert_same(visited(f"ab{order}", sigmas, start), theirs)


@NUMPY
def test_half_of_the_curvature_makes_a_third_order_method_one_of_second_order() -> None:
    """Diffusers' third order, as the authors': on the exact path of Gaussian data ours falls by 8 and theirs by 4."""
    errors: dict[str, list[float]] = {"ours": [], "theirs": []}
    for count in (64, 128):
        sigmas = karras_sigmas(count + 1, 0.02, 20.0, 7.0)[:-1].double()
        start = 20 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        exact = (
            samplers.MEAN + (start - samplers.MEAN) * ((STD**2 + sigmas[-1] ** 2) / (STD**2 + sigmas[0] ** 2)).sqrt()
        )
        errors["ours"].append(float((sampled("dpm++3m", samplers.denoise, start, sigmas) - exact).abs().max()))
        scheduler: Any = diffusers.DPMSolverMultistepScheduler(
            solver_order=3, prediction_type="sample", lower_order_final=False, final_sigmas_type="sigma_min"
        )
        scheduler.set_timesteps(count)
        scheduler.sigmas, noisy = sigmas, start
        for time, sigma, lower in zip(scheduler.timesteps, sigmas[:-1], sigmas[1:], strict=True):
            shrunk = noisy / (1 + sigma**2).sqrt()
            moved = scheduler.step(samplers.denoise(noisy, sigma.expand(9)), time, shrunk).prev_sample
            noisy = moved * (1 + lower**2).sqrt()
        errors["theirs"].append(float((noisy - exact).abs().max()))
    falls = {name: longer / shorter for name, (longer, shorter) in errors.items()}
    assert falls["ours"] > 7 and 3.5 < falls["theirs"] < 5, errors


def test_without_churn_and_without_restarts_there_is_heun_bit_for_bit() -> None:
    sigmas, start = karras_sigmas(9, 0.01, 40.0, 7.0), 40 * torch.randn(4, 3, generator=generator(0, "start"))
    expected = visited("heun", sigmas, start)
    for name, off in [("heun_churn", {"churn": 0.0}), ("restart", {"restarts": 0})]:
        assert all(one.equal(other) for one, other in zip(visited(name, sigmas, start, **off), expected, strict=True))
    for name, off, other in [("ddim", {"eta": 0.0}, "euler"), ("dpm++2m_sde", {"eta": 0.0}, "dpm++2m")]:
        assert visited(name, sigmas, start, **off)[-1].equal(visited(other, sigmas, start)[-1])


def test_churn_is_the_algorithm_of_the_paper() -> None:
    """Karras et al. 2022, algorithm 2, line by line, with one step inside the interval and one outside."""
    t, denoiser, clock = [5.0, 1.0, 0.2, 0.0], Denoiser(Network()), [0, 1, 2]
    x = 5 * torch.randn(4, 3, generator=generator(0, "start"))
    found = sampled(
        "heun_churn", denoiser, x, torch.tensor(t), churn=0.6, churn_min=0.5, churn_max=2.0, churn_noise=1.1
    )
    for i in clock:
        gamma = min(0.6 / 3, math.sqrt(2) - 1) if 0.5 <= t[i] <= 2.0 else 0.0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * 1.1 * unit_noise(i)
        d = (x_hat - denoiser(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1]:
            d_after = (x - denoiser(x, t[i + 1])) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_after / 2)
    assert torch.allclose(found, x, rtol=1e-5, atol=1e-6)


def test_a_restart_goes_back_up_with_noise_and_down_again() -> None:
    """Of a denoiser that knows no image, every step is a multiplication: two restarts from 0.2 to 2."""
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.2, 0.1], dtype=torch.float64)
    start, sizes = torch.tensor([[4.0]], dtype=torch.float64), list[float]()
    final = sampled(
        "restart",
        lambda noisy, sigma: torch.zeros_like(noisy),
        start,
        sigmas,
        restart_min=0.15,
        restart_max=2.5,
        noise=lambda step: sizes.append(step) or torch.ones_like(start),  # type: ignore[func-returns-value]
    )
    at_lowest = 0.2
    for _ in range(2):
        at_lowest = (at_lowest + math.sqrt(2**2 - 0.2**2)) * 0.2 / 2
    assert sizes == [4, 5] and math.isclose(final.item(), at_lowest / 2, rel_tol=1e-12)


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
@pytest.mark.parametrize("name", [name for name, facts in SAMPLERS.items() if facts.stochastic])
def test_step_noise_of_a_stochastic_sampler_is_drawn_once_for_each_step(name: str, steps: int) -> None:
    """That of the restarts has numbers of its own, after those of the grid."""
    drawn: list[int] = []

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return torch.zeros(2, 1)

    everywhere = {"eta": 1.0, "churn_min": 0.0, "restart_min": 0.05, "restart_max": 2.0}
    options = {option: value for option, value in everywhere.items() if option in SAMPLERS[name].options}
    sampled(name, samplers.denoise, torch.ones(2, 1), karras_sigmas(steps, 0.01, 40.0, 7.0), noise=noise, **options)
    if name == "restart":
        assert drawn == ([7, 8] if steps == 7 else [])
    else:
        ends_without = "eta" in options or name == "consistency"  # DDIM and 2M-SDE too
        assert drawn == list(range(steps - ends_without))


def late_step_noise(shape: tuple[int, ...], indices: list[int] | range, seed: int) -> Tensor:
    """Of step 5."""
    return step_noise(shape, indices, seed, 5)


def test_noise_is_the_same_whatever_the_default_type_is() -> None:
    noise = starting_noise((2, 3), [4], seed=0), step_noise((2, 3), [4], 0, 1)
    torch.set_default_dtype(torch.float64)
    try:
        again = starting_noise((2, 3), [4], seed=0), step_noise((2, 3), [4], 0, 1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, again, noise))


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
        options: dict[str, Any] = {}
        if SAMPLERS[name].stochastic:
            options = {"noise": lambda step: step_noise((6,), indices, 0, step)}
        return sampled(name, denoiser, 40 * starting_noise((6,), indices, seed=0), sigmas, **options)

    together = images(list(range(9)))
    for index in range(9):
        assert torch.allclose(images([index])[0], together[index], rtol=0, atol=1 / 255)


def test_sampling_is_a_function_of_the_denoiser_that_gradients_flow_through() -> None:
    start = torch.full((1, 1), 30.0, dtype=torch.float64, requires_grad=True)
    sigmas = karras_sigmas(512, 0.02, 40.0, 7.0)[:-1]
    (slope,) = torch.autograd.grad(sampled("heun", samplers.denoise, start, sigmas).sum(), start)
    assert math.isclose(slope.item(), math.sqrt((STD**2 + 0.02**2) / (STD**2 + 40.0**2)), rel_tol=1e-3)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("restart", {"restart_min": 1.0}, "restart_min 1 must be below restart_max, which is 0.6"),
        ("heun_churn", {"churn_max": 0.05}, "churn_min 0.1 must be below churn_max, which is 0.05"),
    ],
)
def test_one_end_of_a_part_beyond_the_default_of_the_other_is_not_silently_heun(
    name: str, given: dict[str, float], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        sampled(name, samplers.denoise, torch.ones(1, 1), karras_sigmas(18, 0.01, 40.0, 7.0), **given)


def test_an_option_that_is_a_list_is_no_traceback() -> None:
    with pytest.raises(RequestError, match=r"churn \[1\] must be a finite number"):
        checked_options("heun_churn", {"churn": [1]}, "scalar", SamplingConfig())  # type: ignore[dict-item]
