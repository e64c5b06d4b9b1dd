"""Stage two on any AutoencoderKL of diffusers, and what it leaves alone."""

import shutil
from pathlib import Path

import pytest
import torch

from ldm import Autoencoder
from ldm.data.config import FolderConfig
from ldm.data.datasets import Dataset, open_dataset
from ldm.evaluation.held_out import latent_statistics
from tests.support.miniatures import STAGE_TWO
from tests.support.scripts import Stage, ran


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderKL that somebody else made: untrained, with the scaling factor of Stable Diffusion."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("foreign")
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=3,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flat_folder(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images without classes."""
    folder = tmp_path_factory.mktemp("flat")
    for file in sorted(shapes_folder.rglob("*.png")):
        shutil.copy(file, folder / f"{file.parent.name}-{file.name}")
    return folder


@pytest.fixture(scope="module")
def run(foreign: Path, flat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage-two run on it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(f"data: {{kind: folder, path: '{flat_folder}', size: 16}}\n{STAGE_TWO}")
    stage = Stage("train_diffusion", (folder / "config.yaml", "--autoencoder", foreign))
    outcome = stage.run(folder / "out")
    assert outcome.code == 0, outcome.err
    return folder / "out"


@pytest.fixture(scope="module")
def dataset(flat_folder: Path) -> Dataset:
    return open_dataset(FolderConfig(path=str(flat_folder), size=16))


def test_its_latents_are_measured_on_the_data_and_standardized(run, dataset):
    training, _ = dataset.split()
    kept = latent_statistics(Autoencoder.load(run), training, torch.device("cpu"))
    assert kept.mean.abs().max() < 0.02
    assert (kept.std - 1).abs().max() < 0.02


def test_it_reconstructs_as_it_did(run, foreign, dataset):
    training, _ = dataset.split()
    images = training.evenly_spaced(3).images()
    with torch.no_grad():
        before, after = (Autoencoder.load(source).reconstruct(images) for source in (foreign, run))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_a_model_without_classes_is_sampled_without_labels(run, tmp_path):
    outcome = ran("sample", run, "--out", tmp_path / "grid.png", "--num", 4, "--steps", 3)
    assert outcome.code == 0 and (tmp_path / "grid.png").exists(), outcome.err
    refused = ran("sample", run, "--out", tmp_path / "grid.png", "--labels", "disc")
    assert refused.code == 2 and "--labels" in refused.err


def test_stage_two_leaves_the_bytes_of_the_autoencoder_alone(finished_vae, finished_diffusion):
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (finished_diffusion / name).read_bytes() == (finished_vae / name).read_bytes()


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_other_precisions_train_both_stages_and_are_stored_resolved(stage, tmp_path, precision):
    outcome = stage.run(tmp_path / "run", "--run.precision", precision, "--run.steps", 3)
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "precision: auto" not in text and ("precision: bf16" in text or precision == "auto")
