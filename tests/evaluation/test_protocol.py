"""The protocol on autoencoders whose metrics are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder.bottleneck import GaussianBottleneck
from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, LinearNetworkConfig, SparseConfig
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder, create, create_pixels
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.data.config import FolderConfig
from ldm.data.datasets import Subset, open_dataset
from ldm.errors import CheckpointError
from ldm.evaluation.feature_networks import open_extractor, open_perceptual_metric
from ldm.evaluation.held_out import held_out_psnr, pca_baselines
from ldm.evaluation.measurements import EvaluationSet
from ldm.evaluation.protocol import evaluate
from ldm.training.processes import Processes
from tests.support.backbones import random_alexnet

CPU = torch.device("cpu")


class Squares(AutoencoderNetwork):
    """Moves every 2 x 2 square of pixels into 12 channels and back, and the decoder adds an error."""

    downsampling, image_channels = (2, 2), 3

    def __init__(self, error: float):
        super().__init__()
        self.error = nn.Parameter(torch.tensor(error))

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        means = F.pixel_unshuffle(images, 2)
        return torch.cat([means, torch.full_like(means, -30.0)], 1)

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return F.pixel_shuffle(latents, 2) + self.error


def squares(error: float) -> Autoencoder:
    return Autoencoder(Squares(error), GaussianBottleneck(GaussianConfig(channels=12)))


@pytest.fixture(scope="module")
def everything(shapes_folder: Path) -> EvaluationSet:
    dataset = open_dataset(FolderConfig(path=str(shapes_folder), size=16))
    return EvaluationSet("all", Subset(dataset, list(range(60))), Subset(dataset, []))


@pytest.fixture(scope="module")
def halves(everything: EvaluationSet) -> EvaluationSet:
    """The same drawings, every third of them measured and the others trained on."""
    dataset = everything.images.dataset
    training = Subset(dataset, [index for index in range(60) if index % 3])
    return EvaluationSet("held-out", everything.images.every(3), training)


def metrics(error: float, evaluated: EvaluationSet, processes: Processes) -> dict:
    alexnet = str(random_alexnet())
    metric, extractor = open_perceptual_metric("alex", alexnet, CPU), open_extractor("alex", alexnet, 3, CPU)
    return evaluate(squares(error), evaluated, processes, metric=metric, extractor=extractor)["metrics"]


def test_an_autoencoder_that_loses_nothing_has_the_best_metrics(everything, processes):
    """Nothing, that is, of 8 bits: an error below half a level is rounded away."""
    for error in (0.0, 0.9 / 255):
        found = metrics(error, everything, processes)
        assert found["psnr"] == 100 and found["ssim"] == pytest.approx(1, abs=1e-9)
        assert found["lpips_alex"] == pytest.approx(0, abs=1e-9)
        assert found["frechet_alex"] == pytest.approx(0, abs=1e-6)


def test_one_level_too_many_everywhere_is_a_known_psnr(everything, processes):
    """20 log10(255): the drawings have no pixel so bright that it is clipped."""
    found = metrics(2 / 255, everything, processes)
    assert found["psnr"] == pytest.approx(48.1308, abs=1e-3)
    assert 0.9 < found["ssim"] < 1 and found["frechet_alex"] > 0


@pytest.mark.parametrize("error", [0.0, 0.9 / 255, 2 / 255, 0.1])
def test_held_out_psnr_at_the_end_of_a_run_is_that_of_the_protocol(everything, processes, error):
    found = evaluate(squares(error), everything, processes)["metrics"]["psnr"]
    assert held_out_psnr(squares(error), everything.images, CPU) == pytest.approx(found, abs=1e-9)


def test_a_constant_code_of_the_pixels_moves_with_them(everything, processes):
    """Each latent is a pixel: a unit of noise moves it by one over the standard deviation of the pixels."""
    report = evaluate(squares(0.0), everything, processes)["metrics"]
    expected = sum(std**-2 for std in report["latent_std"]) / 12
    assert report["encoder_jacobian"] == pytest.approx(expected**0.5, rel=0.1)  # on fewer images


def test_the_cut_into_batches_changes_nothing(everything, processes):
    whole, cut = (evaluate(squares(0.01), everything, processes, batch_size=size) for size in (60, 7))
    assert cut["reference"] == whole["reference"] and cut["count"] == whole["count"] == 60
    for name, value in whole["metrics"].items():
        if value is not None:  # no baselines
            assert cut["metrics"][name] == pytest.approx(value, rel=1e-6), name


def test_the_weights_are_named_by_their_hash(everything, processes):
    first, again, other = (
        evaluate(squares(error), everything, processes)["autoencoder"]["sha256"] for error in (0.0, 0.0, 0.5)
    )
    assert first == again != other


def test_an_autoencoder_that_gives_no_numbers_is_refused(everything, processes):
    with pytest.raises(CheckpointError, match="not finite"):
        evaluate(squares(float("nan")), everything, processes)


def test_variance_is_explained_as_far_as_the_error_is_smaller_than_it(everything, processes):
    images = ((everything.images.images().double() + 1) * 127.5).round()
    around = (images - images.mean(0)).square().sum().item()
    for level in (0, 1):  # more would be clipped
        found = evaluate(squares(2 * level / 255), everything, processes)["metrics"]["explained_variance"]
        assert found == pytest.approx(1 - level**2 * images.numel() / around, abs=1e-9)


def test_no_variance_is_explained_where_there_is_none(everything, processes):
    one = replace(everything, images=Subset(everything.images.dataset, [5]))
    assert evaluate(squares(0.0), one, processes)["metrics"]["explained_variance"] is None


def sparse(image: tuple[int, int, int], k: int) -> Autoencoder:
    torch.manual_seed(0)
    bottleneck = SparseConfig(channels=40, k=k)
    return create(AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=bottleneck), image=image).eval()


def test_of_a_sparse_code_the_elements_and_the_units_that_are_not_0_are_counted(halves, processes):
    autoencoder = sparse((3, 16, 16), 4)
    autoencoder.standardize(torch.full((40,), 0.3), torch.full((40,), 2.0))  # after which nothing is 0
    with torch.no_grad():
        images = halves.images.images()
        code = autoencoder.network.encode(images).relu()[:, :, 0, 0].numpy()
    code[np.argsort(np.argsort(-code, 1), 1) >= 4] = 0
    report = evaluate(autoencoder, halves, processes, batch_size=7)
    assert report["autoencoder"]["bottleneck"] == "sparse"
    assert report["metrics"]["code_l0"] == pytest.approx((code != 0).sum(1).mean())
    assert report["metrics"]["dead_units"] == pytest.approx((code == 0).all(0).mean()) and (code == 0).all(0).any()


def test_a_dense_code_has_all_its_elements(everything, processes):
    found = evaluate(squares(0.0), everything, processes)["metrics"]
    assert found["code_l0"] == 12 * 8 * 8 and found["dead_units"] == 0  # no pixel of 8 bits is 0 in [-1, 1]


def test_the_kl_of_a_deterministic_code_is_not_defined(halves, processes):
    assert evaluate(sparse((3, 16, 16), 0), halves, processes)["metrics"]["kl_per_latent_element"] is None


@pytest.mark.parametrize("size", [16, (12, 18)])
def test_where_one_patch_is_the_whole_image_there_is_one_pca(shapes_folder, processes, size):
    config = FolderConfig(path=str(shapes_folder), size=size)
    dataset = open_dataset(config)
    evaluated = EvaluationSet("held-out", Subset(dataset, list(range(9))), Subset(dataset, list(range(9, 60))))
    found = evaluate(sparse(config.shape, 0), evaluated, processes)["metrics"]
    expected = pca_baselines(evaluated.training, evaluated.images, (40, 1, 1))
    assert found["pca_psnr"] == expected["pca_psnr"] is not None
    assert found["patch_pca_psnr"] is expected["patch_pca_psnr"] is None


def test_probes_of_latents_that_are_the_pixels_find_what_probes_of_the_pixels_find(halves, processes):
    autoencoder, statistics = create_pixels((3, 16, 16)), LatentStatistics()
    statistics.add(autoencoder.encode(halves.training.images()))
    autoencoder.standardize(statistics.mean, statistics.std)
    report = evaluate(autoencoder, halves, processes, probe="flat")
    found, probe = report["metrics"], report["protocol"]["probe"]
    for name in ("knn_accuracy", "linear_accuracy"):
        assert found[name] == found[f"pixel_{name}"] > 0.5
    assert probe["features"] == "flat" and probe["dimensions"] == probe["pixel_dimensions"] == 3 * 16 * 16
    assert probe["training_images"] == 40 and probe["neighbors"] == 20


def test_the_mean_of_each_channel_is_what_the_mean_probe_is_given(halves, processes):
    """The brightness of the whole drawing in its 12 channels says little of its shape."""
    report = evaluate(squares(0.0), halves, processes, probe="mean", batch_size=7)
    assert report["protocol"]["probe"]["dimensions"] == 12
    whole = evaluate(squares(0.0), halves, processes, probe="mean")
    for name in ("knn_accuracy", "linear_accuracy", "pixel_knn_accuracy", "pixel_linear_accuracy"):
        assert report["metrics"][name] == whole["metrics"][name]


def test_progress_counts_the_images_that_probes_are_fitted_to(halves, processes):
    done: list[int] = []
    evaluate(squares(0.0), halves, processes, probe="flat", on_images=done.append)
    assert sum(done) == 20 + 40


def test_without_a_probe_none_is_named(halves, processes):
    report = evaluate(squares(0.0), halves, processes)
    assert report["protocol"]["probe"] is None and "knn_accuracy" not in report["metrics"]
