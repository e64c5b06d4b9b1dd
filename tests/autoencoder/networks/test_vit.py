"""The vision transformer sees visible patches only, in their places, and its blocks are everybody's."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.autoencoder.config import AutoencoderConfig, IdentityConfig, ReconstructionObjectiveConfig, ViTNetworkConfig
from ldm.autoencoder.losses.distance import patch_statistics
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.networks.vit import blocks, positional_embedding
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import ImageBatch
from ldm.corruption import GaussianNoise, Mask
from ldm.errors import ConfigError
from ldm.randomness import StepRandom
from tests.support.losses import checked_objective, losses_of

SMALL = ViTNetworkConfig(patch=2, width=16, depth=2, heads=4, decoder_width=8, decoder_depth=2, decoder_heads=2)


def built(network: ViTNetworkConfig = SMALL, channels: int = 16, size: int = 8) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(network=network, bottleneck=IdentityConfig(channels=channels))
    return create_trainable(config, image=(3, size, size)).double()


def images(count: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator, dtype=torch.float64) * 2 - 1


def hidden_of(count: int = 3, rows: int = 4, columns: int = 4, hides: int = 12, seed: int = 0) -> Tensor:
    """As many patches in every image, others in each."""
    order = torch.rand(count, rows * columns, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    return (order < hides).view(count, rows, columns)


def pixels_of(hidden: Tensor, patch: int = 2) -> Tensor:
    return hidden.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]


# ---- what is hidden stays hidden


def test_changing_hidden_pixels_changes_nothing_that_the_encoder_puts_out():
    network, hidden = built().network.requires_grad_(False), hidden_of()
    pictures = images()
    others = torch.where(pixels_of(hidden), 100 * images(seed=1), pictures)
    code = network.encode(pictures, hidden)
    assert code.equal(network.encode(others, hidden)) and bool(code.isfinite().all())
    assert not code.equal(network.encode(pictures)), "what was not said to be hidden is seen"
    seen = pictures.clone()
    seen[~pixels_of(hidden).expand_as(seen)] += 0.1
    assert not code.equal(network.encode(seen, hidden))


def test_the_code_is_zero_where_the_patch_is_hidden_and_nowhere_else():
    network, hidden = built().network.requires_grad_(False), hidden_of()
    code = network.encode(images(), hidden)
    assert (code == 0).all(1).equal(hidden)


def test_attention_works_on_visible_patches_alone():
    """That is what makes hiding most of them cheap."""
    network, lengths = built().network, []
    for block in network.encoder["blocks"]:
        block.register_forward_hook(lambda _, given, out: lengths.append((given[0].shape[1], out.shape[1])))
    for hides in (0, 4, 12, 15):
        lengths.clear()
        network.encode(images(), hidden_of(hides=hides))
        assert lengths == [(16 - hides, 16 - hides)] * 2
    lengths.clear()
    network.encode(images())
    assert lengths == [(16, 16)] * 2


def test_hiding_nothing_is_seeing_everything():
    network = built().network
    nothing = torch.zeros(3, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(network.encode(images(), nothing), network.encode(images()), rtol=1e-9, atol=1e-12)


def test_a_visible_patch_keeps_its_place_whatever_is_hidden_before_it():
    """With no attention between patches a code depends on its own patch and place alone."""
    network = built(ViTNetworkConfig(patch=2, width=16, depth=1, heads=4)).network.requires_grad_(False)
    block = network.encoder["blocks"][0]
    block.self_attn.out_proj.weight.zero_(), block.self_attn.out_proj.bias.zero_()
    hidden = hidden_of()
    whole, part = network.encode(images()), network.encode(images(), hidden)
    visible = ~hidden[:, None].expand_as(part)
    torch.testing.assert_close(part[visible], whole[visible], rtol=1e-9, atol=1e-12)


def test_the_decoder_looks_at_no_code_of_a_hidden_patch_but_at_its_mask_token():
    network, hidden = built().network.requires_grad_(False), hidden_of()
    latents = torch.randn(3, 16, 4, 4, dtype=torch.float64)
    others = torch.where(hidden[:, None], latents + 5, latents)
    assert network.decode(latents, hidden).equal(network.decode(others, hidden))
    before = network.decode(latents, hidden)
    network.mask_token += 1
    assert not network.decode(latents, hidden).equal(before)
    assert network.decode(latents).equal(network.decode(latents, torch.zeros_like(hidden)))


def test_hidden_patches_are_filled_in_from_visible_ones_and_know_their_place():
    network = built().network.requires_grad_(False)
    found = network.decode(torch.zeros(1, 16, 4, 4, dtype=torch.float64), torch.ones(1, 4, 4, dtype=torch.bool))
    squares = found.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    assert len({tuple(square.tolist()) for square in squares}) == 16


# ---- patches and places


def test_patches_are_cut_out_and_put_back_in_the_same_order():
    """An image each of whose patches holds 0, 1, 2, ... in the decoder's order is read in that order."""
    network, seen = built().network.requires_grad_(False), []
    network.decoder["pixels"].weight.zero_()
    network.decoder["pixels"].bias.copy_(torch.arange(12.0))
    image = network.decode(torch.zeros(1, 16, 4, 4, dtype=torch.float64))
    network.encoder["embedding"].register_forward_hook(lambda _, given, out: seen.append(given[0]))
    network.encode(image)
    assert seen[0].equal(torch.arange(12.0, dtype=torch.float64).expand(1, 16, 12))
    assert image[0, :, 2:4, 4:6].flatten().sort().values.equal(torch.arange(12.0, dtype=torch.float64))


def test_a_patch_and_its_latent_have_the_same_place():
    """The pixels that change the embedding of position (1, 2), without attention, are those of patch (1, 2)."""
    network = built().network.requires_grad_(False)
    for block in network.encoder["blocks"]:
        block.self_attn.out_proj.weight.zero_()
    pictures = images(1).requires_grad_()
    (gradient,) = torch.autograd.grad(network.encode(pictures)[0, 3, 1, 2], pictures)
    read = gradient.abs().sum((0, 1)) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert read.equal(expected)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_places_are_the_sines_and_cosines_of_masked_autoencoders(grid: tuple[int, int]):
    """Column in the first half, row in the second; each half sines, then cosines (He et al. 2022, their code)."""
    width = 16
    omega = 1 / 10000 ** (np.arange(width // 4) / (width / 4))
    expected = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            parts = [function(place * omega) for place in (column, row) for function in (np.sin, np.cos)]
            expected.append(np.concatenate(parts))
    found = positional_embedding(grid, width, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(found[0], torch.from_numpy(np.stack(expected)), rtol=1e-12, atol=1e-12)
    assert len({tuple(place) for place in found[0].tolist()}) == math.prod(grid)


@pytest.mark.parametrize("sides", [(8, 8), (12, 6), (2, 16)])
def test_one_network_takes_images_of_other_sizes(sides: tuple[int, int]):
    autoencoder = built()
    pictures = images(2, *sides)
    code = autoencoder.encode(pictures).mean
    assert code.shape[1:] == autoencoder.latent_shape(sides) == (16, sides[0] // 2, sides[1] // 2)
    assert autoencoder.reconstruct(pictures).shape == pictures.shape
    assert autoencoder.reconstruct(images(2, 7, 9)).shape == (2, 3, 7, 9)


def test_without_attention_patches_move_with_the_image_up_to_their_place():
    network = built().network.requires_grad_(False)
    first = network.encoder["embedding"](images(1)[..., :2, :2].permute(0, 2, 3, 1).flatten())
    for sides in ((8, 8), (4, 12)):
        given = images(1)[..., :2, :2].repeat(1, 1, sides[0] // 2, sides[1] // 2)
        seen: list[Tensor] = []
        hook = network.encoder["embedding"].register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        network.encode(given)
        hook.remove()
        torch.testing.assert_close(seen[0], first.expand_as(seen[0]))


# ---- blocks


@pytest.mark.parametrize("heads", [1, 4])
def test_blocks_are_those_of_timm_with_the_same_weights(heads: int):
    transformer = pytest.importorskip("timm.models.vision_transformer")
    width, depth = 16, 3
    torch.manual_seed(0)
    ours = blocks(width, heads, depth).double()
    x = torch.randn(2, 9, width, dtype=torch.float64)
    for block in ours:
        theirs = transformer.Block(width, heads, mlp_ratio=4, qkv_bias=True).double()
        for norm in (theirs.norm1, theirs.norm2):
            norm.eps = 1e-6
        names = {
            "norm1": "norm1",
            "norm2": "norm2",
            "self_attn.out_proj": "attn.proj",
            "linear1": "mlp.fc1",
            "linear2": "mlp.fc2",
        }
        state = {
            f"{b}.{kind}": block.state_dict()[f"{a}.{kind}"] for a, b in names.items() for kind in ("weight", "bias")
        }
        state |= {f"attn.qkv.{kind}": block.state_dict()[f"self_attn.in_proj_{kind}"] for kind in ("weight", "bias")}
        for value in state.values():
            value += 0.1 * torch.randn_like(value)  # in place: biases that are not 0
        theirs.load_state_dict(state)
        torch.testing.assert_close(block(x), theirs(x), rtol=1e-5, atol=1e-5)
        for mode in (block.train(), block.eval()):
            torch.testing.assert_close(mode(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
        x = block(x)


def test_there_is_no_class_token_and_no_dropout():
    network = built().network
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"encoder", "decoder", "mask_token"}
    assert not any(module.p for module in network.modules() if isinstance(module, torch.nn.Dropout))
    autoencoder = built().train()
    assert autoencoder.reconstruct(images()).equal(autoencoder.reconstruct(images()))
    torch.testing.assert_close(autoencoder.eval().reconstruct(images()), autoencoder.train().reconstruct(images()))


# ---- as a masked autoencoder


def objective_of(**config: Any) -> tuple[ReconstructionObjective, ImageBatch]:
    objective = checked_objective(built(channels=8), ReconstructionObjectiveConfig(distance="mse", **config))
    return objective, ImageBatch(images(), torch.zeros(3, dtype=torch.int64))


def test_the_loss_of_a_masked_autoencoder_is_that_of_hidden_patches_with_mean_0_and_variance_1():
    mask = Mask(fraction=0.75)
    objective, batch = objective_of(corruption=mask, emphasis=1.0, target="normalized-patches")
    found = losses_of(objective, batch, 3)
    hidden = mask(batch.images, StepRandom(0, 3, 3), name="input", patch=(2, 2)).hidden
    network = objective.autoencoder.network
    answer = network.decode(network.encode(batch.images, hidden), hidden)
    cut = lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3)  # noqa: E731
    squares = cut(batch.images)
    target = (squares - squares.mean(-1, keepdim=True)) / (squares.var(-1, keepdim=True) + 1e-6).sqrt()
    errors = (cut(answer) - target).square().mean(-1)  # of each patch
    torch.testing.assert_close(found.terms["mse"], errors[hidden].mean(), rtol=1e-9, atol=0)


def test_normalized_patches_have_mean_0_and_variance_1():
    pictures = images()
    mean, std = patch_statistics(pictures, (2, 4))
    assert mean.shape == std.shape == (3, 1, 8, 8)
    normal = ((pictures - mean) / std).unfold(2, 2, 2).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
    assert normal.mean(-1).abs().max() < 1e-12 and (normal.var(-1) - 1).abs().max() < 1e-4
    flat = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    assert bool(((flat - patch_statistics(flat, (2, 2))[0]) / patch_statistics(flat, (2, 2))[1]).isfinite().all())


def test_everything_learns_from_hidden_patches_and_without_a_mask_the_mask_token_rests():
    objective, batch = objective_of(corruption=Mask(fraction=0.75), emphasis=1.0)
    losses_of(objective, batch).total.backward()
    for name, parameter in objective.autoencoder.network.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
    plain, _ = objective_of()
    assert not plain.autoencoder.network.mask_token.requires_grad


@pytest.mark.parametrize(
    "corruption", [GaussianNoise(), Mask(unit="element"), Mask(unit="pixel", fraction=0.5)], ids=str
)
def test_the_mask_token_rests_where_a_corruption_hides_no_patch(corruption: Any):
    """Otherwise a parameter without gradient is among those that several processes wait for."""
    objective, batch = objective_of(corruption=corruption)
    losses_of(objective, batch).total.backward()
    for name, parameter in objective.autoencoder.network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Mask(patch=4), "objective.corruption hides patches of 4, and autoencoder.network.patch is 2"),
        (Mask(fraction=(0.2, 0.5)), "must hide as many patches of every image"),
        (Mask(p_clean=0.1), "must hide as many patches of every image"),
        (Mask(fraction=0.01), "hides none of them"),
        (Mask(fraction=0.99), "hides all of them"),
    ],
)
def test_a_mask_that_the_encoder_cannot_leave_out_is_refused_in_one_line(mask: Mask, says: str):
    with pytest.raises(ConfigError) as refused:
        objective_of(corruption=mask)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"heads": 5}, "heads 5 does not divide width 128"),
        ({"decoder_heads": 3}, "decoder_heads 3 does not divide decoder_width 64"),
        ({"width": 30, "heads": 2}, "width must be a multiple of 4, not 30"),
        ({"decoder_width": 6, "decoder_heads": 2}, "decoder_width must be a multiple of 4, not 6"),
        ({"decoder_width": 2}, "decoder_width must be at least 4, not 2"),
        *(({name: 0}, f"{name} must be at least 1") for name in ("patch", "depth", "heads", "decoder_depth")),
        ({"decoder_heads": 0}, "decoder_heads must be at least 1"),
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(wrong: dict[str, int], says: str):
    with pytest.raises(ValueError, match=f"^{says}"):
        ViTNetworkConfig(**wrong)


def test_the_encoder_asked_a_gpu_in_every_step_how_many_patches_are_hidden():
    network, hidden = built().network.train(), hidden_of()
    asked = network.encode(images(), hidden)
    network.hides = Mask(fraction=0.75).hidden_count(16)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # which cannot know a number
        assert network.encode(mode.from_tensor(images()), mode.from_tensor(hidden)).shape == asked.shape
    assert network.encode(images(), hidden).equal(asked)
