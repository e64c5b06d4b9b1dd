"""Feature networks: which names their metrics may bear, and which images they take."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torchvision.models import squeezenet1_1

from ldm.errors import CheckpointError
from ldm.evaluation.feature_networks import open_extractor, open_perceptual_metric
from ldm.nn import inception
from tests.support.backbones import random_alexnet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for Inception that are not the official ones: nothing but small numbers."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object) -> None:
            pass

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, file)
    with torch.device("meta"):
        shapes = Blank("inception", ["2048"], feature_extractor_weights_path=str(file)).state_dict()
    draw = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(value.shape, generator=draw).abs() * 0.1 if value.is_floating_point() else torch.tensor(0)
        for name, value in shapes.items()
    }
    torch.save(values, file)
    return file


def images(channels: int) -> torch.Tensor:
    return torch.rand(2, channels, 16, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_only_official_inception_on_gray_or_rgb_images_may_be_called_rfid_and_kid(weights, monkeypatch):
    other = open_extractor("inception", str(weights), 3, CPU)
    assert other is not None
    assert (other.frechet_name, other.kernel_name) == ("frechet_inception", "kernel_distance_inception")
    assert other.features(images(3)).shape == (2, 2048)
    monkeypatch.setattr(inception, "OFFICIAL", other.reference[:8])
    opened = [open_extractor("inception", str(weights), channels, CPU) for channels in (1, 3, 4)]
    assert [each and each.frechet_name for each in opened] == ["rfid", "rfid", "frechet_inception"]
    assert [each and each.kernel_name for each in opened] == ["kid", "kid", "kernel_distance_inception"]


def test_what_is_not_inception_is_refused(tmp_path):
    file = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"other\.pth does not fit"):
        open_extractor("inception", str(file), 3, CPU)
    torch.save({"weight": Path("anything")}, file)  # an object: it would be unpickled
    with pytest.raises(CheckpointError, match="more than named tensors"):
        open_extractor("inception", str(file), 3, CPU)


@pytest.mark.parametrize(("channels", "dimensions"), [(1, 256), (3, 256), (4, 512), (5, 512)])
def test_images_of_any_channels_have_features_and_distances(channels, dimensions):
    alexnet = str(random_alexnet())
    extractor, metric = open_extractor("alex", alexnet, channels, CPU), open_perceptual_metric("alex", alexnet, CPU)
    assert extractor is not None and metric is not None
    names = extractor.frechet_name, extractor.kernel_name, metric.name
    assert names == ("frechet_alex", "kernel_distance_alex", "lpips_alex")
    assert extractor.features(images(channels)).shape == (2, dimensions)
    assert metric.measure(images(channels), images(channels)).tolist() == [0, 0]
    assert (metric.measure(images(channels), -images(channels)) > 0).all()


def test_a_distance_without_learned_weights_is_not_called_lpips(tmp_path):
    torch.manual_seed(0)
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"architecture": "squeezenet1_1", "library": "torchvision", "pretrained_cfg": pixels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(squeezenet1_1(weights=None).state_dict(), tmp_path / "model.safetensors")
    metric = open_perceptual_metric("features", str(tmp_path), CPU)
    assert metric is not None and metric.name == "feature_distance_squeezenet1_1"


def test_none_opens_no_network():
    assert open_perceptual_metric("none", "", CPU) is None and open_extractor("none", "", 3, CPU) is None
