"""The exports of a run for others: a diffusers pipeline, and a stock autoencoder that needs nothing of ours."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.autoencoder.model import Autoencoder
from ldm.pipeline import LatentDiffusion
from tests.support.diffusers_process import USE_PIPELINE, in_another_process, pixels
from tests.support.scripts import ROOT

USE_AUTOENCODER = """
import sys
sys.modules["ldm"] = None  # importing it is an ImportError now
import numpy as np, torch
from diffusers import AutoencoderKL

given, *runs = sys.argv[1:]
torch.set_num_threads(1)
arrays = np.load(given)
for number, run in enumerate(runs):
    autoencoder = AutoencoderKL.from_pretrained(f"{run}/vae").eval()
    assert (autoencoder.config.scaling_factor, autoencoder.config.shift_factor) == (1.0, None)
    with torch.no_grad():
        images = autoencoder.decode(torch.from_numpy(arrays["latents"])).sample
        posterior = autoencoder.encode(torch.from_numpy(arrays["images"])).latent_dist
    np.savez(f"{number}.npz", images=images.numpy(), mean=posterior.mean.numpy(), std=posterior.std.numpy())
"""


@dataclass(frozen=True)
class Used:
    """What a user of diffusers got out of a run."""

    images: dict[str, np.ndarray]
    facts: dict[str, Any]
    again: Path  # where the pipeline was saved once more


@pytest.fixture(scope="module")
def used(finished_diffusion: Path, tmp_path_factory: pytest.TempPathFactory) -> Used:
    out = tmp_path_factory.mktemp("pipeline")
    in_another_process(USE_PIPELINE, out, finished_diffusion, out)
    return Used(dict(np.load(out / "images.npz")), json.loads((out / "facts.json").read_text()), out / "again")


def test_diffusers_opens_a_run_offline_and_finds_its_components(used: Used) -> None:
    assert used.facts["class"] == "LatentDiffusionPipeline"
    assert used.facts["components"] == {
        "vae": "AutoencoderKL",
        "unet": "DenoiserModel",
        "scheduler": "EDMDPMSolverMultistepScheduler",
    }


def test_diffusers_draws_the_same_images_pixel_for_pixel(used: Used, finished_diffusion: Path) -> None:
    model = LatentDiffusion.load(finished_diffusion)
    assert (used.images["plain"] == pixels(model.sample(5, steps=3))).all()
    options: dict[str, Any] = {"steps": 4, "sampler": "dpm++2m", "guidance": 1.5, "seed": 7}
    assert (used.images["chosen"] == pixels(model.sample(4, ["square", "disc", 0], **options))).all()


def test_diffusers_is_given_the_same_refusals(used: Used) -> None:
    assert used.facts["refusal"] == "RequestError: class_labels circle is not a class of this model: disc, square"


def test_a_pipeline_saved_by_diffusers_opens_again_and_draws_the_same(used: Used) -> None:
    """Left to itself, diffusers saves only parts of classes that it knows, and drops the denoiser without a word."""
    assert (used.images["again"] == used.images["plain"]).all()


def test_a_pipeline_saved_by_diffusers_is_a_run_for_sample_too(used: Used) -> None:
    assert (pixels(LatentDiffusion.load(used.again).sample(5, steps=3)) == used.images["plain"]).all()


def test_the_scheduler_of_a_run_has_the_noise_levels_of_its_own_sampler(finished_diffusion: Path) -> None:
    sampling = LatentDiffusion.load(finished_diffusion).config.sampling
    scheduler = json.loads((finished_diffusion / "scheduler" / "scheduler_config.json").read_text())
    grid = {name: getattr(sampling, name) for name in ("sigma_min", "sigma_max", "rho")}
    assert grid | {"sigma_data": 1.0} == {name: scheduler[name] for name in [*grid, "sigma_data"]}


def test_a_pipeline_that_is_open_goes_on_when_another_is_opened(used: Used) -> None:
    """diffusers runs the code again, in the same module: without care the open one then has classes of two kinds."""
    assert (used.images["first"] == used.images["plain"]).all()


def test_the_code_in_a_run_is_named_by_what_is_in_it(finished_diffusion: Path, used: Used) -> None:
    """diffusers copies the code of all models into one folder, where two files of one name would be one."""
    for run in (finished_diffusion, used.again):
        index = json.loads((run / "model_index.json").read_text())
        for part, folder in (("_class_name", run), ("unet", run / "unet")):
            (file,) = folder.glob("*.py")
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
            assert index[part][0] == file.stem and file.stem.endswith(f"_{digest}")


def test_the_autoencoder_of_a_run_needs_nothing_of_ours(
    finished_vae: Path, finished_diffusion: Path, tmp_path: Path
) -> None:
    """A process that cannot import ldm decodes and encodes the same with diffusers' own AutoencoderKL."""
    rng = torch.Generator().manual_seed(0)
    latents, images = torch.randn(3, 2, 8, 8, generator=rng), torch.rand(3, 3, 16, 16, generator=rng) * 2 - 1
    np.savez(tmp_path / "given.npz", latents=latents.numpy(), images=images.numpy())
    runs = [finished_vae, finished_diffusion]
    in_another_process(USE_AUTOENCODER, tmp_path, tmp_path / "given.npz", *runs)
    for number, run in enumerate(runs):
        found = {name: torch.from_numpy(value) for name, value in np.load(tmp_path / f"{number}.npz").items()}
        ours = Autoencoder.load(run)
        with torch.no_grad():
            posterior = ours.encode(images)
            assert torch.allclose(found["images"], ours.decode(latents), rtol=0, atol=1e-6)
        assert torch.allclose(found["mean"], posterior.mean, rtol=0, atol=1e-6)
        assert torch.allclose(found["std"], (posterior.logvar / 2).exp(), rtol=1e-5)


def test_ldm_is_what_the_process_without_ldm_lacks() -> None:
    """The block works, for elsewhere the package is there."""
    code = 'import sys; sys.modules["ldm"] = None; import ldm'
    blocked = subprocess.run([sys.executable, "-I", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert blocked.returncode == 1 and "ldm" in blocked.stderr
