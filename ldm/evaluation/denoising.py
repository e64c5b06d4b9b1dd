"""The denoising loss of held-out latents by noise level, beside that of the best linear denoiser."""

from collections.abc import Callable
from typing import Any

import torch

from ldm.batch import Condition
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.samplers import expand_sigma
from ldm.pipeline import LatentDiffusion
from ldm.randomness import generator
from ldm.shapes import Latents, NoiseLevels

SIGMAS = (0.1, 0.3, 1.0, 3.0, 10.0)


def denoising_losses(
    model: LatentDiffusion, gaussian: LatentGaussian | None, latents: Latents, condition: Condition
) -> dict[str, Any]:
    """Losses at fixed noise levels with fixed noise, of the model and of the Gaussian, and the former as a fraction.

    A loss is the mean of (1 + σ²) / σ² ‖D(x + σ n; σ) − x‖² per number: EDM's, whatever the denoiser is trained with.
    An EDM network that puts out zero has 1 at each level; a fraction below 1 is better than linear algebra.
    """
    device = next(model.denoiser.parameters()).device
    condition = condition.to(device)

    def denoise(noisy: Latents, sigma: NoiseLevels, rows: torch.Tensor) -> Latents:
        return model.denoiser(noisy.to(device), sigma.to(device), condition[rows.to(device)]).cpu()

    found: dict[str, Any] = {"sigma": list(SIGMAS), "loss": loss_by_level(denoise, latents)}
    if gaussian is not None:
        found["gaussian"] = loss_by_level(lambda noisy, sigma, rows: gaussian.denoise(noisy, sigma), latents)
        found["fraction"] = [loss / other for loss, other in zip(found["loss"], found["gaussian"], strict=True)]
    return found


@torch.no_grad()
def loss_by_level(
    denoise: Callable[[Latents, NoiseLevels, torch.Tensor], Latents], latents: Latents, size: int = 256
) -> list[float]:
    """The loss of a denoiser, which is also told which latents it is given, at each of SIGMAS."""
    losses = []
    for place, level in enumerate(SIGMAS):
        noise = torch.randn(latents.shape, generator=generator(0, "held-out noise", place))
        squares = 0.0
        for rows in torch.arange(len(latents)).split(size):
            noisy = latents[rows] + level * noise[rows]
            denoised = denoise(noisy, expand_sigma(level, noisy), rows)
            squares += (denoised.double() - latents[rows]).square().sum().item()
        losses.append((1 + level**2) / level**2 * squares / latents.numel())
    return losses
