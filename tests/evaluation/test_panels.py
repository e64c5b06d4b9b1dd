"""Panels of reconstructions, drawn during training, and the metrics that are logged with them."""

import json
import math
from pathlib import Path

import numpy as np
import torch

from ldm import Autoencoder
from ldm.autoencoder.config import (
    AutoencoderConfig,
    GaussianConfig,
    KLNetworkConfig,
    LinearNetworkConfig,
    SparseConfig,
)
from ldm.autoencoder.model import create_trainable
from ldm.data.config import FolderConfig
from ldm.data.datasets import Subset, open_dataset
from ldm.evaluation.panels import HeldOutLatents, ReconstructionPanel
from ldm.latents import LatentCache


def panel_of(shapes_folder: Path, size: int) -> ReconstructionPanel:
    return ReconstructionPanel(Subset(open_dataset(FolderConfig(path=str(shapes_folder), size=size)), list(range(5))))


def test_every_panel_logs_what_the_latents_are_like(finished_vae: Path) -> None:
    lines = [json.loads(line) for line in (finished_vae / "metrics.jsonl").read_text().splitlines()]
    (panel,) = [line for line in lines if "panel_psnr" in line]
    names = {"latent_spectrum_slope", "encoder_jacobian"}
    assert names < panel.keys() and all(math.isfinite(panel[name]) for name in names)
    assert panel["encoder_jacobian"] > 0


def test_a_metric_that_is_not_defined_is_left_out(shapes_folder: Path, tmp_path: Path) -> None:
    """Latents of 2 x 2 have no slope, and an autoencoder that has diverged has no metrics."""
    panel = panel_of(shapes_folder, 4)
    autoencoder = create_trainable(
        AutoencoderConfig(KLNetworkConfig(widths=(4, 4), norm_groups=2), GaussianConfig(channels=2)),
        image=(3, 4, 4),
    )
    found = panel.draw(autoencoder, tmp_path / "panel.png")
    assert set(found) == {"panel_psnr", "encoder_jacobian"}
    with torch.no_grad():
        next(autoencoder.network.parameters()).fill_(math.nan)
    assert panel.draw(autoencoder, tmp_path / "panel.png") == {}


def test_the_dictionary_takes_the_place_of_a_panel_of_any_other_name(shapes_folder: Path, tmp_path: Path) -> None:
    config = AutoencoderConfig(LinearNetworkConfig(), SparseConfig(channels=4, k=2))
    panel_of(shapes_folder, 4).draw(create_trainable(config, image=(3, 4, 4)), tmp_path / "panel.png")
    assert {path.name for path in tmp_path.iterdir()} == {"panel.png", "features-panel.png"}


def test_drawing_a_panel_leaves_no_gradient_and_no_random_state_behind(
    finished_vae: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    panel = panel_of(shapes_folder, 16)
    autoencoder, before = Autoencoder.load(finished_vae), torch.get_rng_state()
    first, again = (panel.draw(autoencoder, tmp_path / "panel.png") for _ in range(2))
    assert first == again and torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in autoencoder.parameters())


def test_the_held_out_loss_of_a_large_set_was_that_of_its_first_class(shapes_folder: Path) -> None:
    """Of 60 images, which come class by class, 10 are validated with: 5 of each class, each in a group of its own."""
    dataset = open_dataset(FolderConfig(path=str(shapes_folder), size=8))
    moments = np.arange(60, dtype=np.float32).reshape(1, 60, 1, 1, 1).repeat(4, axis=2)
    cache = LatentCache("", moments, 2, torch.zeros(2, 1, 1), torch.ones(2, 1, 1))
    validation = HeldOutLatents(cache, Subset(dataset, list(range(60))), count=10)
    assert validation.condition.values["label"].tolist() == [0] * 5 + [1] * 5 and len(set(validation.groups)) == 10
    assert validation.latents is not None
    assert [dataset.groups[int(row[0, 0, 0])] for row in validation.latents] == validation.groups
    assert HeldOutLatents(cache, Subset(dataset, [])).groups == []
