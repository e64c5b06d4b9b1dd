"""The baselines beside which an autoencoder is held."""

from pathlib import Path

import pytest

from ldm.data.config import FolderConfig
from ldm.data.datasets import Subset, open_dataset
from ldm.evaluation import held_out
from ldm.shapes import Images


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
