"""Autoencoders that diffusers has no class for, as earlier versions of this package exported them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ldm import Autoencoder
from ldm.autoencoder.config import AutoencoderConfig, MLPNetworkConfig, SparseConfig
from ldm.autoencoder.model import create_trainable


def test_a_sparse_autoencoder_of_version_0_1_is_still_read(tmp_path: Path):
    """It called `dead_after` patience, and `last_active` fired; it wrote down what trains, and named the weights as
    diffusers does.
    """
    torch.manual_seed(0)
    config = AutoencoderConfig(network=MLPNetworkConfig(widths=(8,)), bottleneck=SparseConfig(channels=5, dead_after=7))
    autoencoder = create_trainable(config, image=(2, 4, 4)).eval()
    autoencoder.bottleneck.last_active.copy_(torch.arange(5))
    autoencoder.save(tmp_path)
    facts, tensors = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    facts["bottleneck"]["patience"] = facts["bottleneck"].pop("dead_after")
    (tmp_path / "config.json").write_text(json.dumps(facts | {"trains": "all"}))
    tensors["bottleneck.fired"] = tensors.pop("bottleneck.last_active")
    (tmp_path / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    found, images = Autoencoder.load(tmp_path), torch.rand(3, 2, 4, 4)
    assert found.config == config and found.bottleneck.last_active.tolist() == [0, 1, 2, 3, 4]
    assert found.reconstruct(images).equal(autoencoder.reconstruct(images))
