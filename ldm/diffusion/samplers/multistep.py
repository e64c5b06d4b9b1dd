"""Samplers that remember earlier answers, one denoising per step: DPM-Solver++, UniPC and Adams–Bashforth.

DPM-Solver++ and UniPC solve dx/dλ = D − x over λ = −ln σ, the linear part exactly: over a step of length h

    x(λ + h) = e⁻ʰ x(λ) + ∫₀ʰ e^(τ − h) D(λ + τ) dτ

and Adams–Bashforth the equation in σ itself. What is integrated is the polynomial through the values that are known.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.diffusion.samplers import Denoise, OnStep, StepNoise, after_step, expand_sigma, sigma_pairs
from ldm.shapes import Latents


def dpmpp_2m(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """Second order, one denoising per step: D is extrapolated to the middle of the step from the one before.

    DPM-Solver++(2M) with data prediction (Lu et al. 2022, algorithm 2), linear in λ = −ln σ. The first step has
    nothing before it, and a step to 0 no middle: both are Euler's.
    """
    noisy = start
    before: tuple[float, Tensor] | None = None
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        middle = at_middle(denoised, before, sigma, lower)
        noisy = after_step(on_step, step, torch.lerp(middle, noisy, lower / sigma))
        before = sigma, denoised
    return noisy


def at_middle(value: Tensor, before: tuple[float, Tensor] | None, sigma: float, lower: float) -> Tensor:
    """What a value at `sigma` will be in the middle of a step to `lower`, by a line in ln σ through the one before."""
    if before is None or lower == 0:
        return value
    higher, value_before = before
    ratio = math.log(sigma / lower) / math.log(higher / sigma)
    return value + ratio / 2 * (value - value_before)


def dpmpp_2m_sde(
    denoise: Denoise,
    start: Latents,
    sigmas: Tensor,
    *,
    noise: StepNoise,
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Latents:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022): second order, with fresh noise in every step; eta 0 is `dpmpp_2m`.

    With κ = (σ'/σ)^(1 + η) it moves to κ x + (1 − κ) D at the middle, and adds noise of variance σ'² − (κ σ)². In the
    paper η² in place of η multiplies the noise of the equation, and both are the same at 0 and 1.
    """
    noisy = start
    before: tuple[float, Tensor] | None = None
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas)):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        middle = at_middle(denoised, before, sigma, lower)
        ratio = lower / sigma
        noisy = torch.lerp(middle, noisy, ratio ** (1 + eta))
        if eta and lower:
            noisy = noisy + lower * math.sqrt(1 - ratio ** (2 * eta)) * noise(step)
        noisy = after_step(on_step, step + 1, noisy)
        before = sigma, denoised
    return noisy


def dpmpp_3m(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """DPM-Solver++(3M): third order, the parabola through the last three answers integrated exactly.

    The authors' code, and those that follow it, count half of the curvature and so are of second order.
    """
    noisy, known = start, list[tuple[float, Tensor]]()
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        known = [(sigma, denoise(noisy, expand_sigma(sigma, noisy))), *known[:2]]
        noisy = after_step(on_step, step, exponential_step(noisy, known, sigma, lower))
    return noisy


def unipc(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """UniPC-2 with B(h) = eʰ − 1 (Zhao et al. 2023): third order, one denoising per step.

    DPM-Solver++(2M) predicts where a step ends. What the denoiser answers there repeats the step, as one that it ends
    (UniC), before it begins the next. Latents that `on_step` replaced are not corrected.
    """
    noisy, departure, known = start, start, list[tuple[float, Tensor]]()
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        if known and departure is not noisy:
            noisy = corrected(departure, known, sigma, denoised)
        before = known[0] if known else None
        predicted = torch.lerp(at_middle(denoised, before, sigma, lower), noisy, lower / sigma)
        wanted = after_step(on_step, step, predicted)
        departure = noisy if wanted is predicted else wanted
        noisy, known = wanted, [(sigma, denoised), *known[:1]]
    return noisy


def corrected(departure: Latents, known: Sequence[tuple[float, Tensor]], lower: float, denoised: Tensor) -> Latents:
    """Where a step from `departure` ends, given the answer at its end and at its beginning, and the one before."""
    sigma, at_departure = known[0]
    if len(known) == 1:
        return torch.lerp((denoised + at_departure) / 2, departure, lower / sigma)
    return exponential_step(departure, [(lower, denoised), *known], sigma, lower)


def exponential_step(noisy: Latents, known: Sequence[tuple[float, Tensor]], sigma: float, lower: float) -> Latents:
    """A step with the polynomial in ln σ through the answers that are known at their levels, the newest first."""
    if lower == 0:
        return known[0][1]
    length = math.log(sigma / lower)
    moments = [-math.expm1(-length)]  # ∫₀¹ h e^(h (s − 1)) sᵏ ds
    for power in range(1, len(known)):
        moments.append(1 - power / length * moments[-1])
    weights = quadrature([math.log(sigma / level) / length for level, _ in known], moments)
    return weighted_sum([lower / sigma, *weights], [noisy, *(denoised for _, denoised in known)])


def ab2(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """Adams–Bashforth of second order, in σ."""
    return adams_bashforth(2, denoise, start, sigmas, on_step)


def ab3(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """Adams–Bashforth of third order, in σ."""
    return adams_bashforth(3, denoise, start, sigmas, on_step)


def ab4(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """Adams–Bashforth of fourth order, in σ; the LMS of k-diffusion."""
    return adams_bashforth(4, denoise, start, sigmas, on_step)


def adams_bashforth(
    order: int, denoise: Denoise, start: Latents, sigmas: Tensor, on_step: OnStep | None = None
) -> Latents:
    """The polynomial through the last `order` slopes, fewer at first, integrated over the step; a step to 0 is Euler's.

    PLMS (Liu et al. 2022) is this for equal steps.
    """
    noisy, known = start, list[tuple[float, Tensor]]()
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        known = [(sigma, (noisy - denoised) / sigma), *known[: order - 1]]
        if lower == 0:
            arrival = denoised
        else:
            places = [(level - sigma) / (lower - sigma) for level, _ in known]
            weights = quadrature(places, [1 / (power + 1) for power in range(len(known))])
            scaled = [weight * (lower - sigma) for weight in weights]
            arrival = weighted_sum([1.0, *scaled], [noisy, *(slope for _, slope in known)])
        noisy = after_step(on_step, step, arrival)
    return noisy


def quadrature(places: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights of values at some places that integrate every polynomial through them, given the integrals of sᵏ."""
    powers = torch.tensor(places, dtype=torch.float64) ** torch.arange(len(places))[:, None]
    weights: list[float] = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
    return weights


def weighted_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """The sum of tensors, each times its weight."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total
