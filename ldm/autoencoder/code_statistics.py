"""What is said of a code at every step: how wide it is and, of a sparse one, how sparse."""

import torch
from torch import Tensor

from ldm.autoencoder.bottleneck import SparseBottleneck
from ldm.autoencoder.penalty import ForwardPass
from ldm.distributed import mean_over_processes


@torch.no_grad()
def code_statistics(encoded: ForwardPass, latents: Tensor, *, is_code: bool = True) -> dict[str, Tensor]:
    """The standard deviation of the latents, and of their narrowest and widest channel; more of a sparse code.

    l0: units above 0 at a position, on average. dead_fraction: of the units, those that have not been above 0 for long.
    explained_variance: 1 - ‖image - reconstruction‖² / ‖image - mean image‖². shrinkage: E‖x'‖² / E[x' · x] around the
    mean image, 1 where reconstructions x' are as large as they should be, and less where they shrink (Rajamanoharan et
    al. 2024); shown up to 10.
    """
    code, bottleneck = encoded.code.detach(), encoded.autoencoder.bottleneck
    spread = latents.detach().transpose(0, 1).flatten(1).std(1, correction=0)
    figures = {
        "latent_std": latents.detach().std(correction=0),
        "latent_std_min": spread.min(),
        "latent_std_max": spread.max(),
    }
    if not isinstance(bottleneck, SparseBottleneck) or not is_code:
        return figures
    bottleneck.update_usage(code, encoded.rng.step)
    mean = mean_over_processes(encoded.images.mean(0))
    images, again = encoded.images - mean, encoded.reconstruction.detach() - mean
    products = [(images - again).square(), images.square(), again.square(), again * images]
    error, energy, size, overlap = mean_over_processes(torch.stack([each.mean() for each in products]))
    tiny = 1e-12
    return figures | {
        "l0": (code > 0).to(code.dtype).sum(1).mean(),
        "dead_fraction": bottleneck.is_dead(encoded.rng.step).to(code.dtype).mean(),
        "explained_variance": 1 - error / energy.clamp_min(tiny),
        "shrinkage": (size / overlap.clamp_min(tiny)).clamp(max=10.0),
    }
