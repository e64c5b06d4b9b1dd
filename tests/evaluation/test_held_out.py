"""The figures beside which an autoencoder is held."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm import Autoencoder
from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, KLNetworkConfig
from ldm.autoencoder.model import create_trainable
from ldm.data.config import FolderConfig
from ldm.data.datasets import open_dataset
from ldm.evaluation import held_out


def test_pca_of_large_images_does_not_take_all_memory_at_the_end_of_a_run(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FolderConfig(path=str(shapes_folder), size=16)
    dataset = open_dataset(config)
    train, held_out, latent = list(range(50)), list(range(50, 60)), (2, 8, 8)
    sizes: list[int] = []
    whole = held_out.eval_images

    def counted(*arguments):
        images = whole(*arguments)
        sizes.append(images.numel())
        return images

    monkeypatch.setattr(held_out, "plain_images", counted)
    held_out.pca_baselines(dataset, config, train, held_out, latent)
    assert sizes == [50 * 768, 10 * 768]
    monkeypatch.setattr(held_out, "VALUES_FOR_PCA", 9 * 768)
    figures = held_out.pca_baselines(dataset, config, train, held_out, latent)
    assert max(sizes[2:]) <= 9 * 768
    assert figures["pca_psnr"] is None and figures["patch_pca_psnr"] is not None


def test_every_panel_logs_what_the_latents_are_like(finished_vae: Path) -> None:
    lines = [json.loads(line) for line in (finished_vae / "metrics.jsonl").read_text().splitlines()]
    (panel,) = [line for line in lines if "panel_psnr" in line]
    names = {"latent_spectrum_slope", "encoder_jacobian"}
    assert names < panel.keys() and all(math.isfinite(panel[name]) for name in names)
    assert panel["encoder_jacobian"] > 0


def test_a_figure_that_is_not_defined_is_left_out(shapes_folder: Path, tmp_path: Path) -> None:
    """Latents of 2 x 2 have no slope, and an autoencoder that has diverged has no figures."""
    config = FolderConfig(path=str(shapes_folder), size=4)
    panel = held_out.ReconstructionPanel(open_dataset(config), config, np.arange(5))
    autoencoder = create_trainable(
        AutoencoderConfig(KLNetworkConfig(widths=(4, 4), norm_groups=2), GaussianConfig(channels=2)),
        image=(3, 4, 4),
    )
    found = panel.draw(autoencoder, tmp_path / "panel.png")
    assert set(found) == {"panel_psnr", "encoder_jacobian"}
    with torch.no_grad():
        next(autoencoder.network.parameters()).fill_(math.nan)
    assert panel.draw(autoencoder, tmp_path / "panel.png") == {}


def test_drawing_a_panel_leaves_no_gradient_and_no_random_state_behind(
    finished_vae: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    config = FolderConfig(path=str(shapes_folder), size=16)
    panel = held_out.ReconstructionPanel(open_dataset(config), config, np.arange(5))
    autoencoder, before = Autoencoder.load(finished_vae), torch.get_rng_state()
    first, again = (panel.draw(autoencoder, tmp_path / "panel.png") for _ in range(2))
    assert first == again and torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in autoencoder.parameters())
