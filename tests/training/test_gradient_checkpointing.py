"""Gradient checkpointing: less is kept, and the gradients are the same, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from ldm.autoencoder.config import (
    AutoencoderConfig,
    IdentityConfig,
    KLNetworkConfig,
    MLPNetworkConfig,
    ViTNetworkConfig,
)
from ldm.autoencoder.model import create_trainable
from ldm.autoencoder.networks.kl import KLNetwork
from ldm.autoencoder.networks.vit import ViTNetwork
from ldm.diffusion.config import UNetConfig
from ldm.diffusion.networks.unet import UNet
from ldm.errors import ConfigError
from ldm.training.gradient_checkpointing import blocks, checkpoint_blocks

SHAPES = {"image": (3, 16, 16), "encoder_channels": 4, "latent_channels": 2}
VIT = ViTNetworkConfig(patch=4, width=16, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)


class Denoising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = UNet(UNetConfig(widths=(8, 16), blocks=1, head_channels=8, dropout=0.2), channels=3)
        nn.init.normal_(self.network.last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x, torch.zeros(len(x)), None, None)


class Reconstruction(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.decode(self.network.encode(x)[:, :2])


MODULES = {
    "unet": Denoising,
    "kl": lambda: Reconstruction(KLNetwork(KLNetworkConfig(widths=(8, 8), norm_groups=4), **SHAPES)),
    "vit": lambda: Reconstruction(ViTNetwork(VIT, **SHAPES)),
}


def kept_and_gradients(module: nn.Module) -> tuple[int, list[torch.Tensor]]:
    """How many numbers wait for the backward pass, and what that gives."""
    torch.manual_seed(1)
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = module(torch.randn(2, 3, 16, 16)).square().mean()
    loss.backward()
    return sum(kept.values()), [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_the_same_and_less_is_kept(name):
    torch.manual_seed(0)
    whole = MODULES[name]()
    less = copy.deepcopy(whole)
    checkpoint_blocks(less.network)
    assert len(list(blocks(less.network))) >= 3
    (before, expected), (after, found) = kept_and_gradients(whole), kept_and_gradients(less)
    assert after < 0.8 * before
    assert len(found) == len(expected) > 0 and all(map(torch.equal, found, expected))
    again = copy.deepcopy(less).eval()
    assert list(again.state_dict()) == list(whole.state_dict())


def test_a_network_of_which_nothing_was_compiled_or_checkpointed_said_nothing():
    vit, mlp = (
        create_trainable(AutoencoderConfig(network, IdentityConfig(channels=4)), image=(3, 16, 16))
        for network in (VIT, MLPNetworkConfig(widths=(8,)))
    )
    for model in (vit, mlp):
        with pytest.raises(ConfigError, match=r"^run\.compile on: autoencoder\.network\.kind (vit|mlp) cannot"):
            model.compile()
    with pytest.raises(ConfigError, match=r"^run\.gradient_checkpointing true: this network has no blocks"):
        checkpoint_blocks(mlp)
