"""A run that tunes a finished denoiser for few steps: what it takes over, leaves behind, and refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.anomaly.subject import open_subject
from ldm.config import reader
from ldm.diffusion.guidance import Autoguidance
from ldm.errors import ConfigError, RequestError
from ldm.export.diffusers_pipeline import DenoiserModel, LatentDiffusionPipeline, scheduler_of
from ldm.pipeline import LatentDiffusion
from ldm.script_configs import TrainDiffusionConfig
from tests.support.runs import lose_everything_after
from tests.support.scripts import ROOT, Stage, metrics, ran, weights

CONFIG = ROOT / "configs" / "diffusion" / "few_steps.yaml"
MINIATURE = ("--run.steps", 6, "--run.batch-size", 8, "--run.checkpoint-every", 3, "--run.sample-every", 6)
GUIDED = ("--objective.guidance", 1.5, "--run.snapshots", 0, "--run.log-every", 2, "--run.precision", "fp32")


@pytest.fixture(scope="module")
def tuning(finished_diffusion: Path) -> Stage:
    return Stage("train_diffusion", (CONFIG, "--from", finished_diffusion, *MINIATURE, *GUIDED))


@pytest.fixture(scope="module")
def tuned(tuning: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished miniature run, with dropout, a Gaussian skip, and guidance baked in."""
    out = tmp_path_factory.mktemp("few-steps") / "run"
    outcome = tuning.run(out)
    assert outcome.code == 0, outcome.err
    return out


def test_a_resumed_tuning_has_the_same_weights_and_log(tuned: Path, tuning: Stage, tmp_path: Path) -> None:
    """Its stage follows from the step, and its guide is read again."""
    shutil.copytree(tuned, tmp_path / "again")
    lose_everything_after(tmp_path / "again", step=3)
    outcome = tuning.run(tmp_path / "again")
    assert outcome.code == 0 and "resuming from step 3" in outcome.out, outcome.err
    assert weights(tmp_path / "again") == weights(tuned) and metrics(tmp_path / "again") == metrics(tuned)


def test_a_resumed_tuning_does_not_go_on_with_another_guide(
    tuned: Path, finished_diffusion: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned, tmp_path / "again")
    lose_everything_after(tmp_path / "again", step=3)
    shutil.copytree(finished_diffusion, tmp_path / "trained longer")
    (file,) = (tmp_path / "trained longer" / "unet").glob("*.safetensors")
    save_file({name: 1.01 * value for name, value in load_file(file).items()}, file, {"format": "pt"})
    other = Stage("train_diffusion", (CONFIG, "--from", tmp_path / "trained longer", *MINIATURE, *GUIDED))
    outcome = other.run(tmp_path / "again")
    assert outcome.code == 2 and "--from is another, or other weights lie there" in outcome.err, outcome
    assert "Traceback" not in outcome.err


def test_it_keeps_the_noise_levels_and_says_nothing_of_denoising(tuned: Path, finished_diffusion: Path) -> None:
    before, after = (LatentDiffusion.load(run).config for run in (finished_diffusion, tuned))
    names = ("sigma_min", "sigma_max", "rho")
    assert [getattr(before.sampling, name) for name in names] == [getattr(after.sampling, name) for name in names]
    assert (after.sampling.sampler, after.sampling.steps) == ("consistency", 2)
    assert all("consistency" in line for line in metrics(tuned))
    assert not (tuned / "objective.png").exists() and not (tuned / "report.json").exists()


def test_a_model_that_does_not_denoise_was_evaluated_with_a_denoising_loss(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.evaluation.classifier.STEPS", 5)
    outcome = ran("ldm.cli.main", "evaluate", tuned, "--generate", 4, "--out", tmp_path / "metrics.json")
    assert outcome.code == 0 and "denoising" not in outcome.out, outcome.err
    assert "denoising" not in json.loads((tmp_path / "metrics.json").read_text())["metrics"]


def test_a_model_that_does_not_denoise_gave_a_score_of_denoising(tuned: Path, finished_diffusion: Path) -> None:
    assert "few steps" in open_subject(tuned).missing["denoiser"]
    assert "denoiser" not in open_subject(finished_diffusion).missing


def test_a_model_tuned_for_few_steps_samples_so_by_default_everywhere(tuned: Path, tmp_path: Path) -> None:
    model = LatentDiffusion.load(tuned)
    done: list[int] = []
    images = model.sample(3, seed=5, on_step=done.append)
    assert len(done) == 2 and images.equal(model.sample(3, seed=5, steps=2, sampler="consistency", guidance=1.0))
    vae, unet = AutoencoderKL.from_pretrained(tuned / "vae"), DenoiserModel.from_pretrained(tuned / "unet")
    pipe = LatentDiffusionPipeline(vae=vae, unet=unet, scheduler=scheduler_of(model.config.sampling))
    pipe.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(pipe(3, seed=5, output_type="latent").images.numpy())
    assert (model.decode(latents) - images).abs().max() < 1e-4
    outcome = ran("sample", tuned, "--out", tmp_path / "a.png", "--num", 2, "--second-sigma", 1.5)
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "a.png") as picture:
        assert {"steps": "2", "sampler": "consistency"}.items() <= picture.text.items()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sampler", "heun"), "--sampler heun needs a denoiser, and this model was tuned for few steps: use cons"),
        (("--guidance", 2), "a model tuned for few steps has its guidance baked in"),
        (("--second-sigma", 1000), "--second-sigma 1000 must be above"),
        (("--interpolate", 0, "class:square", "--sampler", "heun"), "--sampler heun needs a denoiser"),
    ],
)
def test_a_request_for_another_model_is_one_line(tuned: Path, tmp_path: Path, flags, words: str) -> None:
    outcome = ran("sample", tuned, "--out", tmp_path / "a.png", *flags)
    assert outcome.code == 2 and words in outcome.err and "Traceback" not in outcome.err, outcome.err


def test_a_model_tuned_for_few_steps_edits_pictures_but_knows_no_way_back_to_their_noise(
    tuned: Path, tmp_path: Path
) -> None:
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.new("RGB", (16, 16), (200, 80, 0)).save(photo)
    white = Image.new("L", (16, 16))
    white.paste(255, (4, 4, 12, 12))
    white.save(mask)
    for mode in (
        ("--image", photo, "--strength", 0.6),
        ("--image", photo, "--mask", mask),
        ("--interpolate", 3, "class:square"),
        ("--strip", "--seeds", 3),
    ):
        outcome = ran("sample", tuned, "--out", tmp_path / "a.png", "--labels", "disc", *mode)
        assert outcome.code == 0, outcome.err
    for mode in (("--variations", photo), ("--interpolate", photo, 3)):
        outcome = ran("sample", tuned, "--out", tmp_path / "b.png", *mode)
        assert outcome.code == 2 and "knows no way back to noise: use the run that it was tuned" in outcome.err, outcome
        assert outcome.err.count("\n") == 1 and not (tmp_path / "b.png").exists()


def test_a_model_tuned_for_few_steps_was_guided_by_another_denoiser(
    tuned: Path, finished_diffusion: Path, tmp_path: Path
) -> None:
    for run, guide, words in (
        (tuned, finished_diffusion, "this model is none"),
        (finished_diffusion, tuned, "is none"),
    ):
        outcome = ran("sample", run, "--out", tmp_path / "a.png", "--guide", guide)
        assert outcome.code == 2 and outcome.err.startswith("error: --guide guides a denoiser by another"), outcome.err
        assert words in outcome.err and outcome.err.count("\n") == 1
    model, guide = (LatentDiffusion.load(run) for run in (tuned, finished_diffusion))
    with pytest.raises(RequestError, match="few steps is baked in"):
        model.sample(1, guidance=Autoguidance(2.0, guide.denoiser))


def test_a_denoiser_is_not_sampled_as_a_consistency_model(finished_diffusion: Path) -> None:
    with pytest.raises(RequestError, match="needs a model with objective"):
        LatentDiffusion.load(finished_diffusion).sample(1, sampler="consistency")


def test_without_a_run_to_tune_or_with_one_that_cannot_guide_it_is_one_line(
    tuned: Path, finished_vae: Path, tmp_path: Path
) -> None:
    small = ("--out", tmp_path / "run", "--run.batch-size", 8)
    outcome = ran("train_diffusion", CONFIG, "--autoencoder", finished_vae, *small)
    assert outcome.code == 2 and "name its run with --from RUN" in outcome.err, outcome.err
    outcome = ran("train_diffusion", CONFIG, "--from", tuned, *small, "--objective.guidance", 2)
    assert outcome.code == 2 and "trained with objective.condition_dropout" in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"denoiser.parametrization": "x0"}, "leaves a latent without noise as it is"),
        ({"run.keep": "best"}, "use last"),
        ({"sampling.sampler": "heun"}, "draws no samples from a model with objective.kind consistency"),
        ({"sampling.sigma_max": "160"}, "sampling.sigma_max 160 .*high 80 leaves it untrained: give at least 160"),
        ({"objective.weighting": "learned"}, r"expected gap\|edm\|prediction"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(flags: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        reader.load(TrainDiffusionConfig, CONFIG, flags)


def test_a_denoiser_that_would_sample_as_a_consistency_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"draws no samples from a model with objective\.kind denoising"):
        reader.load(TrainDiffusionConfig, CONFIG.parent / "mnist5k.yaml", {"sampling.sampler": "consistency"})
