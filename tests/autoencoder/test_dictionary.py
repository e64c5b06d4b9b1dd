"""The image of a unit in the dictionary is what the unit adds to an image: of a linear decoder, its column."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.autoencoder.config import (
    AutoencoderConfig,
    GaussianConfig,
    IdentityConfig,
    KLNetworkConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    SparseConfig,
    TinyNetworkConfig,
    ViTNetworkConfig,
)
from ldm.autoencoder.dictionary import dictionary_images, has_dictionary
from ldm.autoencoder.model import Autoencoder, create_trainable

SHAPE = (2, 4, 6)


def built(network: Any, bottleneck: Any, shape: tuple[int, int, int] = SHAPE) -> Autoencoder:
    torch.manual_seed(0)
    found = create_trainable(AutoencoderConfig(network=network, bottleneck=bottleneck), image=shape)
    return found.double().requires_grad_(False)


def images(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(10, *shape, generator=generator, dtype=torch.float64) * 2 - 1


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


LINEAR = {
    "free": (LinearNetworkConfig(), IdentityConfig(channels=9)),
    "tied": (LinearNetworkConfig(tied=True), IdentityConfig(channels=9)),
    "sparse": (LinearNetworkConfig(centered=True), SparseConfig(channels=9, k=3)),
    "sparse, any length": (LinearNetworkConfig(), SparseConfig(channels=9, unit_norm=False)),
    "variational": (LinearNetworkConfig(), GaussianConfig(channels=9)),
}


@pytest.mark.parametrize("what", LINEAR)
def test_the_dictionary_of_a_linear_decoder_is_its_columns_the_most_used_first(what: str):
    autoencoder = built(*LINEAR[what])
    network = autoencoder.network
    torch.nn.init.normal_(network.decoder[0].bias)
    torch.nn.init.normal_(network.encoder[0].weight, generator=torch.Generator().manual_seed(1))
    autoencoder.standardize(torch.full((9,), 0.3), torch.linspace(0.5, 2, 9))  # which is not what a unit adds
    columns = network.matrix(1).T.reshape(9, *SHAPE)
    columns = columns / columns.abs().amax((1, 2, 3), keepdim=True)
    use = autoencoder.raw_posterior(images()).mean.abs().mean((0, 2, 3))
    order = sorted(range(9), key=lambda unit: -use[unit].item())
    assert order != list(range(9)) and len(set(use.tolist())) > 5
    found = dictionary_images(autoencoder, images())
    used = int((use > 0).sum())
    close(found[:used], columns[order[:used]])
    assert len(found) == 9 and found.abs().amax((1, 2, 3)).sub(1).abs().max() < 1e-12
    close(dictionary_images(autoencoder, images(), count=4), columns[order[:4]])


def test_a_dictionary_image_keeps_the_sign_of_what_the_unit_adds():
    autoencoder = built(*LINEAR["free"])
    before = dictionary_images(autoencoder, images())
    autoencoder.network.decoder[0].weight.neg_()
    close(dictionary_images(autoencoder, images()), -before)


def test_a_unit_that_adds_nothing_is_gray():
    autoencoder = built(*LINEAR["free"])
    autoencoder.network.decoder[0].weight[:, 3] = 0
    found = dictionary_images(autoencoder, images())
    assert found.isfinite().all() and sorted(found.abs().amax((1, 2, 3)).round().tolist()) == [0.0] + [1.0] * 8


def test_the_dictionary_of_an_mlp_is_what_one_unit_changes():
    autoencoder = built(MLPNetworkConfig(widths=(8,)), IdentityConfig(channels=3))
    autoencoder.standardize(torch.full((3,), 2.0), torch.tensor([3.0, 0.2, 5.0]))
    zero, one = torch.zeros(1, 3, 1, 1, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:, :, None, None]
    changes = autoencoder.decode_raw(one) - autoencoder.decode_raw(zero)
    changes = changes / changes.abs().amax((1, 2, 3), keepdim=True)
    order = autoencoder.raw_posterior(images()).mean.abs().mean((0, 2, 3)).argsort(descending=True)
    close(dictionary_images(autoencoder, images()), changes[order])


@pytest.mark.parametrize("sides", [(32, 32), (32, 48)])
def test_a_unit_of_a_convolutional_code_stands_in_the_middle(sides: tuple[int, int]):
    """What it adds ends before the border, and lies as far from the left as from the right, to within a position."""
    shape = (1, *sides)
    autoencoder = built(TinyNetworkConfig(width=6, levels=1, blocks=1), SparseConfig(channels=4), shape)
    found = dictionary_images(autoencoder, images(shape))
    assert found.shape == (4, *shape)
    for axis, side in ((1, sides[0]), (2, sides[1])):
        reached = found.abs().sum(0).sum(3 - axis).squeeze(0).nonzero().flatten()
        assert reached.min() > 0 and reached.max() < side - 1
        assert abs(reached.min() + reached.max() - (side - 1)) <= 4


def test_a_convolutional_unit_is_used_as_much_as_it_is_on_average_over_positions():
    shape = (1, 16, 16)
    autoencoder = built(TinyNetworkConfig(width=6, levels=1, blocks=1), SparseConfig(channels=4), shape)
    code = autoencoder.raw_posterior(images(shape)).mean
    one = torch.zeros(1, 4, 8, 8, dtype=torch.float64)
    one[0, int(code.mean((0, 2, 3)).argmax()), 4, 4] = 1
    expected = autoencoder.decode_raw(one) - autoencoder.decode_raw(torch.zeros_like(one))
    close(dictionary_images(autoencoder, images(shape), count=1), expected / expected.abs().max())


def test_sparse_codes_and_fully_connected_networks_have_a_dictionary():
    shape, sparse = (1, 8, 8), SparseConfig(channels=4)
    kl = KLNetworkConfig(widths=(4, 4), norm_groups=2, mid_attention=False)
    vit = ViTNetworkConfig(patch=2, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1)
    with_dictionary = [
        (kl, sparse),
        (vit, sparse),
        (LinearNetworkConfig(), IdentityConfig()),
        (MLPNetworkConfig(widths=(4,)), GaussianConfig()),
    ]
    for network, bottleneck in with_dictionary:
        autoencoder = built(network, bottleneck, shape)
        assert has_dictionary(autoencoder) and dictionary_images(autoencoder, images(shape)).shape == (4, *shape)
    assert not any(has_dictionary(built(network, IdentityConfig(channels=2), shape)) for network in (kl, vit))
