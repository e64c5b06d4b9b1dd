"""Guidance: functions from denoiser to denoiser.

Both move the answer away from that of a worse denoiser, D_worse + guidance · (D − D_worse): guidance 1 is D itself,
0 is the worse one, and above 1 the samples become more typical and less varied.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch

from ldm.shapes import Labels, Latents, NoiseLevels

LabelledDenoise: TypeAlias = Callable[[Latents, NoiseLevels, Labels | None], Latents]


def classifier_free(denoiser: LabelledDenoise, *, guidance: float, no_label: int) -> LabelledDenoise:
    """Guidance by the same denoiser without its labels (Ho and Salimans 2022).

    Both answers come from one call with a batch of twice the size; guidance 0 and 1 need one answer and compute only
    that. `no_label` is the index the denoiser was trained to read as 'no label'.
    """
    if guidance == 1:
        return denoiser

    def guided(noisy: Latents, sigma: NoiseLevels, labels: Labels | None) -> Latents:
        if labels is None:
            raise ValueError("classifier-free guidance needs one label per sample, and there are none")
        no_labels = torch.full_like(labels, no_label)
        if guidance == 0:
            return denoiser(noisy, sigma, no_labels)
        both = denoiser(torch.cat([noisy, noisy]), torch.cat([sigma, sigma]), torch.cat([labels, no_labels]))
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return guided


def autoguidance(denoiser: LabelledDenoise, weaker: LabelledDenoise, *, guidance: float) -> LabelledDenoise:
    """Guidance by a weaker version of the denoiser, smaller or less trained (Karras et al. 2024)."""
    if guidance == 1:
        return denoiser

    def guided(noisy: Latents, sigma: NoiseLevels, labels: Labels | None) -> Latents:
        worse = weaker(noisy, sigma, labels)
        return worse + guidance * (denoiser(noisy, sigma, labels) - worse)

    return guided
