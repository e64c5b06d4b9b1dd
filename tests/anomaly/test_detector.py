"""The anomaly detector: fitted, saved, opened again, and what it says of images."""

import shutil
from pathlib import Path

import pytest
import torch

import ldm
from ldm.anomaly.config import DetectorConfig
from ldm.anomaly.detector import AnomalyDetector, AnomalyScores
from ldm.anomaly.subject import TrainedModel, open_subject
from ldm.autoencoder.config import AutoencoderConfig, IdentityConfig, ViTNetworkConfig
from ldm.autoencoder.model import Autoencoder, create
from ldm.data.datasets import Subset
from ldm.errors import CheckpointError, ConfigError, DataError
from ldm.training.processes import Processes
from tests.support.diffusion_models import IMAGE, diffusion_model, kl_autoencoder
from tests.support.normal_images import data_of, subspace_images

SHAPE = (1, 12, 12)
EVERY = DetectorConfig(scores=("all",), alpha=0.2, draws=1, sigmas=(0.5, 1.0), hidden_sets=2)


@pytest.fixture(scope="module")
def normal() -> Subset:
    return data_of(subspace_images(120, SHAPE))


@pytest.fixture(scope="module")
def detector(normal: Subset) -> AnomalyDetector:
    return AnomalyDetector.fit("pca:3", normal, EVERY, processes=Processes("cpu"))


def model_of(kind: str) -> TrainedModel:
    """A trained model in miniature, for images of IMAGE."""
    if kind == "vit":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = ViTNetworkConfig(patch=4, width=8, heads=2, depth=1, decoder_width=8, decoder_heads=2)
            autoencoder = create(AutoencoderConfig(network, IdentityConfig(channels=8)), image=IMAGE)
        return TrainedModel("vit", autoencoder, None, masks=True)
    if kind == "kl":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return TrainedModel("kl", kl_autoencoder(), None, masks=False)
    model = diffusion_model(kind.removeprefix("diffusion-"))
    return TrainedModel(kind, model.autoencoder, model.denoiser, masks=False)


SCORES_OF = {
    "vit": ["reconstruction", "reconstruction-l1", "reconstruction-ssim", "latent-density", "pixel-density", "masked"],
    "kl": ["reconstruction", "reconstruction-l1", "reconstruction-ssim", "latent-density", "pixel-density", "elbo"],
    "diffusion-tiny": [
        "reconstruction",
        "reconstruction-l1",
        "reconstruction-ssim",
        "denoising",
        "latent-density",
        "pixel-density",
    ],
    "diffusion-pixels": ["denoising", "latent-density", "pixel-density"],
}


@pytest.mark.parametrize("kind", SCORES_OF)
def test_every_score_of_every_kind_of_model_is_finite_and_of_the_image_alone(kind: str) -> None:
    images = subspace_images(60, IMAGE)
    detector = AnomalyDetector.fit(model_of(kind), data_of(images), EVERY, processes=Processes("cpu"))
    assert detector.scores == SCORES_OF[kind]
    whole = detector.score(images[:7])
    parts = AnomalyScores.joined([detector.score(part) for part in images[:7].flip(0).split(3)])
    assert whole.pred_score.isfinite().all() and whole.anomaly_map is not None
    assert whole.anomaly_map.shape == (7, 1, *IMAGE[1:])
    for name, values in whole.parts.items():
        assert values.std() > 0
        torch.testing.assert_close(parts.parts[name].flip(0), values, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts.pred_score.flip(0), whole.pred_score, rtol=1e-3, atol=1e-5)
    assert torch.equal(detector.score(images[:7]).pred_score, whole.pred_score)


def test_an_image_off_the_subspace_is_an_anomaly_where_it_is_off(detector: AnomalyDetector) -> None:
    odd = subspace_images(20, SHAPE, seed=1)
    odd[:10, :, 2:5, 6:9] += 0.5
    found = detector.score(odd)
    assert found.pred_label[:10].all() and found.pred_label[10:].float().mean() < 0.6
    assert found.pred_score[:10].min() > found.pred_score[10:].max()
    assert found.anomaly_map is not None and found.pred_mask is not None
    inside = found.anomaly_map[:10, 0, 2:5, 6:9].mean()
    assert inside > 3 * found.anomaly_map[:10].std() + found.anomaly_map[:10].mean() or inside > 2
    assert found.pred_mask[:10, 0, 3, 7].float().mean() > 0.8
    assert found.p_value[:10].max() <= 0.2


def test_fitting_again_and_with_another_batch_gives_the_same_detector(
    normal: Subset, detector: AnomalyDetector
) -> None:
    again = AnomalyDetector.fit("pca:3", normal, EVERY, processes=Processes("cpu"))
    assert again.threshold == detector.threshold and again.map_threshold == detector.map_threshold
    other = AnomalyDetector.fit("pca:3", normal, EVERY, processes=Processes("cpu"), batch_size=7)
    assert other.threshold == pytest.approx(detector.threshold, rel=1e-4)


@pytest.mark.parametrize("pool", ["mean", "max", "top"])
def test_a_saved_detector_says_the_same(pool: str, normal: Subset, tmp_path: Path) -> None:
    config = DetectorConfig(scores=("reconstruction", "latent-density"), alpha=0.1, pool=pool)  # type: ignore[arg-type]
    detector = ldm.AnomalyDetector.fit("pca:3", normal, config, processes=Processes("cpu"))
    detector.save(tmp_path / "detector")
    opened = ldm.AnomalyDetector.load(tmp_path / "detector", device="cpu")
    assert opened.config == config and opened.facts == detector.facts
    images = normal.images()[:5]
    first, second = detector.score(images), opened.score(images)
    assert torch.equal(first.pred_score, second.pred_score) and torch.equal(first.p_value, second.p_value)
    assert first.anomaly_map is not None and second.anomaly_map is not None
    assert torch.equal(first.anomaly_map, second.anomaly_map)
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        detector.save(tmp_path / "detector")


def test_a_detector_of_other_weights_is_refused(tmp_path: Path) -> None:
    normal, model = data_of(subspace_images(60, IMAGE)), model_of("diffusion-tiny")
    config = DetectorConfig(scores=("reconstruction",), alpha=0.2)
    detector = AnomalyDetector.fit(model, normal, config, processes=Processes("cpu"))
    detector.save(tmp_path / "detector")
    assert AnomalyDetector.load(tmp_path / "detector", model=model).threshold == detector.threshold
    with pytest.raises(CheckpointError, match="fitted with other weights than those in kl"):
        AnomalyDetector.load(tmp_path / "detector", model=model_of("kl"))
    with pytest.raises(CheckpointError, match="cannot be opened; name it if it has moved"):
        AnomalyDetector.load(tmp_path / "detector")
    (tmp_path / "detector" / "detector.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"the detector in .* is damaged"):
        AnomalyDetector.load(tmp_path / "detector", model=model)
    shutil.rmtree(tmp_path / "detector")
    with pytest.raises(CheckpointError, match=r"is not a detector: it has no detector\.json"):
        AnomalyDetector.load(tmp_path / "detector")


def test_a_detector_of_four_components_took_eight_for_its_own(normal: Subset, tmp_path: Path) -> None:
    config = DetectorConfig(scores=("reconstruction",), alpha=0.1)
    AnomalyDetector.fit("pca:4", normal, config, processes=Processes("cpu")).save(tmp_path / "detector")
    with pytest.raises(CheckpointError, match="fitted with another number of components than pca:8 has"):
        AnomalyDetector.load(tmp_path / "detector", model="pca:8")
    assert AnomalyDetector.load(tmp_path / "detector", model="pca:4").scorer.subject.source == "pca:4"


def test_a_saved_autoencoder_is_found_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = model_of("diffusion-tiny").autoencoder
    autoencoder.save(tmp_path / "vae")
    monkeypatch.chdir(tmp_path)
    subject = open_subject("vae")
    normal = data_of(subspace_images(40, IMAGE))
    config = DetectorConfig(scores=("reconstruction",), alpha=0.2)
    detector = AnomalyDetector.fit(subject, normal, config, processes=Processes("cpu"))
    detector.save("detector")
    monkeypatch.chdir(tmp_path.parent)
    assert AnomalyDetector.load(tmp_path / "detector", device="cpu").threshold == detector.threshold


def test_a_score_that_is_not_finite_makes_an_anomaly_and_is_named(detector: AnomalyDetector, normal: Subset) -> None:
    images = normal.images()[:3]
    images[1, 0, 0, 0] = torch.nan
    found = detector.score(images)
    assert found.pred_score[1] == torch.inf and found.pred_label[1]
    assert "reconstruction" in found.not_finite[1] and not found.not_finite[0]
    assert found.p_value[1] == found.p_value.min()
    broken = data_of(torch.cat([normal.images()[:60], images[1:2].expand(60, -1, -1, -1)]))
    with pytest.raises(DataError, match=r"normal images is not a finite number, for instance of 00"):
        AnomalyDetector.fit(model_of_pixels(), broken, DetectorConfig(alpha=0.2), processes=Processes("cpu"))


def model_of_pixels() -> TrainedModel:
    """An autoencoder of one channel that any image can be given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViTNetworkConfig(patch=4, width=8, heads=2, depth=1, decoder_width=8, decoder_heads=2)
        config = AutoencoderConfig(network, IdentityConfig(channels=8))
        autoencoder: Autoencoder = create(config, image=SHAPE)
    return TrainedModel("vit", autoencoder, None, masks=False)


def test_too_few_calibration_images_are_refused_before_anything_is_computed(normal: Subset) -> None:
    few = Subset(normal.dataset, normal.indices[:40])
    config = DetectorConfig(scores=("reconstruction",), alpha=0.01)
    message = r"12 calibration images cannot hold .* 0.01: give at least 99 .* \(40 normal images: 20 for densities"
    with pytest.raises(DataError, match=message):
        AnomalyDetector.fit("pca:3", few, config, processes=Processes("cpu"))
    with pytest.raises(DataError, match="1 of 3 normal images are left to standardize"):
        AnomalyDetector.fit("pca:3", Subset(normal.dataset, [1, 2, 3]), config, processes=Processes("cpu"))
    with pytest.raises(DataError, match=r"pca:100 needs more than 100 normal images"):
        AnomalyDetector.fit("pca:100", normal, EVERY, processes=Processes("cpu"))


def test_images_of_another_shape_are_refused(detector: AnomalyDetector, normal: Subset) -> None:
    with pytest.raises(
        DataError, match="images of 12, 3 channels were given to a detector of images of 12, 1 channels"
    ):
        detector.score(torch.zeros(2, 3, 12, 12))
    with pytest.raises(DataError, match="the images have 1 channels, and kl takes 3"):
        AnomalyDetector.fit(model_of("kl"), normal, EVERY, processes=Processes("cpu"))


@pytest.mark.parametrize("source", ["pca:", "pca:x", "pca:0"])
def test_a_number_of_components_is_needed(source: str) -> None:
    with pytest.raises(ConfigError, match="takes a number of principal components"):
        open_subject(source)


def test_scores_without_places_have_no_map() -> None:
    config = DetectorConfig(scores=("latent-density",), alpha=0.2)
    normal = data_of(subspace_images(60, SHAPE))
    detector = AnomalyDetector.fit("pca:3", normal, config, processes=Processes("cpu"))
    found = detector.score(normal.images()[:2])
    assert found.anomaly_map is None and found.pred_mask is None and detector.map_threshold is None


def test_a_stock_autoencoder_folder_is_opened(tmp_path: Path) -> None:
    kl_autoencoder().save(tmp_path / "stock")
    assert open_subject(tmp_path / "stock").missing.keys() == {"denoiser", "hidden patches"}
