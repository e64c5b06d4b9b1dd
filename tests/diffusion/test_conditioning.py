"""Conditions on their way from data to network: labels left out, joined and repeated, and their embedding."""

import pytest
import torch
from torch import Tensor

from ldm.batch import NULL, ClassAttribute, Condition, ConditionSchema
from ldm.diffusion.conditioning import ConditionEmbedding

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
