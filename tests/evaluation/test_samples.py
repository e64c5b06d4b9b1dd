"""Samples: which classes they are asked for and read by, and how well their model denoises."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.config import FolderConfig
from ldm.data.datasets import open_dataset
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.objective import losses_by_sigma
from ldm.evaluation.denoising import SIGMAS, denoising_losses
from ldm.evaluation.image_sets import allocated_labels
from ldm.evaluation.samples import labels_of
from tests.support.diffusion_models import diffusion_model


@pytest.mark.parametrize("counts", [[5, 3, 2], [1, 1, 1, 1], [97, 1, 0, 2], [7]])
def test_classes_of_samples_are_as_frequent_as_in_the_data_in_every_beginning(counts: list[int]) -> None:
    labels, shares = allocated_labels(counts, 300), np.array(counts) / sum(counts)
    for num in (1, 10, 77, 300):
        given = np.bincount(labels[:num].numpy(), minlength=len(counts))
        assert np.abs(given - shares * num).max() < len(counts), num
    assert np.abs(np.bincount(labels.numpy(), minlength=len(counts)) - 300 * shares).max() <= 1
    assert torch.equal(allocated_labels(counts, 20), labels[:20])


def folder(path: Path, names: list[str]) -> list[int]:
    """The classes that are found in a folder of images with these names, where the real ones are cat and big dog."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path / name)
    return labels_of(open_dataset(FolderConfig(path=str(path), size=8)), ("cat", "big dog")).tolist()


def test_classes_of_samples_are_found_in_sub_folders_and_in_names(tmp_path: Path) -> None:
    assert folder(tmp_path / "a", ["big dog/1.png", "cat/1.png"]) == [1, 0]
    assert folder(tmp_path / "b", ["00000-cat.png", "00001-big dog.png", "00002-big_dog.png"]) == [0, 1, 1]


def test_other_classes_than_those_of_the_real_images_are_none(tmp_path: Path) -> None:
    assert folder(tmp_path / "a", ["cow/1.png", "cat/1.png"]) == []
    assert folder(tmp_path / "b", ["00000-cat.png", "00001.png"]) == []


def test_the_loss_by_noise_level_is_that_of_the_objective_with_the_weight_of_edm() -> None:
    model = diffusion_model("tiny")
    latents = torch.randn(9, *model.config.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = model.config.schema.condition(torch.arange(9) % 2)
    found = denoising_losses(model, None, latents, condition)
    each = losses_by_sigma(model.denoiser, latents, condition, list(SIGMAS), seed=0, device=torch.device("cpu"))
    expected = {sigma: losses.mean().item() for sigma, losses in each.items()}
    assert found == {"sigma": list(SIGMAS), "loss": pytest.approx(list(expected.values()), rel=1e-5)}


def test_the_gaussian_of_unit_variance_has_loss_1_at_every_level_and_the_model_is_a_fraction_of_it() -> None:
    """On data of zero mean and unit variance."""
    model = diffusion_model("tiny")
    shape = model.config.latent_shape
    latents = torch.randn(400, *shape, generator=torch.Generator().manual_seed(1))
    condition = model.config.schema.condition(torch.zeros(400, dtype=torch.int64))
    found = denoising_losses(model, LatentGaussian(shape, 0), latents, condition)
    assert found["gaussian"] == pytest.approx([1.0] * 5, abs=0.02)
    assert found["fraction"] == pytest.approx((np.array(found["loss"]) / np.array(found["gaussian"])).tolist())
