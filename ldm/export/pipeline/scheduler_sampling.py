"""Sampling by a scheduler of diffusers that works on noise levels σ, for a denoiser D(x; σ) of ours."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.samplers import Denoise, OnStep, after_step, expand_sigma
from ldm.errors import RequestError
from ldm.shapes import Latents

OURS = ("sigma_min", "sigma_max", "rho")  # what a model's own grid of noise levels is made of


def is_own(scheduler: Any, grid: Any) -> bool:
    """Whether that is the scheduler that a run brings along, which describes its grid and is not what samples."""
    described = all(scheduler.config.get(name) == getattr(grid, name) for name in OURS)
    return type(scheduler).__name__ == "EDMDPMSolverMultistepScheduler" and described


def timesteps_of(scheduler: Any, steps: int, device: torch.device) -> Tensor:
    """The steps of a scheduler, newly begun; RequestError for one without noise levels."""
    if not all(callable(getattr(scheduler, name, None)) for name in ("set_timesteps", "scale_model_input")):
        raise unusable(scheduler)
    scheduler.set_timesteps(steps, device=device)
    if not torch.is_tensor(getattr(scheduler, "sigmas", None)):
        raise unusable(scheduler)
    timesteps: Tensor = scheduler.timesteps
    return timesteps


def unusable(scheduler: Any) -> RequestError:
    """The refusal of a scheduler."""
    return RequestError(
        "scheduler",
        f"{type(scheduler).__name__} does not work on noise levels sigma with clean + sigma * noise: take an"
        " EulerDiscreteScheduler, HeunDiscreteScheduler, EDMEulerScheduler or EDMDPMSolverMultistepScheduler, or leave"
        " it as it was and choose a sampler",
    )


def sample_by_scheduler(
    denoise: Denoise,
    unit_noise: Latents,
    scheduler: Any,
    steps: int,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
) -> Latents:
    """The latents that a scheduler makes of unit Gaussian noise, along its own noise levels.

    The denoised tensor is handed to it as whatever it takes for the output of a network, and it turns that back.
    """
    timesteps = timesteps_of(scheduler, steps, unit_noise.device)
    noisy = unit_noise * scheduler.sigmas[0].item()
    # Schedulers that draw noise take the generator; of several, which belong to single images, they know nothing.
    takes = isinstance(generator, torch.Generator) and "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if takes else {}
    for step, timestep in enumerate(timesteps, start=1):
        scaled = scheduler.scale_model_input(noisy, timestep)
        index = getattr(scheduler, "step_index", None)
        if index is None or not is_scaled_by(scheduler, noisy, scaled, scheduler.sigmas[index].item()):
            raise unusable(scheduler)
        sigma = scheduler.sigmas[index].item()
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        output = as_network_output(scheduler, noisy, denoised, sigma)
        noisy = after_step(on_step, step, scheduler.step(output, timestep, noisy, **options).prev_sample)
    return noisy


def is_scaled_by(scheduler: Any, noisy: Tensor, scaled: Tensor, sigma: float) -> bool:
    """Whether a scheduler takes `noisy` for clean + sigma * noise: it then gives a network unit variance."""
    data = float(scheduler.config.get("sigma_data", 1.0))
    return torch.allclose(scaled * (sigma**2 + data**2) ** 0.5, noisy, rtol=1e-3, atol=1e-3)


def as_network_output(scheduler: Any, noisy: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """The output of a network that a scheduler would turn into `denoised`."""
    if preconditioned := getattr(scheduler, "precondition_outputs", None):  # EDM: c_skip x + c_out output
        level, zeros = torch.full_like(noisy[:1, :1, :1, :1], sigma), torch.zeros_like(noisy)
        offset, scale = preconditioned(noisy, zeros, level), preconditioned(zeros, torch.ones_like(noisy), level)
        return (denoised - offset) / scale
    predicts = scheduler.config.get("prediction_type", "epsilon")
    if predicts == "epsilon":
        return (noisy - denoised) / sigma
    if predicts == "v_prediction":
        return (noisy / (sigma**2 + 1) - denoised) * (sigma**2 + 1) ** 0.5 / sigma
    return denoised
