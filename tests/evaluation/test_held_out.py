"""The baselines beside which an autoencoder is held."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, KLNetworkConfig
from ldm.autoencoder.model import create_trainable
from ldm.data.config import FolderConfig
from ldm.data.datasets import Subset, open_dataset
from ldm.evaluation import held_out
from ldm.export import finalize
from ldm.shapes import Images
from ldm.training.processes import Processes
from tests.support.scripts import together


def test_pca_of_large_images_does_not_take_all_memory_at_the_end_of_a_run(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(FolderConfig(path=str(shapes_folder), size=16))
    training, others, latent = Subset(dataset, list(range(50))), Subset(dataset, list(range(50, 60))), (2, 8, 8)
    sizes: list[int] = []
    whole = Subset.images

    def counted(subset: Subset) -> Images:
        images = whole(subset)
        sizes.append(images.numel())
        return images

    monkeypatch.setattr(Subset, "images", counted)
    held_out.pca_baselines(training, others, latent)
    assert sizes == [50 * 768, 10 * 768]
    monkeypatch.setattr(held_out, "MAX_VALUES_FOR_PCA", 9 * 768)
    baselines = held_out.pca_baselines(training, others, latent)
    assert max(sizes[2:]) <= 9 * 768
    assert baselines["pca_psnr"] is None and baselines["patch_pca_psnr"] is not None


def test_two_processes_measure_bit_for_bit_what_one_does(shapes_folder: Path) -> None:
    dataset = open_dataset(FolderConfig(path=str(shapes_folder), size=16))
    images, cpu = Subset(dataset, list(range(60)) * 3), torch.device("cpu")
    torch.manual_seed(0)
    network, bottleneck = KLNetworkConfig(widths=(8, 8), norm_groups=4), GaussianConfig(channels=2)
    model = create_trainable(AutoencoderConfig(network, bottleneck), image=(3, 16, 16)).eval()

    def metrics(spread: held_out.Spread) -> list[object]:
        statistics = held_out.latent_statistics(model, images, cpu, spread)
        sampled = held_out.held_out_psnr_of_sample(model, images, cpu, spread)
        return [
            *statistics.mean.tolist(),
            *statistics.std.tolist(),
            sampled,
            held_out.held_out_psnr(model, images, cpu, spread),
        ]

    def work() -> int:
        processes = Processes("cpu")
        print(metrics(processes.map), processes.count)
        return 0

    expected = f"{metrics(held_out.alone)} 2"
    outcomes = together([work] * 2)
    assert [outcome.out.strip() for outcome in outcomes] == [expected] * 2, outcomes


def test_of_very_many_images_a_sample_is_measured_and_it_is_said(shapes_folder, monkeypatch) -> None:
    images, lines = Subset(open_dataset(FolderConfig(path=str(shapes_folder), size=16)), list(range(60))), []
    run = SimpleNamespace(print=lines.append)
    assert len(finalize.measured(run, images, "training")) == 60 and not lines
    monkeypatch.setattr(finalize, "MOST_MEASURED", 7)
    assert finalize.measured(run, images, "training").indices == [0, 9, 19, 29, 39, 49, 59]
    assert lines == ["of the 60 training images 7 are measured, evenly spaced"]
