"""Guidance: a line through two answers, at 1 the denoiser itself, and the same line in every channel."""

import pytest
import torch
from torch import Tensor, nn

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import autoguidance, classifier_free
from ldm.randomness import generator

CLASSES = 4
CHANNELS = 5


class Network(nn.Module):
    """A network whose every output channel depends on the input, the noise level and the label."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = generator(seed, "network")
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS, dtype=torch.float64, generator=rng))
        self.offsets = nn.Parameter(torch.randn(CLASSES + 1, CHANNELS, dtype=torch.float64, generator=rng))
        self.seen: list[Tensor] = []

    def forward(self, scaled: Tensor, noise_condition: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(labels)
        mixed = torch.einsum("oc,bchw->bohw", self.weight, scaled) + self.offsets[labels][:, :, None, None]
        return (mixed + noise_condition[:, None, None, None]).tanh()


@pytest.fixture
def network() -> Network:
    return Network(0)


@pytest.fixture
def denoiser(network: Network) -> Denoiser:
    return Denoiser(network)


NOISY = 2 * torch.randn(3, CHANNELS, 4, 4, dtype=torch.float64, generator=generator(0, "noisy"))
SIGMA = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
LABELS = torch.tensor([2, 0, 3])
NO_LABELS = torch.full_like(LABELS, CLASSES)


def test_guidance_1_is_the_conditional_denoiser_bit_for_bit_in_one_call(denoiser: Denoiser, network: Network) -> None:
    expected = denoiser(NOISY, SIGMA, LABELS)
    network.seen.clear()
    guided = classifier_free(denoiser, guidance=1.0, no_label=CLASSES)(NOISY, SIGMA, LABELS)
    assert torch.equal(guided, expected)
    assert [labels.tolist() for labels in network.seen] == [[2, 0, 3]]


def test_guidance_0_is_the_unconditional_denoiser_bit_for_bit_in_one_call(denoiser: Denoiser, network: Network) -> None:
    expected = denoiser(NOISY, SIGMA, NO_LABELS)
    network.seen.clear()
    guided = classifier_free(denoiser, guidance=0.0, no_label=CLASSES)(NOISY, SIGMA, LABELS)
    assert torch.equal(guided, expected)
    assert [labels.tolist() for labels in network.seen] == [[4, 4, 4]]


@pytest.mark.parametrize("guidance", [-0.5, 0.0, 0.4, 1.0, 1.5, 7.0])
def test_every_channel_lies_on_the_line_through_both_answers(denoiser: Denoiser, guidance: float) -> None:
    conditional, unconditional = denoiser(NOISY, SIGMA, LABELS), denoiser(NOISY, SIGMA, NO_LABELS)
    guided = classifier_free(denoiser, guidance=guidance, no_label=CLASSES)(NOISY, SIGMA, LABELS)
    assert torch.allclose(guided, guidance * conditional + (1 - guidance) * unconditional, rtol=0, atol=1e-12)
    moved = (guided - unconditional).abs().amax((0, 2, 3))
    assert moved.shape == (CHANNELS,) and (guidance == 0 or bool((moved > 0.01).all()))


def test_both_answers_come_from_one_call_with_the_labels_and_without(denoiser: Denoiser, network: Network) -> None:
    classifier_free(denoiser, guidance=3.0, no_label=CLASSES)(NOISY, SIGMA, LABELS)
    assert [labels.tolist() for labels in network.seen] == [[2, 0, 3, 4, 4, 4]]


def test_guidance_without_labels_is_refused(denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match="one label per sample"):
        classifier_free(denoiser, guidance=3.0, no_label=CLASSES)(NOISY, SIGMA, None)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_autoguidance_moves_away_from_the_weaker_denoiser(denoiser: Denoiser, guidance: float) -> None:
    weaker = Denoiser(Network(1))
    strong, weak = denoiser(NOISY, SIGMA, LABELS), weaker(NOISY, SIGMA, LABELS)
    guided = autoguidance(denoiser, weaker, guidance=guidance)(NOISY, SIGMA, LABELS)
    assert torch.allclose(guided, guidance * strong + (1 - guidance) * weak, rtol=0, atol=1e-12)


def test_autoguidance_1_is_the_denoiser_bit_for_bit_and_never_asks_the_weaker_one(denoiser: Denoiser) -> None:
    weaker = Denoiser(network := Network(1))
    guided = autoguidance(denoiser, weaker, guidance=1.0)(NOISY, SIGMA, LABELS)
    assert torch.equal(guided, denoiser(NOISY, SIGMA, LABELS))
    assert not network.seen


def test_guidances_compose(denoiser: Denoiser) -> None:
    weaker = Denoiser(Network(1))
    with_labels = classifier_free(denoiser, guidance=2.0, no_label=CLASSES)
    guided = autoguidance(with_labels, weaker, guidance=1.5)(NOISY, SIGMA, LABELS)
    strong = 2 * denoiser(NOISY, SIGMA, LABELS) - denoiser(NOISY, SIGMA, NO_LABELS)
    assert torch.allclose(guided, 1.5 * strong - 0.5 * weaker(NOISY, SIGMA, LABELS), rtol=0, atol=1e-12)
