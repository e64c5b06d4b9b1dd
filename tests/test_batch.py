"""Conditions travel with their images, can be left out, and are requested by name or by index."""

import pytest
import torch

from ldm.batch import NULL, ClassAttribute, Condition, ConditionSchema
from ldm.errors import ConfigError

SCHEMA = ConditionSchema((ClassAttribute("label", ("cat", "dog", "7")),))


def condition(*labels: int) -> Condition:
    return Condition({"label": torch.tensor(labels)})


def labels(found: Condition) -> list[int]:
    assert found.values["label"].dtype == torch.int64
    return found.values["label"].tolist()


def test_null_and_dropped_leave_the_condition_out() -> None:
    given = condition(2, 0, 1)
    assert labels(given.null()) == [NULL] * 3
    assert labels(given.dropped(torch.tensor([True, False, True]))) == [NULL, 0, NULL]
    assert labels(given) == [2, 0, 1]


def test_joined_repeated_and_chosen_rows_stay_with_their_images() -> None:
    given = condition(2, 0, 1)
    assert labels(given.joined(given.null())) == [2, 0, 1, NULL, NULL, NULL]
    assert labels(given.repeated(torch.arange(2, 9))) == [1, 2, 0, 1, 2, 0, 1]
    assert labels(given[[1, 1]]) == [0, 0] and labels(given[torch.tensor([True, False, True])]) == [2, 1]
    assert labels(given.to("cpu", non_blocking=True)) == [2, 0, 1]


def test_an_unconditional_model_has_an_empty_condition_everywhere() -> None:
    empty = Condition({})
    for found in (empty.null(), empty.joined(empty), empty.repeated(torch.arange(3)), empty[[0]], empty.to("cpu")):
        assert dict(found.values) == {}
    assert dict(ConditionSchema().request(None).values) == {} and ConditionSchema().choices == ()


def test_schema_takes_requests_by_name_and_by_index_and_all_classes_in_turn_for_none() -> None:
    assert labels(SCHEMA.request(["dog", 0, "1", "cat"])) == [1, 0, 1, 0]
    assert labels(SCHEMA.request(["7"])) == [2], "a name that is also a number is read as a name"
    assert labels(SCHEMA.request(None)) == [0, 1, 2]
    assert SCHEMA.names([1, "7"]) == ["dog", "7"] and SCHEMA.names(None) == ["cat", "dog", "7"]


@pytest.mark.parametrize(
    ("schema", "asked", "says"),
    [
        (SCHEMA, ["bird"], "labels bird is not a class of this model: cat, dog, 7"),
        (SCHEMA, [3], "labels 3 is not a class"),
        (ConditionSchema((ClassAttribute("label", ("a, b", "c")),)), ["a"], 'not a class of this model: "a, b", c'),
        (SCHEMA, [-1], "labels -1 is not a class"),
        (SCHEMA, ["dog", "²"], "labels ² is not a class"),
        (SCHEMA, [], "labels names no class; leave it out for all classes in turn"),
        (ConditionSchema(), ["dog"], "labels needs a model with classes, and this one has none"),
        (ConditionSchema((ClassAttribute("label", tuple("abcdefghijklmnopqrstuvwxyz")),)), ["aa"], ", s, t ..."),
    ],
)
def test_request_for_a_class_that_is_not_there_is_refused(
    schema: ConditionSchema, asked: list[int | str], says: str
) -> None:
    for read in (schema.names, schema.request):
        with pytest.raises(ConfigError) as refused:
            read(asked)
        assert says in str(refused.value)
