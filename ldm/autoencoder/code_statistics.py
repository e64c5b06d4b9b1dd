"""Statistics of the code at every training step: its standard deviation and, of a sparse one, L0 and dead units."""

import torch
from torch import Tensor

from ldm.autoencoder.bottleneck import Bottleneck
from ldm.autoencoder.penalty import ForwardPass
from ldm.distributed import mean_over_processes

EPSILON = 1e-12


@torch.no_grad()
def code_statistics(
    forward: ForwardPass, bottleneck: Bottleneck, latents: Tensor, *, is_code: bool = True
) -> dict[str, Tensor]:
    """The standard deviation of the latents, and of their narrowest and widest channel; more of a sparse code.

    l0: units above 0 at a position, on average. dead_fraction: of the units, those that have not been above 0 for long.
    explained_variance: 1 - ‖image - reconstruction‖² / ‖image - mean image‖². shrinkage: E‖x'‖² / E[x' · x] around the
    mean image, 1 where reconstructions x' are as large as they should be, and less where they shrink (Rajamanoharan et
    al. 2024); shown up to 10.
    """
    code, step = forward.code.detach(), forward.step.number
    stds = latents.detach().transpose(0, 1).flatten(1).std(1, correction=0)
    statistics = {
        "latent_std": latents.detach().std(correction=0),
        "latent_std_min": stds.min(),
        "latent_std_max": stds.max(),
    }
    if not bottleneck.tracks_usage or not is_code:
        return statistics
    dead = bottleneck.dead_units(step) & ~bottleneck.active_units(code)
    mean = mean_over_processes(forward.images.mean(0))
    images, reconstruction = forward.images - mean, forward.reconstruction.detach() - mean
    products = [(images - reconstruction).square(), images.square(), reconstruction.square(), reconstruction * images]
    error, energy, size, overlap = mean_over_processes(torch.stack([each.mean() for each in products]))
    return statistics | {
        "l0": (code > 0).to(code.dtype).sum(1).mean(),
        "dead_fraction": dead.to(code.dtype).mean(),
        "explained_variance": 1 - error / energy.clamp_min(EPSILON),
        "shrinkage": (size / overlap.clamp_min(EPSILON)).clamp(max=10.0),
    }
