"""The figures beside which an autoencoder is held."""

from pathlib import Path

import pytest

from ldm import evaluation
from ldm.data.datasets import open_dataset
from ldm.data.settings import Folder


def test_pca_of_large_images_does_not_take_all_memory_at_the_end_of_a_run(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Folder(path=str(shapes_folder), size=16)
    dataset = open_dataset(settings)
    train, held_out, latent = list(range(50)), list(range(50, 60)), (2, 8, 8)
    sizes: list[int] = []
    whole = evaluation.plain_images

    def counted(*arguments):
        images = whole(*arguments)
        sizes.append(images.numel())
        return images

    monkeypatch.setattr(evaluation, "plain_images", counted)
    evaluation.pca_figures(dataset, settings, train, held_out, latent)
    assert sizes == [50 * 768, 10 * 768]
    monkeypatch.setattr(evaluation, "VALUES_FOR_PCA", 9 * 768)
    figures = evaluation.pca_figures(dataset, settings, train, held_out, latent)
    assert max(sizes[2:]) <= 9 * 768
    assert figures["pca_psnr"] is None and figures["patch_pca_psnr"] is not None
