"""A denoiser that is overfitted on purpose is caught by its copies and by its held-out loss; one with data is not."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.batch import Condition, ConditionSchema, LatentBatch
from ldm.diffusion.config import DenoiserConfig, SamplingConfig, UNetConfig
from ldm.diffusion.losses.config import LogNormalConfig
from ldm.diffusion.losses.noise_distribution import sample_sigmas
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.noise import karras_sigmas
from ldm.diffusion.objective import DenoisingObjective, losses_by_sigma
from ldm.diffusion.samplers import starting_noise
from ldm.diffusion.sampling import sample_latents
from ldm.evaluation.memorization import find_neighbors
from ldm.evaluation.panels import HeldOutLatents
from ldm.randomness import generator
from ldm.training.config import AdamWConfig
from ldm.training.ema import ema_shares
from ldm.training.processes import Processes
from ldm.training.step import WholeRun
from ldm.training.train_state import TrainState
from ldm.training.validation import Validation

SHAPE, UNCONDITIONAL = (2, 8, 8), Condition({})
STEPS, EVERY, BATCH = 160, 32, 32


def smooth_latents(count: int, seed: int) -> Tensor:
    """Random latents of 18 numbers each: few enough that 600 of them say what the others are like."""
    corners = torch.randn(count, 2, 3, 3, generator=generator(seed, "corners"))
    return 1.3 * F.interpolate(corners, size=SHAPE[1:], mode="bilinear", align_corners=True)


@pytest.mark.parametrize(("count", "is_few"), [(4, True), (600, False)])
def test_a_model_of_few_images_is_caught_and_one_of_many_is_not(count: int, is_few: bool) -> None:
    latents, held_out = smooth_latents(count, 0), smooth_latents(96, 1)
    network = UNetConfig(widths=(16, 32), blocks=1, attention=(), head_channels=8)
    torch.manual_seed(0)
    denoiser = create_denoiser(
        DiffusionModelConfig(SHAPE, ConditionSchema(), DenoiserConfig(network), SamplingConfig())
    )
    objective, validation = DenoisingObjective(denoiser), Validation(keeps_best=False)
    state = TrainState(
        denoiser, AdamWConfig(lr=5e-3, warmup=10, schedule="constant"), None, window=WholeRun(STEPS).window
    )
    groups, warnings = [str(number) for number in range(96)], []
    for step in range(STEPS):
        rng = generator(0, "step", step)
        chosen = latents[torch.randint(count, (BATCH,), generator=rng)]
        noise, sigma = torch.randn(chosen.shape, generator=rng), sample_sigmas(LogNormalConfig(), BATCH, rng)
        loss = objective(LatentBatch(chosen, noise, sigma, UNCONDITIONAL)).total
        loss.backward()
        state.advance(state.lr(step), ema_shares(step + 1), loss.detach())
        if (step + 1) % EVERY == 0:
            model, levels = state.ema_model("0.05"), list(HeldOutLatents.sigmas)
            cpu = torch.device("cpu")
            losses = losses_by_sigma(model, held_out, UNCONDITIONAL, levels, seed=0, device=cpu)
            validation.update(step + 1, {str(level): each for level, each in losses.items()}, groups, {})
            warnings.append(validation.warning())
    with torch.no_grad():
        samples = sample_latents(
            lambda noisy, sigma: model(noisy, sigma, UNCONDITIONAL),
            starting_noise(SHAPE, list(range(48)), 0),
            karras_sigmas(10, 0.01, 20, 7),
            sampler="dpm++2m",
            noise=lambda step: starting_noise(SHAPE, list(range(48)), step),
        )
    report = find_neighbors(
        {"latents": samples.flatten(1)},
        {"latents": held_out.flatten(1)},
        lambda part: [{"latents": latents[part].flatten(1)}],
        [str(number) for number in range(count)],
        torch.arange(count),
        Processes("cpu"),
    ).report()
    copies = report["spaces"]["latents"]["copies"]
    assert report["flagged"] is is_few, report["spaces"]
    assert (copies > 0.3) == is_few and report["spaces"]["latents"]["held_out"]["copies"] < 0.03
    assert (validation.overfitting_since > 0) == is_few == any(warnings), validation.report()
