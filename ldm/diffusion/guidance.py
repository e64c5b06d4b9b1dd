"""Classifier-free guidance and autoguidance, as functions from denoiser to denoiser.

Both move the answer away from that of a worse denoiser, D_worse + guidance · (D − D_worse): guidance 1 is D itself,
0 is the worse one, and above 1 the samples become more typical and less varied.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch

from ldm.batch import Condition
from ldm.shapes import Latents, NoiseLevels

ConditionalDenoise: TypeAlias = Callable[[Latents, NoiseLevels, Condition | None], Latents]


def classifier_free(denoiser: ConditionalDenoise, *, guidance: float) -> ConditionalDenoise:
    """Classifier-free guidance: by the same denoiser without its condition (Ho and Salimans 2022).

    Both answers come from one call with a batch of twice the size; guidance 0 and 1 need one answer and compute only
    that.
    """
    if guidance == 1:
        return denoiser

    def guided(noisy: Latents, sigma: NoiseLevels, condition: Condition | None) -> Latents:
        if condition is None:
            raise ValueError("classifier-free guidance needs a condition, and there is none")
        if guidance == 0:
            return denoiser(noisy, sigma, condition.null())
        sigmas = torch.as_tensor(sigma, device=noisy.device).reshape(-1).expand(len(noisy))
        both = denoiser(torch.cat([noisy, noisy]), torch.cat([sigmas, sigmas]), condition.joined(condition.null()))
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return guided


def autoguidance(denoiser: ConditionalDenoise, weaker: ConditionalDenoise, *, guidance: float) -> ConditionalDenoise:
    """Guidance by a weaker version of the denoiser, smaller or less trained (Karras et al. 2024)."""
    if guidance == 1:
        return denoiser

    def guided(noisy: Latents, sigma: NoiseLevels, condition: Condition | None) -> Latents:
        worse = weaker(noisy, sigma, condition)
        return worse + guidance * (denoiser(noisy, sigma, condition) - worse)

    return guided
