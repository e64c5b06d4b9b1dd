"""Pretrained backbones: networks as a series of feature maps, for perceptual losses and metrics."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldm.errors import CheckpointError, ConfigError
from ldm.nn.pretrained_weights import in_torch_cache, read_weights, sha256_of
from ldm.shapes import Images, full_precision

IMAGENET = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # mean and std of the pixels, as torchvision's networks saw them
PROBE = 150, 90  # height and width of the picture on which a network of a folder is tried; no multiples of 16


class Backbone(nn.Module):
    """A frozen network that turns images into its feature maps; always in evaluation mode, never trained.

    `name` is its architecture. `reference` is the beginning of the sha256 of its weights and preprocessing: distances
    can be compared where it is the same.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, name: str, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.name, self.network = name, network
        # They are of pixels in [0, 1], and ours are in [-1, 1].
        self.register_buffer("shift", 2 * torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1) - 1)
        self.register_buffer("scale", 2 * torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.requires_grad_(False).float().train()  # float32 whatever the default is: so were the weights learned
        self.reference = sha256_of(self.state_dict())[:16]

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, images: Images) -> list[Tensor]:
        """The feature maps (batch channels height width) of RGB images, shallow to deep. Nothing is clamped."""
        maps = self.network((images.to(self.shift.dtype) - self.shift) / self.scale)
        return list(maps.values() if isinstance(maps, Mapping) else maps)

    def pooled(self, images: Images) -> Tensor:
        """The deepest map averaged over space: one row of features per image."""
        return full_precision(self(images)[-1]).mean((2, 3))


def open_backbone(kind: str, weights: str = "") -> Backbone:
    """The network of that kind; `weights` is a file, or for `features` a folder, or empty for where torch keeps them.

    Nothing in a file or folder is executed. The global random state stays as it is.
    """
    if kind not in BACKBONES:
        raise ConfigError(f"there is no backbone {kind}: choose one of {', '.join(BACKBONES)}")
    with _quietly():
        return BACKBONES[kind](kind, weights)


@contextmanager
def _quietly() -> Iterator[None]:
    """No warnings of other people's constructors, and no random numbers of ours for their initial weights."""
    talkative = logging.getLogger("timm")
    before = talkative.level
    talkative.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        talkative.setLevel(before)


def _fit(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, name: str) -> None:
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2][:120]
        raise CheckpointError(f"{path} does not fit {name} ({reason})") from error


# The networks of LPIPS


def _slices(kind: str) -> nn.Module:
    """The lpips package's network, without memory for its weights: most of those it would draw are not in it."""
    from lpips import pretrained_networks

    with torch.device("meta"):
        return getattr(pretrained_networks, {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet"}[kind])(
            pretrained=False
        )


def _pretrained(kind: str, weights: str) -> Backbone:
    """vgg, alex or squeeze with torchvision's weights for ImageNet."""
    path = Path(weights) if weights else _torchvision_file(kind)
    network, tensors = _slices(kind), read_weights(path)
    sources = {name: f"features.{name.partition('.')[2]}" for name in network.state_dict()}  # slice2.3.bias: features.3
    _fit(network, {name: tensors[source] for name, source in sources.items() if source in tensors}, path, kind)
    return Backbone(kind, network, *IMAGENET)


def _torchvision_file(kind: str) -> Path:
    """Where torch keeps the weights; they are downloaded if they are not there yet."""
    from torchvision.models import get_weight

    names = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}
    url = get_weight(f"{names[kind]}.IMAGENET1K_V1").url
    remedy = "name it with --objective.perceptual.weights-file PATH, or choose the backbone features"
    return in_torch_cache(url, Path(url).stem.rpartition("-")[2], f"backbone {kind}", remedy)


# Any network, from a folder


def _features(kind: str, weights: str) -> Backbone:
    """The network of a folder with config.json and weights, as timm publishes them; also one of torchvision's."""
    folder = Path(weights)
    config = _config(folder)
    name, library = config["architecture"], config.get("library", "timm")
    if library not in LIBRARIES:
        raise ConfigError(f"{folder / 'config.json'}: library is {' or '.join(LIBRARIES)}, not {library!r}")
    network = LIBRARIES[library](config, folder)
    backbone = Backbone(name, network, *(config["pretrained_cfg"][key] for key in ("mean", "std")))
    try:
        with torch.no_grad():
            maps = backbone(torch.zeros(1, 3, *PROBE))
    except Exception as error:  # of many types
        raise ConfigError(f"{folder}: {name} does not take images of any size; choose a convolutional one") from error
    if not maps or not all(map(_is_picture, maps)):
        raise ConfigError(f"{folder}: {name} gives no feature maps of batch, channels, height, width")
    return backbone


def _is_picture(features: Any) -> bool:
    """Whether they are features of PROBE in the proportions of PROBE, up to rounding: height and width come last."""
    height, width = PROBE
    shape = features.shape if isinstance(features, Tensor) else ()
    return len(shape) == 4 and abs(shape[2] * width - shape[3] * height) <= height


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} is not a folder of features: it has no config.json")
    try:
        config = dict(json.loads(path.read_text()))
        str.strip(config["architecture"])  # a TypeError if it is not text
        range(config.get("num_classes", 0))  # and here if it is not a whole number
        mean, std = (torch.tensor(config["pretrained_cfg"][key]) for key in ("mean", "std"))
        if mean.shape != (3,) or std.shape != (3,) or not bool((std > 0).all()):
            raise ValueError("three numbers each")
    except (ValueError, TypeError, KeyError) as error:
        wanted = '{"architecture": ..., "pretrained_cfg": {"mean": [r, g, b], "std": [r, g, b]}}'
        raise ConfigError(f"{path} is not what timm writes: {wanted}") from error
    return config


def _weights_of(folder: Path) -> Path:
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".pth", ".bin")]
    preferred = [file for file in files if file.name == "model.safetensors"] or files
    if len(preferred) != 1:
        raise ConfigError(f"{folder} holds {len(files)} files of weights: it should hold one, model.safetensors")
    return preferred[0]


def _filled(create: Callable[..., nn.Module], config: Mapping[str, Any], folder: Path) -> nn.Module:
    """The whole network, classifier and all, with the folder's weights: none may be missing, and none too many."""
    classes = {"num_classes": config["num_classes"]} if "num_classes" in config else {}
    network, path = create(config["architecture"], **classes), _weights_of(folder)
    _fit(network, read_weights(path), path, config["architecture"])
    return network


def _timm(config: Mapping[str, Any], folder: Path) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{folder} holds a network of timm, which is not installed: pip install timm") from error
    name = config["architecture"]
    if not timm.is_model(name):
        raise ConfigError(f"{folder / 'config.json'}: timm has no architecture {name!r}")
    # Without its head timm would accept weights that lack others too, so the whole network has them checked first.
    whole = _filled(timm.create_model, config, folder)
    try:
        return timm.create_model(
            name, features_only=True, pretrained=True, pretrained_cfg_overlay={"state_dict": whole.state_dict()}
        )
    except Exception as error:  # of many types
        raise ConfigError(f"{folder}: timm gives no feature maps of {name}") from error


def _torchvision(config: Mapping[str, Any], folder: Path) -> nn.Module:
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    name = config["architecture"]
    if name not in models.list_models(module=models):
        raise ConfigError(f"{folder / 'config.json'}: torchvision.models has no architecture {name!r}")
    network = _filled(lambda name, **classes: models.get_model(name, weights=None, **classes), config, folder)
    try:
        return create_feature_extractor(network.eval(), config.get("features") or _deepest_of_each_size(network))
    except Exception as error:  # of many types
        raise ConfigError(f"{folder}: {name} gives no feature maps (features: {config.get('features')})") from error


def _deepest_of_each_size(network: nn.Module) -> list[str]:
    """Names of the last map of every resolution, largest first; what is pooled to 1 x 1 or 7 x 7 is none."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    names = get_graph_node_names(network)[1][1:]  # the first is the image
    with torch.no_grad():
        maps = create_feature_extractor(network, names)(torch.zeros(1, 3, *PROBE))
    deepest = {maps[name].shape[3]: name for name in names if _is_picture(maps[name]) and maps[name].shape[3] > 1}
    return [name for _, name in sorted(deepest.items(), reverse=True)]


LIBRARIES: dict[str, Callable[[Mapping[str, Any], Path], nn.Module]] = {"timm": _timm, "torchvision": _torchvision}

BACKBONES: dict[str, Callable[[str, str], Backbone]] = {
    "vgg": _pretrained,
    "alex": _pretrained,
    "squeeze": _pretrained,
    "features": _features,
}
