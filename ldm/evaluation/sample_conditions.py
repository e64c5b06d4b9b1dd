"""The conditions of evaluated samples: classes as frequent as in the data, or those that training images have together.

Samples are compared with training images, so they are asked for what these are: a model of one class is asked for each
as often as it is there, and of several conditions each sample takes those of one training image, in an order drawn
once. So a tone comes with the captions that it has in the data, and sample i is asked for the same with every seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ldm.batch import NULL, Attribute, Condition
from ldm.data.condition_columns import ConditionColumn, ConditionTable
from ldm.data.datasets import Dataset
from ldm.data.order import order_of
from ldm.evaluation.generation import RealData
from ldm.evaluation.image_sets import NO_LABELS, allocated_labels
from ldm.pipeline import LatentDiffusion
from ldm.shapes import Labels
from ldm.text.encoder import encoded


@dataclass(frozen=True, eq=False)
class SampleConditions:
    """The conditions of samples, and the class indices among them that a classifier of real images can read."""

    rows: Condition | ConditionTable  # of the samples, in order
    labels: Labels = NO_LABELS  # the classes of the data
    asked: Mapping[str, Labels] = field(default_factory=dict)  # other conditions that are classes, by name


def conditions_of_samples(model: LatentDiffusion, data: RealData, num: int) -> SampleConditions:
    """What so many samples are asked for."""
    if not takes_rows(model, data):
        labels = requested_labels(model, data, num)
        of_data = labels if same_classes(model, data) else NO_LABELS
        return SampleConditions(model.config.schema.condition(labels), of_data)
    dataset, chosen = data.trained_on.dataset, data.trained_on.indices
    order = order_of(len(chosen), 0, "conditions of samples")
    indices = np.array(chosen)[order[np.arange(num) % len(chosen)]].tolist()
    known = {column.name for _, column in known_columns(model, dataset)}
    labels = data.labels(indices) if any(data.is_classes(name) for name in known) else NO_LABELS
    asked = {name: data.condition_labels(name, indices) for name in data.readable if name in known}
    return SampleConditions(conditions_of_images(model, dataset, indices), labels, asked)


def takes_rows(model: LatentDiffusion, data: RealData) -> bool:
    """Whether samples are asked for the conditions of training images, and not for classes alone."""
    known, attributes = known_columns(model, data.training.dataset), model.config.schema.attributes
    return bool(known) and not (len(attributes) == 1 and data.is_classes(known[0][1].name))


def same_classes(model: LatentDiffusion, data: RealData) -> bool:
    """Whether the model can be asked for the classes of the data."""
    return bool(model.classes) and model.classes == tuple(data.training.dataset.classes)


def requested_labels(model: LatentDiffusion, data: RealData, num: int) -> Labels:
    """The classes of the samples: as frequent as in the data or, where these have others, all in turn."""
    if not model.classes:
        return torch.zeros(num, dtype=torch.int64)
    return allocated_labels(data.class_counts if same_classes(model, data) else [1] * len(model.classes), num)


def known_columns(model: LatentDiffusion, dataset: Dataset) -> list[tuple[Attribute, ConditionColumn]]:
    """The conditions of the model that the data have too."""
    columns = {column.name: column for column in dataset.columns}
    pairs = ((each, columns.get(each.name)) for each in model.config.schema.attributes)
    return [(each, column) for each, column in pairs if column is not None and column.config.kind == each.kind]


def conditions_of_images(model: LatentDiffusion, dataset: Dataset, indices: Sequence[int]) -> ConditionTable:
    """The conditions that images have, as the model is told of them; what the data do not say is left out."""
    values: dict[str, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    columns = {attribute.name: column for attribute, column in known_columns(model, dataset)}
    for attribute in model.config.schema.attributes:
        found = columns.get(attribute.name)
        if attribute.kind == "text":
            texts, places = [""], torch.zeros(len(indices), dtype=torch.int64)
            if found is not None:
                distinct, places = torch.unique(torch.from_numpy(found.values[list(indices)]), return_inverse=True)
                texts = [found.names[place] for place in distinct.tolist()]
            encoder = model.prompts.encoder(attribute).to(model.device)
            tokens[attribute.name], values[attribute.name] = encoded(encoder, texts, attribute.length), places
        elif found is None:
            values[attribute.name] = attribute.null(len(indices))
        elif attribute.kind == "class":
            known = [attribute.classes.index(name) if name in attribute.classes else NULL for name in found.names]
            values[attribute.name] = torch.tensor(known)[torch.from_numpy(found.values[list(indices)])]
        else:
            values[attribute.name] = torch.from_numpy(found.values[list(indices)])
    return ConditionTable(values, tokens)


def conditions_note(model: LatentDiffusion, data: RealData) -> str | None:
    """What the samples are asked for, for a protocol, and what is left out; None if there is neither."""
    notes, attributes = [], model.config.schema.attributes
    asked: list[Attribute] = [model.config.schema.classes] if model.config.schema.classes else []
    if takes_rows(model, data):
        asked = [attribute for attribute, _ in known_columns(model, data.training.dataset)]
        names = ", ".join(each.name for each in asked)
        notes.append(f"{names}: each sample those of one training image, in an order drawn once")
    elif model.classes:
        known_classes = same_classes(model, data)
        notes.append("as frequent as in the data" if known_classes else "all in turn: the data have other classes")
    if others := [each.name for each in attributes if each not in asked]:
        notes.append(f"left out: {', '.join(others)}")
    return "; ".join(notes) or None
