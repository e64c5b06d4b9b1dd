"""Autoguidance by another run, or by an earlier checkpoint of one: which guides there are, and which are refused."""

from pathlib import Path

import pytest
import torch

from ldm import checkpoint
from ldm.diffusion.guidance import Autoguidance
from ldm.errors import RequestError
from ldm.export.load_guide import load_guide, split_step
from ldm.pipeline import LatentDiffusion
from tests.support.scripts import ran


def test_a_guide_is_the_finished_model_or_the_averaged_weights_of_a_checkpoint(finished_diffusion: Path) -> None:
    model = LatentDiffusion.load(finished_diffusion)
    first, *_, last = checkpoint.steps(finished_diffusion / "checkpoints")
    noisy, sigma = torch.randn(2, *model.config.latent_shape), torch.tensor([1.0])
    condition = model.config.schema.request([0, 1])
    finished = model.denoiser(noisy, sigma, condition)
    with torch.no_grad():
        answers = [
            load_guide(source, model)(noisy, sigma, condition)
            for source in (str(finished_diffusion), f"{finished_diffusion}@{last}", f"{finished_diffusion}@{first}")
        ]
    assert answers[0].equal(finished) and answers[1].equal(finished)
    assert not torch.allclose(answers[2], finished, atol=1e-5)
    by_itself = model.sample(2, steps=2, guidance=Autoguidance(3.0, load_guide(str(finished_diffusion), model)))
    assert torch.allclose(by_itself, model.sample(2, steps=2, guidance=1.0), atol=1e-4), "no worse than the model"


def test_a_step_that_is_not_there_is_answered_with_those_that_are(finished_diffusion: Path) -> None:
    model = LatentDiffusion.load(finished_diffusion)
    there = ", ".join(map(str, checkpoint.steps(finished_diffusion / "checkpoints")))
    with pytest.raises(RequestError, match=f"@12345 is not there; .* those of steps {there}"):
        load_guide(f"{finished_diffusion}@12345", model)
    with pytest.raises(RequestError, match="behind the @ stands the step"):
        load_guide(f"{finished_diffusion}@last", model)


def test_early_is_the_first_checkpoint_of_the_run_itself(finished_diffusion: Path, tmp_path: Path) -> None:
    for step in (75, 150, 1200):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    assert split_step(f"{tmp_path}@early") == (tmp_path, 75)
    there = ", ".join(map(str, checkpoint.steps(finished_diffusion / "checkpoints")))
    request = ("sample", finished_diffusion, "--num", 2, "--device", "cpu", "--out", tmp_path / "a.png")
    outcome = ran(*request, "--guide", "early")
    assert outcome.code == 2 and f"no early checkpoint: those that are there are of steps {there}\n" in outcome.err, (
        outcome
    )


def test_a_guide_of_another_latent_space_is_refused(finished_diffusion: Path) -> None:
    """The same weights with other statistics of the latents are another space too."""
    model = LatentDiffusion.load(finished_diffusion)
    channels = model.autoencoder.latent_channels
    model.autoencoder.standardize(torch.full((channels,), 0.1), torch.full((channels,), 2.0))
    with pytest.raises(RequestError, match="is a denoiser of another latent space"):
        load_guide(str(finished_diffusion), model)


def test_sample_py_is_guided_by_a_checkpoint_and_refuses_what_is_none(finished_diffusion: Path, tmp_path: Path) -> None:
    first = checkpoint.steps(finished_diffusion / "checkpoints")[0]
    request = ("sample", finished_diffusion, "--steps", 2, "--num", 2, "--device", "cpu", "--out")
    outcome = ran(
        *request, tmp_path / "a.png", "--guide", f"{finished_diffusion}@{first}", "--guidance-interval", "0.1,9"
    )
    assert outcome.code == 0, outcome.err
    outcome = ran(*request, tmp_path / "b.png", "--guide", f"{finished_diffusion}@12345")
    assert outcome.code == 2 and "--guide" in outcome.err and outcome.err.count("\n") == 1, outcome
    outcome = ran(*request, tmp_path / "b.png", "--guide", tmp_path)
    assert outcome.code == 4 and "is not a finished run" in outcome.err, outcome
