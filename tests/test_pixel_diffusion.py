"""Without an autoencoder the same denoiser, samplers and pipeline work on pixels, standardized like any latent."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm import Autoencoder, LatentDiffusion
from ldm.data.config import FolderConfig
from ldm.data.datasets import Dataset, Subset, open_dataset
from tests.support.backbones import random_alexnet
from tests.support.diffusers_process import USE_PIPELINE, in_another_process, pixels
from tests.support.miniatures import STAGE_ONE, STAGE_TWO
from tests.support.runs import lose_everything_after, train_alike
from tests.support.scripts import Outcome, Stage, metrics, ran, weights

DATA = 'data: {{kind: folder, path: "{path}", size: 16, flip: true}}\n'


@pytest.fixture(scope="module")
def pixel_stage(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    file = tmp_path_factory.mktemp("configs") / "pixel.yaml"
    file.write_text(DATA.format(path=shapes_folder) + STAGE_TWO)
    return Stage("train_diffusion", (file,))


@pytest.fixture(scope="module")
def run(pixel_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished miniature run on pixels."""
    out = tmp_path_factory.mktemp("pixel") / "run"
    outcome = pixel_stage.run(out)
    assert outcome.code == 0, outcome.err
    return out


@pytest.fixture(scope="module")
def dataset(shapes_folder: Path) -> Dataset:
    return open_dataset(FolderConfig(path=str(shapes_folder), size=16, flip=True))


def training_images(dataset: Dataset) -> Tensor:
    training, _ = dataset.split()
    assert 0 < len(training) < len(dataset)
    return training.images()


def one_line(outcome: Outcome, code: int) -> str:
    """What a refused command says, once."""
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == code and len(errors) == 1 and "Traceback" not in outcome.err, outcome
    return errors[0]


# ---- the autoencoder that does nothing


def test_the_vae_of_a_run_on_pixels_is_the_identity_at_any_size(run: Path):
    autoencoder = Autoencoder.load(run)
    for sides in ((16, 16), (5, 9), (1, 1)):
        images = torch.rand(3, 3, *sides, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            latents = autoencoder.encode(images).mode()
            assert latents.shape == images.shape and autoencoder.latent_shape(sides) == (3, *sides)
            torch.testing.assert_close(autoencoder.decode(latents), images, rtol=0, atol=1e-5)
            torch.testing.assert_close(autoencoder.reconstruct(images), images, rtol=0, atol=1e-5)


def test_its_latents_are_the_pixels_with_mean_0_and_std_1_in_each_channel_of_the_training_set(run, dataset):
    images = training_images(dataset)
    with torch.no_grad():
        latents = Autoencoder.load(run).encode(images).mode().double()
    mean, std = (getattr(images.double(), name)((0, 2, 3), keepdim=True) for name in ("mean", "std"))
    assert mean.abs().max() > 0.1 and (std - 1).abs().min() > 0.1, "there is something to standardize"
    torch.testing.assert_close(latents, (images.double() - mean) / std, rtol=0, atol=1e-3)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-5
    assert (latents.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_the_cache_holds_the_codes_alone_which_are_the_images_and_their_mirror_images(run, dataset):
    moments = np.load(run / "latents" / "moments.npy")
    assert moments.shape == (2, 60, 3, 16, 16) and moments.dtype == np.float32
    images = Subset(dataset, list(range(60))).images()
    assert (moments[0] == images.numpy()).all() and (moments[1] == images.flip(-1).numpy()).all()


# ---- the run


def test_a_run_on_pixels_that_restarts_in_the_middle_equals_one_that_does_not(run, pixel_stage, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    lose_everything_after(again, step=3)
    shutil.rmtree(again / "latents")  # it can be made again
    outcome = pixel_stage.run(again)
    assert outcome.code == 0 and "resuming from step 3" in outcome.out + outcome.err, outcome
    assert weights(again) == weights(run) and metrics(again) == metrics(run)
    assert {"vae/model.safetensors", "unet/model.safetensors"} < weights(run).keys()


def test_two_processes_equal_one_on_pixels_to_1e_9_in_float64(pixel_stage, tmp_path):
    config = ("--denoiser.network.dropout", 0, "--optim.clip", 1e6, "--run.steps", 3)
    train_alike(tmp_path, pixel_stage.name, *pixel_stage.arguments, *config)


def test_held_out_pixels_are_denoised_better_than_one_by_one(pixel_stage, tmp_path):
    """At loss 1 is the best that can be made of each noisy pixel by itself: an untrained network is there."""
    config = ("--run.steps", 30, "--run.sample-every", 30, "--denoiser.network.dropout", 0, "--optim.lr", 1e-2)
    outcome = pixel_stage.run(tmp_path / "run", *config)
    assert outcome.code == 0, outcome.err
    (panel,) = [line for line in metrics(tmp_path / "run") if "held_out_sigma_1" in line]
    assert panel["held_out_sigma_1"] < 0.9 and panel["held_out_sigma_3"] < 0.8, panel


def test_a_dry_run_on_pixels_trains_nothing(pixel_stage, tmp_path):
    outcome = pixel_stage.run(tmp_path / "run", "--dry-run")
    assert outcome.code == 0 and "3 x 16 x 16" in outcome.out, outcome
    assert not list(tmp_path.rglob("*.safetensors"))


# ---- what others do with it


def test_sample_draws_what_the_library_draws(run: Path, tmp_path: Path):
    outcome = ran("sample", run, "--out", tmp_path / "many", "--num", 2, "--steps", 3, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    model = LatentDiffusion.load(run)
    assert model.config.latent_shape == (3, 16, 16) and model.classes == ("disc", "square")
    images = pixels(model.sample(2, steps=3))
    assert len(np.unique(images)) > 20
    for number, name in enumerate(("00000-disc.png", "00001-square.png")):
        with Image.open(tmp_path / "many" / name) as picture:
            assert (np.asarray(picture) == images[number]).all()


def test_diffusers_draws_the_same_images_pixel_for_pixel_and_saves_what_opens_again(run: Path, tmp_path: Path):
    in_another_process(USE_PIPELINE, tmp_path, run, tmp_path)
    drawn, facts = np.load(tmp_path / "images.npz"), json.loads((tmp_path / "facts.json").read_text())
    assert facts["class"] == "LatentDiffusionPipeline" and facts["components"]["vae"] == "AutoencoderModel"
    model = LatentDiffusion.load(run)
    assert (drawn["plain"] == pixels(model.sample(5, steps=3))).all() and (drawn["again"] == drawn["plain"]).all()
    chosen = model.sample(4, ["square", "disc", 0], steps=4, sampler="dpm++2m", guidance=1.5, seed=7)
    assert (drawn["chosen"] == pixels(chosen)).all()
    assert (pixels(LatentDiffusion.load(tmp_path / "again").sample(5, steps=3)) == drawn["plain"]).all()


# ---- refusals


def test_without_data_and_without_an_autoencoder_there_is_nothing_to_train_on(tmp_path):
    (tmp_path / "config.yaml").write_text(STAGE_TWO)
    outcome = ran("train_diffusion", tmp_path / "config.yaml", "--out", tmp_path / "run")
    assert "data" in (line := one_line(outcome, 2)) and "--autoencoder" in line
    assert not (tmp_path / "run").exists()


def test_pixels_are_nothing_that_stage_one_could_train(shapes_folder, tmp_path):
    (tmp_path / "config.yaml").write_text(STAGE_ONE.format(backbone=random_alexnet(), data=shapes_folder))
    given = ("--autoencoder.network.kind", "pixels", "--autoencoder.bottleneck.kind", "identity")
    outcome = ran("train_vae", tmp_path / "config.yaml", "--out", tmp_path / "run", *given)
    assert "pixels" in (line := one_line(outcome, 2)) and "train_diffusion.py" in line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_on_pixels_does_not_go_on_with_an_autoencoder(run, stage_two, tmp_path):
    """Not with the cache that it has, and not with a new one either."""
    again = tmp_path / "again"
    shutil.copytree(run, again)
    lose_everything_after(again, step=3)
    before = weights(again)
    assert "stale" in one_line(stage_two.run(again), 4)
    shutil.rmtree(again / "latents")
    assert str(again) in one_line(stage_two.run(again), 3)
    assert weights(again) == before
