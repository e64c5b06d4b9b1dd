"""The layers of the denoiser's network: what each is at its start, and what it never mixes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.nn.attention import SelfAttention, prefers_contiguous
from ldm.nn.convolution import Downsample, ResidualBlock, Upsample, group_norm
from ldm.nn.embedding import FourierFeatures
from ldm.randomness import generator

CHANNELS = [1, 3, 4, 6, 8, 9, 18, 32, 50, 63, 64, 100, 128, 192, 320]


def drawn(*shape: int, purpose: str = "input") -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, purpose))


def awake(module: nn.Module) -> Any:
    """The same module in float64 with every parameter random: nothing starts at zero."""
    rng = generator(0, "weights")
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.3, generator=rng)
    return module


@pytest.mark.parametrize("channels", CHANNELS)
def test_group_norm_exists_for_any_width_and_keeps_four_channels_in_a_group(channels: int) -> None:
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups == 1 or channels // norm.num_groups >= 4
    normed = norm.double()(5 + 3 * drawn(2, channels, 4, 4)).view(2, norm.num_groups, -1)
    assert normed.mean(-1).abs().max() < 1e-12
    assert (normed.var(-1, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.parametrize(("channels", "out_channels"), [(8, 8), (8, 12), (9, 6)])
def test_a_residual_block_starts_as_its_skip(channels: int, out_channels: int) -> None:
    block, x = ResidualBlock(channels, out_channels, 5, dropout=0.5).double(), drawn(2, channels, 4, 4)
    assert block(x, drawn(2, 5, purpose="condition")).equal(block.skip(x))
    assert isinstance(block.skip, nn.Identity) == (channels == out_channels)


def test_the_condition_of_a_residual_block_is_an_affine_map_of_its_second_norm() -> None:
    """A second implementation, equation by equation."""
    block, x, condition = awake(ResidualBlock(8, 12, 5)), drawn(2, 8, 4, 4), drawn(2, 5, purpose="condition")
    scale, shift = (condition @ block.condition.weight.T + block.condition.bias).split(12, dim=1)
    h = F.conv2d(F.silu(block.norm_in(x)), block.convolution_in.weight, block.convolution_in.bias, padding=1)
    h = F.group_norm(h, block.norm_out.num_groups) * (1 + scale[..., None, None]) + shift[..., None, None]
    h = F.conv2d(F.silu(h), block.convolution_out.weight, block.convolution_out.bias, padding=1)
    assert torch.allclose(block(x, condition), h + block.skip(x), rtol=0, atol=1e-12)


def test_attention_starts_as_its_skip() -> None:
    x = drawn(2, 8, 3, 5)
    assert SelfAttention(8, 4).double()(x).equal(x)


@pytest.mark.parametrize(("channels", "head_channels"), [(8, 4), (8, 8), (8, 32), (12, 4), (8, 1)])
def test_attention_is_the_softmax_of_scaled_products_of_queries_and_keys(channels: int, head_channels: int) -> None:
    """A second implementation, position by position and head by head."""
    attention, x = awake(SelfAttention(channels, head_channels)), drawn(2, channels, 3, 5)
    heads = max(channels // head_channels, 1)
    queries, keys, values = (
        part.reshape(2, heads, channels // heads, 15) for part in attention.to_qkv(attention.norm(x)).chunk(3, dim=1)
    )
    products = torch.einsum("bkcq,bkcp->bkqp", queries, keys) / math.sqrt(channels // heads)
    attended = torch.einsum("bkqp,bkcp->bkcq", products.softmax(-1), values).reshape(2, channels, 3, 5)
    assert torch.allclose(attention(x), x + attention.to_out(attended), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", CHANNELS)
def test_any_width_has_heads_of_the_wanted_size_or_more(channels: int) -> None:
    attention = awake(SelfAttention(channels, 32))
    assert channels % attention.heads == 0
    assert attention.heads == 1 or channels // attention.heads >= 32
    assert attention(drawn(1, channels, 2, 2)).isfinite().all()


def test_attention_moves_with_the_positions() -> None:
    attention, x = awake(SelfAttention(8, 4)), drawn(1, 8, 4, 4)
    places = torch.randperm(16, generator=generator(0, "places"))
    moved = x.flatten(2)[:, :, places].view_as(x)
    answer = attention(x).flatten(2)[:, :, places].view_as(x)
    assert torch.allclose(attention(moved), answer, rtol=0, atol=1e-12)


def test_downsample_halves_and_upsample_doubles() -> None:
    x = drawn(2, 4, 6, 10)
    assert awake(Downsample(4))(x).shape == (2, 4, 3, 5)
    up = awake(Upsample(4))
    doubled = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.allclose(up(x), up.convolution(doubled), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", CHANNELS)
def test_fourier_features_are_as_many_as_asked_for(channels: int) -> None:
    assert FourierFeatures(channels)(drawn(3)).shape == (3, channels)


@pytest.mark.parametrize("channels", [2, 8, 64])
def test_fourier_features_lie_on_circles_so_their_mean_square_is_one(channels: int) -> None:
    features = FourierFeatures(channels)(drawn(1000))
    assert (features.square().mean(1) - 1).abs().max() < 1e-12
    assert FourierFeatures(channels).frequencies[[0, -1]].tolist() == pytest.approx([1, 64 if channels > 2 else 1])


def test_fourier_features_tell_neighboring_noise_levels_apart() -> None:
    """Ten per cent of sigma are seen anywhere between 0.002 and 200."""
    features = FourierFeatures(64).double()
    conditions = torch.arange(math.log(0.002), math.log(200), math.log(1.1), dtype=torch.float64) / 4
    distances = torch.cdist(features(conditions), features(conditions)).fill_diagonal_(math.inf)
    assert distances.min() > 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_attention_by_a_fused_kernel_equals_that_by_matrix_products(dtype: torch.dtype, tolerance: float) -> None:
    """Queries, keys and values are made contiguous where fused kernels are faster; in bfloat16 on CPUs they are not."""
    attention, x = awake(SelfAttention(32, 8)).to(dtype), drawn(2, 32, 8, 8).to(dtype)
    found = attention(x)
    with sdpa_kernel(SDPBackend.MATH):
        expected = attention(x)
    assert (found - expected).norm() <= tolerance * expected.norm()
    assert prefers_contiguous(x) and not prefers_contiguous(x.bfloat16())
