"""Restored images show what the training was about: its corruption, its target, its emphasis."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.autoencoder.bottleneck import IdentityBottleneck
from ldm.autoencoder.config import (
    AutoencoderConfig,
    IdentityConfig,
    LinearNetworkConfig,
    ReconstructionObjectiveConfig,
    TinyNetworkConfig,
    ViTNetworkConfig,
)
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.restoration import restore
from ldm.corruption import Blur, GaussianNoise, Interpolation, Mask, SaltAndPepper
from ldm.randomness import StepRandom

VIT = ViTNetworkConfig(patch=2, width=16, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
TINY = TinyNetworkConfig(width=4, levels=2, blocks=1)
CORRUPTIONS = [
    GaussianNoise(sigma=(0.1, 1.0)),
    SaltAndPepper(),
    Mask(fraction=0.5),
    Mask(unit="element"),
    Mask(unit="pixel"),
    Blur(sigma=(0.3, 2.0)),
    Interpolation(),
]
every = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)
RANDOM = StepRandom(3, 7, 4)


def built(network: Any) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(network=network, bottleneck=IdentityConfig(channels=5))
    return create_trainable(config, image=(3, 8, 8)).double().requires_grad_(False)


def images(count: int = 4, height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, height, width, generator=generator, dtype=torch.float64) * 2 - 1


def normalized(clean: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """The target, and the mean of each patch at its pixels, patch by patch."""
    target, means = clean.clone(), clean.clone()
    for top in range(0, clean.shape[2], patch):
        for left in range(0, clean.shape[3], patch):
            place = (slice(None), slice(None), slice(top, top + patch), slice(left, left + patch))
            values = clean[place].flatten(1)
            mean, std = values.mean(1).view(-1, 1, 1, 1), (values.var(1) + 1e-6).sqrt().view(-1, 1, 1, 1)
            target[place], means[place] = (clean[place] - mean) / std, mean.expand_as(clean[place])
    return target, means


class Constant(AutoencoderNetwork):
    """A network whose decoder gives one answer, whatever the latent."""

    def __init__(self, answer: Tensor, patch: int):
        super().__init__()
        self.answer, self.downsampling, self.image_channels = answer, (patch, patch), answer.shape[1]

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        p, q = self.downsampling
        return images[:, :1, ::p, ::q]

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.answer


def answering(answer: Tensor, patch: int) -> Autoencoder:
    return Autoencoder(Constant(answer, patch), IdentityBottleneck(IdentityConfig(channels=1)))


# ---- what the encoder sees


@every
def test_the_encoder_sees_what_it_sees_in_training_at_this_step(corruption: Any):
    autoencoder, config = built(TINY).requires_grad_(True), ReconstructionObjectiveConfig(corruption=corruption)
    objective = ReconstructionObjective(autoencoder, config)
    expected = objective.corrupt(images(), objective.schedule.at(RANDOM.step), RANDOM).values
    found = restore(autoencoder, config, images(), RANDOM).corrupted
    assert found.equal(expected) and not found.equal(images())
    assert not restore(autoencoder, config, images(), replace(RANDOM, step=8)).corrupted.equal(found)


@every
def test_an_image_is_restored_alike_in_any_cut_of_the_batch(corruption: Any):
    autoencoder, config = built(TINY), ReconstructionObjectiveConfig(corruption=corruption)
    whole = restore(autoencoder, config, images(), RANDOM)
    for part in (0, 1):
        cut = StepRandom.of_part(3, 7, total=4, parts=2, part=part)
        found = restore(autoencoder, config, images()[2 * part : 2 * part + 2], cut)
        rows = slice(2 * part, 2 * part + 2)
        torch.testing.assert_close(found.corrupted, whole.corrupted[rows], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.images, whole.images[rows], rtol=1e-9, atol=1e-9)


@every
def test_what_comes_back_is_made_of_the_corrupted_image_alone(corruption: Any):
    autoencoder = built(LinearNetworkConfig())
    corruption = replace(corruption, patch=2) if isinstance(corruption, Mask) else corruption  # or it hides all
    found = restore(autoencoder, ReconstructionObjectiveConfig(corruption=corruption), images(), RANDOM)
    assert found.images.equal(autoencoder.reconstruct(found.corrupted))


def test_a_transformer_is_given_the_patches_that_are_hidden():
    autoencoder, config = built(VIT), ReconstructionObjectiveConfig(corruption=Mask(fraction=0.75))
    found = restore(autoencoder, config, images(), RANDOM)
    hidden = config.corruption(images(), RANDOM, name="input", patch=(2, 2)).hidden
    assert hidden.sum((1, 2)).tolist() == [12] * 4
    again = autoencoder.decode(autoencoder.encode(found.corrupted, hidden).mode(), hidden)
    assert found.images.equal(again)
    assert not torch.allclose(found.images, autoencoder.reconstruct(found.corrupted)), "0 is not hidden"


@pytest.mark.parametrize("sides", [(8, 8), (7, 9), (5, 8)])
def test_images_come_back_at_their_own_size(sides: tuple[int, int]):
    for corruption in (None, GaussianNoise(), Mask(), Mask(unit="pixel")):
        config = ReconstructionObjectiveConfig(corruption=corruption, emphasis=corruption and 1.0)
        found = restore(built(TINY), config, images(2, *sides), StepRandom(0, 0, 2))
        assert found.images.shape == found.corrupted.shape == (2, 3, *sides)


def test_without_a_corruption_it_is_the_reconstruction():
    for network in (TINY, LinearNetworkConfig(), VIT):
        autoencoder = built(network)
        found = restore(autoencoder, ReconstructionObjectiveConfig(), images(), RANDOM)
        assert found.corrupted.equal(images()) and found.images.equal(autoencoder.reconstruct(images()))


# ---- what of the answer counts


@pytest.mark.parametrize("corruption", [each for each in CORRUPTIONS if isinstance(each, Mask)], ids=str)
def test_with_emphasis_1_what_was_not_hidden_comes_from_the_image(corruption: Any):
    autoencoder = built(TINY)
    elements = corruption(images(), RANDOM, name="input", patch=(4, 4)).elements.expand_as(images())
    assert 0 < elements.double().mean() < 1
    plain, some, only = (
        restore(
            autoencoder, ReconstructionObjectiveConfig(corruption=corruption, emphasis=emphasis), images(), RANDOM
        ).images
        for emphasis in (None, 0.9, 1.0)
    )
    assert only[~elements].equal(images()[~elements]) and only[elements].equal(plain[elements])
    assert some.equal(plain) and not plain[~elements].equal(images()[~elements])
    kept = restore(autoencoder, ReconstructionObjectiveConfig(corruption=corruption, emphasis=1.0), images(), RANDOM)
    assert kept.keep_mask.equal(~elements)


def test_with_emphasis_1_nothing_comes_from_the_image_where_nobody_could_see_what_was_corrupted():
    for corruption in (GaussianNoise(), Blur(), Interpolation(), SaltAndPepper()):
        plain, only = (
            restore(
                built(TINY), ReconstructionObjectiveConfig(corruption=corruption, emphasis=emphasis), images(), RANDOM
            ).images
            for emphasis in (None, 1.0)
        )
        assert only.equal(plain)


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("corruption", [None, GaussianNoise(), Mask(unit="element")], ids=str)
def test_the_right_answer_about_normalized_patches_is_the_image(patch: int, corruption: Any):
    """Each patch gets the mean and deviation back that it had in the image itself, and not in the corrupted one."""
    clean = images() * torch.linspace(0.1, 0.6, 8, dtype=torch.float64) + 0.3
    autoencoder = answering(normalized(clean, patch)[0], patch)
    config = ReconstructionObjectiveConfig(corruption=corruption, target="normalized-patches")
    found = restore(autoencoder, config, clean, RANDOM).images
    torch.testing.assert_close(found, clean, rtol=1e-12, atol=1e-12)
    unmoved = restore(autoencoder, replace(config, target="images"), clean, RANDOM).images
    assert (unmoved - clean).abs().max() > 0.1


def test_no_answer_about_a_normalized_patch_is_its_mean():
    clean, config = images(), ReconstructionObjectiveConfig(target="normalized-patches")
    found = restore(answering(torch.zeros_like(clean), 4), config, clean, RANDOM).images
    torch.testing.assert_close(found, normalized(clean, 4)[1], rtol=1e-12, atol=1e-12)


def test_normalized_patches_are_put_back_where_they_were_hidden_and_only_there():
    clean = images()
    mask = Mask(fraction=0.5)
    config = ReconstructionObjectiveConfig(corruption=mask, target="normalized-patches", emphasis=1.0)
    found = restore(answering(torch.zeros_like(clean), 2), config, clean, RANDOM).images
    elements = mask(clean, RANDOM, name="input", patch=(2, 2)).elements
    torch.testing.assert_close(found, torch.where(elements, normalized(clean, 2)[1], clean), rtol=1e-12, atol=1e-12)


def test_restoring_leaves_no_gradient_and_no_random_state_behind():
    autoencoder, before = built(TINY).requires_grad_(True), torch.get_rng_state()
    found = restore(autoencoder, ReconstructionObjectiveConfig(corruption=GaussianNoise()), images(), RANDOM)
    assert not found.images.requires_grad and torch.equal(torch.get_rng_state(), before)
