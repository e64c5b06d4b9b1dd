"""The U-Net inside the denoiser: where it starts, what its output depends on, what reaches every parameter."""

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
VARIANTS = {
    "small": SMALL,
    "one level": replace(SMALL, widths=(8,), attention=(0,)),
    "three levels, two blocks": replace(SMALL, widths=(8, 12, 16), blocks=2, attention=(0, 2)),
    "no attention": replace(SMALL, attention=()),
    "odd widths": replace(SMALL, widths=(9, 15), attention=(0, 1), head_channels=4),
}


def drawn(*shape: int, purpose: str = "latents") -> Tensor:
    return torch.randn(*shape, generator=generator(0, purpose))


def perturbed(config: UNetConfig = SMALL) -> UNet:
    """All of its weights random, without a zero, as after some training."""
    network, rng = UNet(config, channels=4), generator(0, "weights")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5, generator=rng)
    return network.eval()


@pytest.fixture(params=VARIANTS)
def config(request: pytest.FixtureRequest) -> UNetConfig:
    """Networks of every shape that a config can ask for."""
    return VARIANTS[request.param]


def vectors(network: UNet, count: int) -> Tensor:
    """Something to condition on."""
    return drawn(count, network.vector_channels, purpose="vectors")


def test_the_output_starts_at_zero(config: UNetConfig) -> None:
    network = UNet(config, channels=4)
    assert not network(drawn(2, 4, 8, 8), drawn(2), vectors(network, 2)).any()


def test_no_vector_is_a_vector_of_zeros() -> None:
    network, x, noise = perturbed(), drawn(2, 4, 8, 8), drawn(2, purpose="noise")
    assert network(x, noise).equal(network(x, noise, torch.zeros(2, network.vector_channels)))


def test_every_vector_and_every_noise_level_changes_the_answer() -> None:
    network, x = perturbed(), drawn(1, 4, 8, 8)
    given = [*vectors(network, 3).split(1), None]
    answers = [network(x, torch.tensor([noise]), vector) for noise in (-1.0, 1.0) for vector in given]
    for place, answer in enumerate(answers):
        assert all((answer - other).abs().max() > 1e-3 for other in answers[place + 1 :])


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (7, 7), (1, 4)])
def test_sizes_that_cannot_be_halved_are_refused_in_one_line(shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"^latents of {shape[0]} x {shape[1]} .*halved 2 times.*widths.*$"):
        UNet.check(VARIANTS["three levels, two blocks"], (4, *shape))


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (20, 4)])
def test_any_size_that_can_be_halved_keeps_its_shape(shape: tuple[int, int]) -> None:
    network = perturbed(VARIANTS["three levels, two blocks"])
    UNet.check(VARIANTS["three levels, two blocks"], (4, *shape))
    assert network(drawn(2, 4, *shape), drawn(2)).shape == (2, 4, *shape)


def test_a_sample_does_not_depend_on_its_batch(config: UNetConfig) -> None:
    """Not a bit of sample 0 changes with its neighbors, and splitting the batch changes rounding at most."""
    network, x, noise = perturbed(config), drawn(6, 4, 8, 8), drawn(6, purpose="noise")
    vector, first = vectors(network, 6), torch.arange(6) == 0
    whole = network(x, noise, vector)
    others = x.clone()
    others[1:] = 100 * drawn(5, 4, 8, 8, purpose="neighbors")
    alone = network(others, noise.where(first, 7.0), vector.where(first[:, None], 2.0))
    assert alone[0].equal(whole[0])
    split = torch.cat([network(x[part], noise[part], vector[part]) for part in torch.arange(6).split([1, 2, 3])])
    assert (split - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_a_gradient_reaches_every_parameter(config: UNetConfig) -> None:
    network = perturbed(config)
    vector = vectors(network, 4).requires_grad_()
    network(drawn(4, 4, 8, 8), drawn(4, purpose="noise"), vector).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert vector.grad is not None and vector.grad.any(dim=1).all()


def test_at_the_start_only_the_last_layer_learns() -> None:
    """The price of starting at zero is one step in which nothing else moves."""
    network = UNet(SMALL, channels=4)
    (network(drawn(4, 4, 8, 8), drawn(4)) - 1).square().mean().backward()
    learning = {name for name, parameter in network.named_parameters() if parameter.grad.any()}
    assert learning == {"last.weight", "last.bias"}


def test_attention_sits_at_the_levels_that_the_config_names() -> None:
    """Level by level, down and up; the middle belongs to the deepest one."""
    for attention in [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)]:
        chosen = UNetConfig(widths=(4, 8, 12), blocks=1, attention=attention, head_channels=4)
        network = UNet(chosen, channels=2)
        levels = [module for part in (network.down, network.middle, network.up) for module in part]
        found = [isinstance(module.attention, SelfAttention) for module in levels if isinstance(module, Level)]
        assert found == [level in attention for level in (0, 1, 2, 2, 2, 2, 2, 1, 1, 0, 0)]


def test_dropout_is_off_when_it_is_zero_and_when_the_network_is_not_training() -> None:
    x, noise = drawn(2, 4, 8, 8), drawn(2, purpose="noise")
    for dropout, training, rng in [(0.0, True, False), (0.5, False, False), (0.5, True, True)]:
        network = perturbed(replace(SMALL, dropout=dropout)).train(training)
        torch.manual_seed(0)
        assert network(x, noise).equal(network(x, noise)) != rng
