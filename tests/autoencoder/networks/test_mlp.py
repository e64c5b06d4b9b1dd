"""Fully connected autoencoders: layers that belong together, ties that hold, and a linear one that is linear."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.autoencoder.config import (
    AutoencoderConfig,
    GaussianConfig,
    IdentityConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    SparseConfig,
)
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.networks.mlp import ACTIVATIONS, MLPNetwork
from ldm.errors import ConfigError

SHAPE = (3, 4, 6)


def built(network: Any, bottleneck: Any = None) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(network=network, bottleneck=bottleneck or IdentityConfig(channels=5))
    return create_trainable(config, image=SHAPE).double()


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64) * 2 - 1


def test_a_linear_network_is_two_matrices_with_their_biases():
    network: MLPNetwork = built(LinearNetworkConfig()).network
    assert {name: tuple(each.shape) for name, each in network.named_parameters()} == {
        "encoder.0.weight": (5, 72),
        "encoder.0.bias": (5,),
        "decoder.0.weight": (72, 5),
        "decoder.0.bias": (72,),
    }
    code = images().flatten(1) @ network.encoder[0].weight.T + network.encoder[0].bias
    torch.testing.assert_close(network.encode(images()), code[:, :, None, None])
    again = code @ network.decoder[0].weight.T + network.decoder[0].bias
    torch.testing.assert_close(network.decode(code[:, :, None, None]), again.view(4, *SHAPE))


def test_a_centered_linear_network_reads_the_image_minus_what_the_decoder_adds():
    network = built(LinearNetworkConfig(centered=True)).network
    with torch.no_grad():
        network.decoder[0].bias.normal_()
    centered = images().flatten(1) - network.decoder[0].bias
    code = centered @ network.encoder[0].weight.T + network.encoder[0].bias
    torch.testing.assert_close(network.encode(images()).flatten(1), code, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "bottleneck", [IdentityConfig(channels=5), SparseConfig(channels=5)], ids=lambda each: each.kind
)
def test_a_linear_unit_begins_by_writing_what_it_reads_and_is_free_to_change(bottleneck: Any):
    network = built(LinearNetworkConfig(), bottleneck).network
    assert network.decoder[0].weight.equal(network.encoder[0].weight.T)
    (gradient,) = torch.autograd.grad(network.encode(images()).sum(), network.decoder[0].weight, allow_unused=True)
    assert gradient is None


def test_a_linear_network_is_affine_and_an_mlp_is_not():
    one, other = images(2)[:1], images(2)[1:]
    for network, is_affine in ((LinearNetworkConfig(), True), (MLPNetworkConfig(widths=(8,)), False)):
        reconstruct = built(network).reconstruct
        between = 0.3 * reconstruct(one) + 0.7 * reconstruct(other)
        assert torch.allclose(reconstruct(0.3 * one + 0.7 * other), between, rtol=1e-9, atol=1e-12) == is_affine


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_mlp_is_what_one_would_write_by_hand(name: str):
    """No activation after the last layer of either side: that of the code is the bottleneck's, and images have none."""
    network = built(MLPNetworkConfig(widths=(8, 7), activation=name)).network
    known = {"none": lambda x: x, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[name]
    x = images().flatten(1)
    for layer in network.encoder[:-1]:
        x = known(layer(x))
    code = network.encoder[-1](x)
    torch.testing.assert_close(network.encode(images()).flatten(1), code, rtol=1e-12, atol=1e-12)
    x = code
    for layer in network.decoder[:0:-1]:
        x = known(layer(x))
    x = network.decoder[0](x).view(4, *SHAPE)
    torch.testing.assert_close(network.decode(code[:, :, None, None]), x, rtol=1e-12, atol=1e-12)


def test_layers_put_together_are_the_network():
    network = built(MLPNetworkConfig(widths=(8, 7))).network
    x = images()
    for layer in (1, 2, 3):
        assert network.layer_input(layer, images()).equal(x)
        x = network.encode_layer(layer, x)
    assert x.equal(network.encode(images()))
    for layer in (3, 2, 1):
        x = network.decode_layer(layer, x)
    assert x.equal(network.decode(network.encode(images())))


def test_a_layer_gives_back_the_shape_it_was_given():
    network = built(MLPNetworkConfig(widths=(8, 7))).network
    for layer, width in ((1, None), (2, 8), (3, 7)):
        given = network.layer_input(layer, images())
        assert given.shape == (images().shape if width is None else (4, width, 1, 1))
        assert network.decode_layer(layer, network.encode_layer(layer, given)).shape == given.shape


@pytest.mark.parametrize(
    "network", [LinearNetworkConfig(tied=True), MLPNetworkConfig(widths=(8, 7), tied=True)], ids=str
)
def test_tied_matrices_are_one_and_learn_from_both_sides(network: Any):
    autoencoder = built(network)
    layers = autoencoder.network
    assert not [name for name, _ in layers.named_parameters() if name.startswith("decoder") and "weight" in name]
    for layer in range(1, len(layers.encoder) + 1):
        assert layers.matrix(layer).equal(layers.encoder[layer - 1].weight.T)
    code = torch.randn(4, 5, 1, 1, dtype=torch.float64)
    (of_decoder,) = torch.autograd.grad(layers.decode(code).sum(), layers.encoder[-1].weight)
    (of_encoder,) = torch.autograd.grad(layers.encode(images()).sum(), layers.encoder[-1].weight)
    (of_both,) = torch.autograd.grad(
        layers.decode(code).sum() + layers.encode(images()).sum(), layers.encoder[-1].weight
    )
    assert bool(of_decoder.any())
    torch.testing.assert_close(of_both, of_decoder + of_encoder)


def test_tied_orthonormal_rows_are_a_projection():
    autoencoder = built(LinearNetworkConfig(tied=True)).requires_grad_(False)
    network = autoencoder.network
    network.encoder[0].weight.copy_(torch.linalg.qr(torch.randn(72, 5, dtype=torch.float64)).Q.T)
    network.encoder[0].bias.zero_(), network.decoder[0].bias.zero_()
    once = autoencoder.reconstruct(images())
    torch.testing.assert_close(autoencoder.reconstruct(once), once, rtol=1e-9, atol=1e-12)
    assert once.square().sum() < images().square().sum()


@pytest.mark.parametrize("network", [LinearNetworkConfig(tied=True), MLPNetworkConfig(widths=(8,), tied=True)], ids=str)
def test_a_tie_to_means_and_variances_is_refused_in_one_line(network: Any):
    with pytest.raises(ConfigError, match=r"^autoencoder\.network\.tied needs .*kind identity or sparse$"):
        built(network, GaussianConfig(channels=5))
    built(network, SparseConfig(channels=5))


def test_an_over_complete_linear_network_can_be_the_identity():
    autoencoder = built(LinearNetworkConfig(), IdentityConfig(channels=2 * math.prod(SHAPE))).requires_grad_(False)
    network, one = autoencoder.network, torch.eye(72, dtype=torch.float64)
    network.encoder[0].weight.copy_(torch.cat([one, one]))
    network.decoder[0].weight.copy_(torch.cat([one, one], 1) / 2)
    network.encoder[0].bias.zero_(), network.decoder[0].bias.zero_()
    torch.testing.assert_close(autoencoder.reconstruct(images()), images(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("widths", "says"),
    [
        ((), "^widths must be .*kind linear has no layers between$"),
        ((8, 0), "^widths must be at least 1"),
        ((-1,), "^widths must be at least 1"),
    ],
)
def test_an_mlp_without_widths_is_refused_with_the_kind_that_has_none(widths: tuple[int, ...], says: str):
    with pytest.raises(ValueError, match=says):
        MLPNetworkConfig(widths=widths)
