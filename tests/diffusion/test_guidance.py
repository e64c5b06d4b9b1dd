"""Guidance: a line through two answers, at 1 the denoiser itself, and the same line in every channel."""

import pytest
import torch
from torch import Tensor, nn

from ldm.batch import NULL, ClassAttribute, Condition, ConditionSchema
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import autoguidance, classifier_free
from ldm.randomness import generator

SCHEMA = ConditionSchema((ClassAttribute("label", ("a", "b", "c", "d")),))
CHANNELS = 5


class Network(nn.Module):
    """A network whose every output channel depends on the input, the noise level and the vector."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS, generator=generator(seed, "network")))

    def forward(self, scaled: Tensor, noise_condition: Tensor, vector: Tensor, tokens: None) -> Tensor:
        mixed = torch.einsum("oc,bchw->bohw", self.weight, scaled) + vector[:, :, None, None]
        return (mixed + noise_condition[:, None, None, None]).tanh()


def denoiser_of(seed: int) -> Denoiser:
    """In float64, with an embedding of a fixed seed."""
    denoiser = Denoiser(Network(seed), ConditionEmbedding(SCHEMA, CHANNELS))
    for table in denoiser.embedding.parameters():
        nn.init.normal_(table, generator=generator(seed, "embedding"))
    return denoiser.double()


@pytest.fixture
def denoiser() -> Denoiser:
    return denoiser_of(0)


def calls_of(denoiser: Denoiser) -> list[list[int]]:
    """A list of the labels of every call of the denoiser from now on."""
    calls: list[list[int]] = []
    denoiser.register_forward_pre_hook(lambda _, given: calls.append(given[2].values["label"].tolist()))
    return calls


NOISY = 2 * torch.randn(3, CHANNELS, 4, 4, dtype=torch.float64, generator=generator(0, "noisy"))
SIGMA = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
LABELS = Condition({"label": torch.tensor([2, 0, 3])})


def test_guidance_1_is_the_conditional_denoiser_bit_for_bit_in_one_call(denoiser: Denoiser) -> None:
    expected = denoiser(NOISY, SIGMA, LABELS)
    calls = calls_of(denoiser)
    guided = classifier_free(denoiser, guidance=1.0)(NOISY, SIGMA, LABELS)
    assert torch.equal(guided, expected)
    assert calls == [[2, 0, 3]]


def test_guidance_0_is_the_unconditional_denoiser_bit_for_bit_in_one_call(denoiser: Denoiser) -> None:
    expected = denoiser(NOISY, SIGMA, LABELS.null())
    calls = calls_of(denoiser)
    guided = classifier_free(denoiser, guidance=0.0)(NOISY, SIGMA, LABELS)
    assert torch.equal(guided, expected)
    assert calls == [[NULL, NULL, NULL]]


@pytest.mark.parametrize("guidance", [-0.5, 0.0, 0.4, 1.0, 1.5, 7.0])
def test_every_channel_lies_on_the_line_through_both_answers(denoiser: Denoiser, guidance: float) -> None:
    conditional, unconditional = denoiser(NOISY, SIGMA, LABELS), denoiser(NOISY, SIGMA, LABELS.null())
    guided = classifier_free(denoiser, guidance=guidance)(NOISY, SIGMA, LABELS)
    assert torch.allclose(guided, guidance * conditional + (1 - guidance) * unconditional, rtol=0, atol=1e-12)
    moved = (guided - unconditional).abs().amax((0, 2, 3))
    assert moved.shape == (CHANNELS,) and (guidance == 0 or bool((moved > 0.01).all()))


def test_both_answers_come_from_one_call_with_the_labels_and_without(denoiser: Denoiser) -> None:
    calls = calls_of(denoiser)
    classifier_free(denoiser, guidance=3.0)(NOISY, SIGMA, LABELS)
    assert calls == [[2, 0, 3, NULL, NULL, NULL]]


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_guidance_without_a_condition_is_refused(denoiser: Denoiser, guidance: float) -> None:
    with pytest.raises(ValueError, match="needs a condition"):
        classifier_free(denoiser, guidance=guidance)(NOISY, SIGMA, None)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_autoguidance_moves_away_from_the_weaker_denoiser(denoiser: Denoiser, guidance: float) -> None:
    weaker = denoiser_of(1)
    strong, weak = denoiser(NOISY, SIGMA, LABELS), weaker(NOISY, SIGMA, LABELS)
    guided = autoguidance(denoiser, weaker, guidance=guidance)(NOISY, SIGMA, LABELS)
    assert torch.allclose(guided, guidance * strong + (1 - guidance) * weak, rtol=0, atol=1e-12)


def test_autoguidance_1_is_the_denoiser_bit_for_bit_and_never_calls_the_weaker_one(denoiser: Denoiser) -> None:
    calls = calls_of(weaker := denoiser_of(1))
    guided = autoguidance(denoiser, weaker, guidance=1.0)(NOISY, SIGMA, LABELS)
    assert torch.equal(guided, denoiser(NOISY, SIGMA, LABELS))
    assert not calls


def test_guidances_compose(denoiser: Denoiser) -> None:
    weaker = denoiser_of(1)
    with_labels = classifier_free(denoiser, guidance=2.0)
    guided = autoguidance(with_labels, weaker, guidance=1.5)(NOISY, SIGMA, LABELS)
    strong = 2 * denoiser(NOISY, SIGMA, LABELS) - denoiser(NOISY, SIGMA, LABELS.null())
    assert torch.allclose(guided, 1.5 * strong - 0.5 * weaker(NOISY, SIGMA, LABELS), rtol=0, atol=1e-12)
