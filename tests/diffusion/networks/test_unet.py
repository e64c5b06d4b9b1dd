"""Our U-Net alone; what every network promises is in test_networks.py."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ldm.diffusion.config import UNetConfig
from ldm.diffusion.networks.unet import Level, UNet
from ldm.errors import ConfigError
from ldm.nn.attention import SelfAttention
from ldm.randomness import generator

SMALL = UNetConfig(widths=(8, 16), blocks=1, attention=(1,), head_channels=8)
THREE_LEVELS = replace(SMALL, widths=(8, 12, 16), blocks=2, attention=(0, 2))


def drawn(*shape: int, purpose: str = "latents") -> Tensor:
    return torch.randn(*shape, generator=generator(0, purpose))


def perturbed(config: UNetConfig = SMALL) -> UNet:
    """All of its weights random, without a zero, as after some training."""
    network, rng = UNet(config, channels=4), generator(0, "weights")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5, generator=rng)
    return network.eval()


def test_no_vector_is_a_vector_of_zeros() -> None:
    network, x, noise = perturbed(), drawn(2, 4, 8, 8), drawn(2, purpose="noise")
    assert network(x, noise).equal(network(x, noise, torch.zeros(2, network.vector_channels)))


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (7, 7), (1, 4)])
def test_sizes_that_cannot_be_halved_are_refused_in_one_line(shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"^latents of {shape[0]} x {shape[1]} .*halved 2 times.*widths.*$"):
        UNet.check(THREE_LEVELS, (4, *shape))


def test_attention_sits_at_the_levels_that_the_config_names() -> None:
    """Level by level, down and up; the middle belongs to the deepest one."""
    for attention in [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)]:
        chosen = UNetConfig(widths=(4, 8, 12), blocks=1, attention=attention, head_channels=4)
        network = UNet(chosen, channels=2)
        levels = [module for part in (network.down, network.middle, network.up) for module in part]
        found = [isinstance(module.attention, SelfAttention) for module in levels if isinstance(module, Level)]
        assert found == [level in attention for level in (0, 1, 2, 2, 2, 2, 2, 1, 1, 0, 0)]
