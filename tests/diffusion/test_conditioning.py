"""Conditions on their way from data to network: labels left out, joined and repeated, and their embedding."""

import pytest
import torch
from torch import Tensor

from ldm.batch import NULL, ClassAttribute, Condition, ConditionSchema, NumberAttribute, TextAttribute
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.randomness import generator

SCHEMA = ConditionSchema((ClassAttribute("label", ("disc", "square", "star")),))
TWO = ConditionSchema((ClassAttribute("label", ("disc", "square")), ClassAttribute("color", ("red", "green", "blue"))))
NOISE = torch.zeros(4)


def labeled(*labels: int) -> Condition:
    return Condition({"label": torch.tensor(labels)})


def labels_of(condition: Condition) -> list[int]:
    return condition.values["label"].tolist()


def test_each_class_has_a_row_of_the_table_and_the_null_label_the_last_one() -> None:
    embedding = ConditionEmbedding(SCHEMA, 5)
    table = embedding.tables["label"].weight
    assert table.shape == (4, 5)
    vector, tokens = embedding(labeled(0, 2, NULL, 1), NOISE)
    assert torch.equal(vector, table[[0, 2, 3, 1]]) and tokens is None


def test_no_condition_is_the_null_condition() -> None:
    embedding = ConditionEmbedding(TWO, 5)
    null = Condition({"label": torch.tensor([1, 0, 1, 0]), "color": torch.tensor([2, 2, 0, 1])}).null()
    (without, _), (of_null, _) = embedding(None, NOISE), embedding(null, NOISE)
    assert torch.equal(without, of_null)
    assert torch.equal(without[0], embedding.tables["label"].weight[-1] + embedding.tables["color"].weight[-1])


def test_the_vector_of_several_attributes_is_the_sum_of_their_embeddings() -> None:
    embedding = ConditionEmbedding(TWO, 5)
    vector, _ = embedding(Condition({"label": torch.tensor([1]), "color": torch.tensor([2])}), NOISE[:1])
    assert torch.equal(vector[0], embedding.tables["label"].weight[1] + embedding.tables["color"].weight[2])


@pytest.mark.parametrize("condition", [None, Condition({})])
def test_an_unconditional_schema_gives_no_vector_and_no_parameters(condition: Condition | None) -> None:
    embedding = ConditionEmbedding(ConditionSchema(), 5)
    assert embedding(condition, NOISE) == (None, None)
    assert not list(embedding.parameters())


def test_a_gradient_reaches_the_rows_that_were_asked_for_and_no_others() -> None:
    embedding = ConditionEmbedding(SCHEMA, 5)
    vector, _ = embedding(labeled(0, NULL, NULL, 0), NOISE)
    vector.sum().backward()
    gradient: Tensor | None = embedding.tables["label"].weight.grad
    assert gradient is not None and gradient.any(dim=1).tolist() == [True, False, False, True]


def test_conditions_are_dropped_joined_repeated_and_indexed() -> None:
    condition = labeled(2, 0, 1)
    assert labels_of(condition.dropped(torch.tensor([False, True, False]))) == [2, NULL, 1]
    assert labels_of(condition.null()) == [NULL, NULL, NULL]
    assert labels_of(condition.joined(condition.null())) == [2, 0, 1, NULL, NULL, NULL]
    assert labels_of(condition.repeated(torch.arange(2, 7))) == [1, 2, 0, 1, 2]
    assert labels_of(condition[[2, 2, 0]]) == [1, 1, 2]
    assert condition.null().values["label"].dtype == torch.int64
    assert labels_of(condition) == [2, 0, 1]


ANGLE = NumberAttribute("angle", 180.0, 104.0, 0.0, 359.0, period=360.0)
HEIGHT = NumberAttribute("height", 10.0, 2.0, 4.0, 16.0)
WORDS = TextAttribute("text", "words", "", width=6, length=5, layers=1, channels=8)
EVERY = ConditionSchema((ClassAttribute("label", ("disc", "square")), ANGLE, HEIGHT, WORDS))


def every(seed: int = 0) -> ConditionEmbedding:
    """An embedding of every kind of condition, in float64, no part of which is zero."""
    embedding = ConditionEmbedding(EVERY, 5).double()
    for number, parameter in enumerate(embedding.parameters()):
        torch.nn.init.normal_(parameter, generator=generator(seed, "embedding", number))
    return embedding


def texts(*counts: int) -> Tensor:
    """The tokens of texts of so many."""
    found = torch.randn(len(counts), WORDS.length, WORDS.width, generator=generator(0, "texts"))
    for row, count in zip(found, counts, strict=True):
        row[count:] = torch.nan
    return found


def given() -> Condition:
    """Four images with all conditions."""
    return Condition(
        {
            "label": torch.tensor([0, 1, 1, 0]),
            "angle": torch.tensor([10.0, 90.0, 200.0, 359.0]),
            "height": torch.tensor([9.5, 4.0, 16.0, 11.0]),
            "text": texts(3, 1, 5, 2),
        }
    )


def both(embedding: ConditionEmbedding, condition: Condition | None) -> Tensor:
    """Vector and tokens in one tensor."""
    vector, tokens = embedding(condition, NOISE.double())
    assert vector is not None and tokens is not None
    return torch.cat([vector, tokens.flatten(1)], dim=1)


def test_a_condition_of_every_kind_that_is_left_out_is_no_condition() -> None:
    embedding = every()
    dropped = given().dropped(torch.tensor([True, False, True, True]))
    found, nothing, whole = (both(embedding, each) for each in (dropped, None, given()))
    assert torch.allclose(found[[0, 2, 3]], nothing[[0, 2, 3]], rtol=0, atol=1e-12) and found[1].equal(whole[1])
    assert both(embedding, given().null()).equal(nothing)


@pytest.mark.parametrize("name", ["label", "angle", "height", "text"])
def test_a_condition_that_is_dropped_alone_leaves_the_others(name: str) -> None:
    embedding, everywhere = every(), torch.ones(4, dtype=torch.bool)
    one = given().dropped(everywhere, name)
    before = given().values
    changed = [key for key, value in one.values.items() if not torch.allclose(value, before[key], equal_nan=True)]
    assert changed == [name]
    assert both(embedding, one).ne(both(embedding, given())).any(1).all()


def test_a_number_with_a_period_means_the_same_a_period_later() -> None:
    number = every().numbers["angle"]
    turned = number(torch.tensor([10.0, 370.0, -350.0, 190.0]).double())
    assert torch.allclose(turned[:3], turned[:1].expand(3, -1), rtol=0, atol=1e-9)
    assert (turned[3] - turned[0]).abs().max() > 0.1


def test_the_order_of_words_counts_and_what_lies_behind_the_last_one_does_not() -> None:
    embedding = every()
    order = given()
    order.values["text"][:] = order.values["text"][:, [1, 0, 2, 3, 4]]
    assert (both(embedding, order)[0] - both(embedding, given())[0]).abs().max() > 1e-2


def test_at_the_start_a_text_read_backward_looked_the_same() -> None:
    words = TextAttribute("text", "words", "", width=64, length=8, layers=1, channels=32)
    torch.manual_seed(0)
    embedding = ConditionEmbedding(ConditionSchema((words,)), 32)
    given = torch.randn(1, words.length, words.width, generator=generator(0, "texts"))
    forward, backward, other = (
        embedding(Condition({"text": text}), NOISE[:1])[1].mean(1) for text in (given, given.flip(1), given.roll(1, 2))
    )
    assert (forward - backward).norm() > 0.05 * (forward - other).norm()


def test_an_embedding_of_numbers_and_texts_has_finite_gradients_where_they_are_left_out() -> None:
    embedding = every()
    both(embedding, given().dropped(torch.tensor([True, False, True, False]))).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in embedding.parameters())


def test_a_new_number_and_a_new_text_start_without_an_effect_on_the_vector() -> None:
    vector, _ = ConditionEmbedding(ConditionSchema((HEIGHT, WORDS)), 5)(given(), NOISE)
    assert vector is not None and not vector.any()
