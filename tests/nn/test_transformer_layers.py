"""The layers of transformers and of magnitude-preserving networks: positions, QK normalization, unit weights."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.attention import SelfAttention
from ldm.nn.cross_attention import CrossAttention, TokenBlock
from ldm.nn.magnitude_preserving import (
    SILU_MAGNITUDE,
    OuterUnitLinear,
    UnitConv2d,
    preserving_concatenation,
    preserving_silu,
    preserving_sum,
)
from ldm.nn.positions import (
    PlaceEmbedding,
    rotary_angles,
    rotary_angles_of_line,
    rotated,
    sines_and_cosines,
)
from ldm.nn.token_attention import TokenAttention
from ldm.randomness import generator
from ldm.training.config import AdamWConfig
from ldm.training.optim import GuardedOptimizer

CPU = torch.device("cpu")


def drawn(*shape: int, purpose: str = "input") -> Tensor:
    return torch.randn(*shape, generator=generator(0, purpose))


def magnitude(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_products_of_rotated_queries_and_keys_depend_on_differences_of_row_and_column() -> None:
    """By as much in both directions, and on nothing else; their lengths stay."""
    query, key = drawn(16).double(), drawn(16, purpose="key").double()
    angles = rotary_angles((6, 9), 16, CPU).view(6, 9, 8).double()

    def product(one: tuple[int, int], other: tuple[int, int]) -> Tensor:
        return rotated(query, angles[one]) @ rotated(key, angles[other])

    assert torch.allclose(product((0, 1), (2, 3)), product((3, 6), (5, 8)), rtol=0, atol=1e-6)
    different = {round(product((0, 0), (row, column)).item(), 4) for row in range(6) for column in range(9)}
    assert len(different) == 54
    assert torch.allclose(rotated(query, angles[5, 8]).norm(), query.norm())


def test_sines_and_cosines_tell_every_position_apart() -> None:
    embedded = sines_and_cosines((5, 7), 16, CPU)
    assert torch.cdist(embedded, embedded).add(torch.eye(35)).min() > 0.1


def test_products_of_rotated_words_depend_on_how_far_apart_they_are() -> None:
    query, key = drawn(16).double(), drawn(16, purpose="key").double()
    angles = rotary_angles_of_line(12, 16, CPU).double()
    product = [[(rotated(query, one) @ rotated(key, other)).item() for other in angles] for one in angles]
    assert product[0][3] == pytest.approx(product[7][10], abs=1e-6)
    assert len({round(each, 4) for each in product[0]}) == 12


@torch.no_grad()
def test_the_order_of_words_was_lost_beside_words_that_had_grown() -> None:
    """Positions were added to the words; however large these become, exchanging two of them now matters as much."""
    torch.manual_seed(0)
    block, words = TokenBlock(64), drawn(1, 6, 64)
    exchanged = words[:, [0, 3, 2, 1, 4, 5]]
    for size in (1, 100):
        before, after = (block(size * each)[:, [0, 2, 4, 5]] for each in (words, exchanged))
        moved = (after - before) - size * (exchanged - words)[:, [0, 2, 4, 5]]
        assert magnitude(moved) > 0.003


def test_places_are_told_apart_on_grids_of_every_size() -> None:
    """As large as what a norm gives, and the same half way across every grid."""
    torch.manual_seed(0)
    place = PlaceEmbedding(256)
    embedded = place((5, 7))
    assert torch.cdist(embedded, embedded).add(100 * torch.eye(35)).min() > 2
    assert 0.7 < magnitude(place((16, 16))) < 1.4
    assert torch.allclose(place((3, 3))[4], place((5, 7))[17], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_word_could_not_mean_the_left_half_of_a_map_without_borders() -> None:
    """Nothing asked where a position is: "left of" was learned hardly or not at all."""
    torch.manual_seed(0)
    layer, tokens = CrossAttention(32, 16, 16), drawn(1, 4, 16)
    nn.init.normal_(layer.to_out.weight)
    attended = layer(torch.ones(1, 32, 6, 6), tokens)
    assert magnitude(attended[..., :3] - attended[..., 3:]) > 0.01


def test_qk_norm_takes_the_length_of_queries_and_keys_out_of_attention() -> None:
    """Ten times larger weights made attention ten times ten sharper."""
    x, tokens = drawn(2, 16, 3, 5), drawn(2, 15, 16)
    for qk_norm in (True, False):
        convolutional = SelfAttention(16, 8, qk_norm=qk_norm)
        nn.init.normal_(convolutional.to_out.weight, generator=generator(0, "out"))
        dense = TokenAttention(16, 2, qk_norm=qk_norm)
        before = convolutional(x), dense(tokens)
        with torch.no_grad():
            for weight in (convolutional.to_qkv.weight[:32], dense.to_query.weight, dense.to_key_value.weight[:16]):
                weight *= 10
            convolutional.to_qkv.bias[:32] *= 10
            dense.to_query.bias.mul_(10)
            dense.to_key_value.bias[:16] *= 10
        after = convolutional(x), dense(tokens)
        for one, other in zip(before, after, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-4) == qk_norm


def test_attention_to_a_text_has_its_width_and_length() -> None:
    attention = TokenAttention(16, 2, qk_norm=True, source_channels=5)
    x, text = drawn(2, 12, 16), drawn(2, 3, 5, purpose="text")
    assert attention(x, text).shape == x.shape
    assert torch.allclose(attention(x, text), attention(x, text.flip(1)), rtol=0, atol=1e-6), "words have no order"


def test_the_magnitude_of_silu_is_its_integral() -> None:
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    assert math.isclose(torch.trapezoid(F.silu(z).square() * density, z).sqrt(), SILU_MAGNITUDE, abs_tol=1e-4)


def test_every_magnitude_preserving_operation_gives_unit_variance() -> None:
    a, b = drawn(8, 48, 16, 16), drawn(8, 24, 16, 16, purpose="other")
    joined = preserving_concatenation(a, b)
    results = {
        "silu": preserving_silu(a),
        "sum": preserving_sum(a, drawn(8, 48, 16, 16, purpose="branch"), 0.3),
        "concatenation": joined,
        "1 x 1": UnitConv2d(48, 64, 1)(a),
        "linear": OuterUnitLinear(48, 64)(drawn(500, 48)),
    }
    assert {name: magnitude(x) for name, x in results.items()} == pytest.approx(dict.fromkeys(results, 1.0), abs=0.05)
    assert magnitude(joined[:, :48]) * math.sqrt(48) == pytest.approx(
        magnitude(joined[:, 48:]) * math.sqrt(24), rel=0.05
    )


def test_stored_unit_weights_do_not_grow_and_their_scale_has_no_effect() -> None:
    """Left alone they grow with each step, as their gradients are at right angles to them, and slow down."""
    module = nn.Sequential(UnitConv2d(8, 16, 3), nn.SiLU(), UnitConv2d(16, 4, 1))
    optimizer = GuardedOptimizer(module, AdamWConfig(lr=0.1), None)
    for number in range(5):
        loss = (module(drawn(4, 8, 6, 6, purpose=f"{number}")) - 1).square().mean()
        loss.backward()
        for part in (module[0], module[2]):
            along = (part.weight * part.weight.grad).flatten(1).sum(1)
            assert along.abs().max() < 1e-3 * (part.weight.norm() * part.weight.grad.norm())
        optimizer.step(0.1, loss.detach())
        for part in (module[0], module[2]):
            assert part.weight.square().flatten(1).mean(1).sqrt().sub(1).abs().max() < 1e-3
    x = drawn(4, 8, 6, 6)
    before = module(x)
    with torch.no_grad():
        module[0].weight *= 7
    assert torch.allclose(module(x), before, rtol=1e-3, atol=1e-3)
