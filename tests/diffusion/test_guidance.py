"""Guidance: a line through two answers, at 1 the denoiser itself, and the same line in every channel."""

import pytest
import torch
from torch import Tensor, nn

from ldm.batch import NULL, ClassAttribute, Condition, ConditionSchema, NumberAttribute
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import Autoguidance, ClassifierFreeGuidance, autoguidance, checked_guidance, classifier_free
from ldm.errors import RequestError
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


def denoiser_of(seed: int, schema: ConditionSchema = SCHEMA) -> Denoiser:
    """In float64, with an embedding of a fixed seed."""
    denoiser = Denoiser(Network(seed), ConditionEmbedding(schema, CHANNELS))
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


@pytest.mark.parametrize("kind", ["classifier-free", "autoguidance"])
def test_outside_its_interval_only_the_conditional_model_is_called(denoiser: Denoiser, kind: str) -> None:
    weaker = denoiser_of(1)
    guidance = (
        ClassifierFreeGuidance(3.0, (0.5, 2.0)) if kind == "classifier-free" else Autoguidance(3.0, weaker, (0.5, 2.0))
    )
    everywhere = (ClassifierFreeGuidance(3.0) if kind == "classifier-free" else Autoguidance(3.0, weaker)).around(
        denoiser
    )
    plain, guided = denoiser(NOISY, 4.0, LABELS), everywhere(NOISY, torch.tensor([1.0]), LABELS)
    mixed, calls, of_weaker = everywhere(NOISY, SIGMA, LABELS), calls_of(denoiser), calls_of(weaker)
    assert guidance.around(denoiser)(NOISY, torch.tensor([4.0]), LABELS).equal(plain)
    assert calls == [[2, 0, 3]] and not of_weaker, "one call with the labels"
    assert guidance.around(denoiser)(NOISY, torch.tensor([1.0]), LABELS).equal(guided)
    each = guidance.around(denoiser)(NOISY, SIGMA, LABELS)
    assert each[1].equal(mixed[1]) and each[::2].equal(denoiser(NOISY, SIGMA, LABELS)[::2])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rescaled_answers_get_back_that_share_of_the_standard_deviation(denoiser: Denoiser, share: float) -> None:
    plain = ClassifierFreeGuidance(4.0).around(denoiser)(NOISY, SIGMA, LABELS)
    found = ClassifierFreeGuidance(4.0, rescale=share).around(denoiser)(NOISY, SIGMA, LABELS)
    stds = [each.std((1, 2, 3)) for each in (plain, denoiser(NOISY, SIGMA, LABELS), found)]
    assert torch.allclose(stds[2], (1 - share) * stds[0] + share * stds[1], rtol=1e-12)
    assert torch.allclose(found / plain, (found / plain)[:, :1, :1, :1].expand_as(found), rtol=1e-9)


def test_guidance_1_with_everything_else_is_the_denoiser_itself(denoiser: Denoiser) -> None:
    for guidance in (ClassifierFreeGuidance(1.0, (0.1, 1.0), 0.5), Autoguidance(1.0, denoiser_of(1), (0.1, 1.0), 0.5)):
        assert guidance.around(denoiser) is denoiser


NONE = ConditionSchema()
TWO = ConditionSchema((ClassAttribute("label", ("a", "b", "c", "d")), NumberAttribute("angle", 0.0, 1.0, -1.0, 1.0)))


@pytest.fixture
def of_two() -> Denoiser:
    """A denoiser of two conditions, both of which it minds."""
    return denoiser_of(3, TWO)


BOTH = Condition({"label": LABELS.values["label"], "angle": torch.tensor([0.5, -1.0, 2.0])})


def test_a_weight_for_each_condition_enlarges_what_it_adds_to_those_before_it(of_two: Denoiser) -> None:
    guidance = checked_guidance({"angle": 3.0, "label": 1.5}, TWO, True)
    nothing, angle, both = (of_two(NOISY, SIGMA, BOTH.only(kept)) for kept in ((), ("angle",), ("angle", "label")))
    expected = nothing + 3.0 * (angle - nothing) + 1.5 * (both - angle)
    assert torch.allclose(guidance.around(of_two)(NOISY, SIGMA, BOTH), expected, rtol=0, atol=1e-12)
    assert min((angle - nothing).abs().max(), (both - angle).abs().max()) > 1e-3


def test_weights_of_one_are_the_denoiser_itself_and_equal_ones_plain_guidance(of_two: Denoiser) -> None:
    assert checked_guidance({"label": 1.0}, TWO, True).around(of_two) is of_two
    each, plain = checked_guidance({"label": 2.0, "angle": 2.0}, TWO, True), ClassifierFreeGuidance(2.0)
    assert each.around(of_two)(NOISY, SIGMA, BOTH).equal(plain.around(of_two)(NOISY, SIGMA, BOTH))


def test_answers_that_count_zero_times_are_not_computed(of_two: Denoiser) -> None:
    counts: list[int] = []

    def counted(noisy: torch.Tensor, sigma: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        counts.append(len(noisy))
        return of_two(noisy, sigma, condition)

    for weights in (
        {"label": 3.0},
        {"label": 3.0, "angle": 2.0},
        {"label": 3.0, "angle": 0.0},
        {"label": 1.0, "angle": 2.0},
    ):
        checked_guidance(weights, TWO, True).around(counted)(NOISY, SIGMA, BOTH)
    assert counts == [9, 9, 6, 6]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((2.0, NONE, True), {}, "guidance needs a model with classes"),
        ((2.0, TWO, False), {}, "guidance needs a model trained with objective.condition_dropout"),
        ((2.0, TWO, True), {"interval": (2.0, 1.0)}, "guidance_interval 2,1 must be two noise levels"),
        (
            (2.0, TWO, True),
            {"interval": (1.0, 2.0, 3.0)},
            r"guidance_interval \(1.0, 2.0, 3.0\) must be two noise levels",
        ),
        ((2.0, TWO, True), {"interval": ("low", "high")}, r"guidance_interval \('low', 'high'\) must be two noise"),
        ((2.0, TWO, True), {"rescale": 1.5}, "guidance_rescale 1.5 must be at least 0"),
        ((1.0, TWO, True), {"rescale": 0.5}, "guidance_rescale says nothing without guidance"),
        (({"label": 2.0}, TWO, False), {}, "guidance needs a model trained with objective.condition_dropout"),
        (({"tone": 2.0}, TWO, True), {}, "guidance tone is no condition of this model; its conditions: label, angle"),
        (({"label": 2.0}, TWO, True), {"guide": print}, "guidance has one weight where a guide is given"),
        (({"label": 1.0}, TWO, True), {"rescale": 0.5}, "guidance_rescale says nothing without guidance"),
    ],
)
def test_impossible_guidance_is_refused(arguments: tuple, options: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        checked_guidance(*arguments, **options)


def test_a_guide_needs_neither_classes_nor_dropout(denoiser: Denoiser) -> None:
    assert checked_guidance(None, NONE, False, guide=denoiser) == Autoguidance(2.0, denoiser)
    assert checked_guidance(None, TWO, True) == ClassifierFreeGuidance(2.0)
    assert checked_guidance(None, TWO, False) == ClassifierFreeGuidance(1.0)


def test_weights_for_no_condition_at_all_are_no_traceback(denoiser: Denoiser) -> None:
    guidance = checked_guidance({}, NONE, False)
    assert guidance.weight == 1 and guidance.around(denoiser) is denoiser
