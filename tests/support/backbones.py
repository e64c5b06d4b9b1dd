"""A backbone for perceptual losses without a download: AlexNet with weights of a fixed seed."""

import tempfile
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from torch import nn


@cache
def random_alexnet() -> Path:
    """A file of weights as `--objective.perceptual.weights-file` takes it; the same bytes on every machine."""
    from torchvision.models import alexnet

    with torch.device("meta"):
        network = alexnet(weights=None).features
    network, generator = network.to_empty(device="cpu"), torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)
    tensors = {f"features.{name}": value for name, value in network.state_dict().items()}
    file = Path(tempfile.mkdtemp(prefix="ldm-tests-")) / "alexnet.safetensors"
    safetensors.torch.save_file(tensors, file)
    return file
