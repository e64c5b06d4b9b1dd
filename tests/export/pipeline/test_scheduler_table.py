"""Other people's samplers driven by our denoiser: the schedulers that docs/samplers.md names, and its four lines."""

import re
import runpy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ldm.diffusion.samplers.one_step import euler, heun
from ldm.export.pipeline.scheduler_sampling import sample_by_scheduler
from ldm.pipeline import LatentDiffusion
from ldm.verify.samplers import MEAN, STD, denoise
from tests.support.scripts import ROOT

PAGE = (ROOT / "docs" / "samplers.md").read_text()
NUMPY = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
KARRAS = {"use_karras_sigmas": True}
EDM = {"sigma_min": 0.01, "sigma_max": 40.0, "sigma_data": 1.0}
# Each with how far the standard deviation of its samples of Gaussian data may be off after 60 steps.
SCHEDULERS: dict[str, tuple[dict[str, Any], float]] = {
    "EulerDiscreteScheduler": (KARRAS, 0.05),
    "EulerAncestralDiscreteScheduler": ({}, 0.15),
    "HeunDiscreteScheduler": (KARRAS, 0.01),
    "LMSDiscreteScheduler": (KARRAS, 0.01),
    "EDMEulerScheduler": (EDM, 0.05),
    "EDMDPMSolverMultistepScheduler": (EDM, 0.01),
}


def test_the_page_names_the_schedulers_of_this_table() -> None:
    assert set(re.findall(r"`(\w+Scheduler)`", PAGE)) == set(SCHEDULERS)


@pytest.mark.filterwarnings(NUMPY)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_samples_gaussian_data_with_our_denoiser(name: str) -> None:
    arguments, off = SCHEDULERS[name]
    scheduler = getattr(diffusers, name)(**arguments)
    noise = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean()) / noise.std()
    drawn = sample_by_scheduler(denoise, noise, scheduler, 60, generator=torch.Generator().manual_seed(1))
    assert abs(drawn.mean() - MEAN) < 0.05 and abs(drawn.std() / STD - 1) < off + 0.02, (drawn.mean(), drawn.std())


@pytest.mark.filterwarnings(NUMPY)
@pytest.mark.parametrize(("name", "ours"), [("EulerDiscreteScheduler", euler), ("HeunDiscreteScheduler", heun)])
def test_a_scheduler_does_what_our_sampler_does_on_its_noise_levels(name: str, ours: Any) -> None:
    scheduler = getattr(diffusers, name)(**KARRAS)
    noise = torch.randn(5, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    theirs = sample_by_scheduler(denoise, noise, scheduler, 9)
    sigmas = scheduler.sigmas.unique().flip(0)
    assert torch.allclose(ours(denoise, noise * sigmas[0], sigmas), theirs, rtol=1e-4, atol=1e-4)


def test_the_four_lines_of_the_page_make_a_denoiser_of_noisy_and_sigma(
    finished_diffusion: Path, tmp_path: Path
) -> None:
    (lines,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    lines = lines.replace("runs/mine/diffusion", str(finished_diffusion)).replace('"cat"', '"disc"')
    assert len([line for line in lines.splitlines() if line]) == 4
    model = LatentDiffusion.load(finished_diffusion)
    noisy, sigma = torch.ones(1, *model.config.latent_shape), torch.tensor([2.0])
    (tmp_path / "page.py").write_text(lines)
    denoised = runpy.run_path(str(tmp_path / "page.py"), {"noisy": noisy, "sigma": sigma})["denoised"]
    assert denoised.equal(model.denoiser(noisy, sigma, model.config.schema.request(["disc"])))
