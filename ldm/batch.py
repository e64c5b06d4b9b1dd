"""The values of a training step: batches, their conditions, the step itself, and the losses that come back.

On the way from data to network nobody looks into a `Condition`: a batch carries it, samplers and guidance pass it on,
and `ldm.diffusion.conditioning.ConditionEmbedding` turns it into what a network takes.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ldm.errors import RequestError
from ldm.randomness import StepRandom
from ldm.shapes import Images, Labels, Latents, NoiseLevels

LARGEST = torch.finfo(torch.float32).max  # that a number can be
NULL = -1  # the null label: the attribute is left out; of numbers and texts NaN is

# Classes by name or index, as a person has them: one, several, or the rows of a one-hot matrix.
ClassLabels: TypeAlias = str | int | Sequence[int | str] | Tensor | np.ndarray


@dataclass(frozen=True)
class ClassAttribute:
    """A class label: one of several names."""

    name: str  # of the attribute
    classes: tuple[str, ...]  # in the order of their indices
    kind: Literal["class"] = "class"

    def index(self, label: int | str, argument: str = "labels") -> int:
        """The index of a class by name or index; a name that is also a number is read as a name. Else RequestError."""
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if str(label).isdecimal() and int(label) < len(self.classes):
            return int(label)
        names = (f'"{name}"' if "," in name else name for name in self.classes[:20])  # as --labels takes one of these
        shown = ", ".join(names) + (" ..." if len(self.classes) > 20 else "")
        raise RequestError(argument, f"{label} is not a class of this model: {shown}")

    def labels(self, given: ClassLabels, argument: str = "labels") -> list[int | str]:
        """The single labels in what a person gives; RequestError for a matrix that is not one-hot."""
        if not isinstance(given, Tensor | np.ndarray | np.generic | Sequence) or isinstance(given, str):
            return [given]
        if isinstance(given, Sequence):
            return [each.item() if isinstance(each, Tensor | np.generic) and each.ndim == 0 else each for each in given]
        if given.ndim < 2:
            labels: list[int | str] = given.reshape(-1).tolist()
            return labels
        rows, one_hot = given.tolist(), [0] * (len(self.classes) - 1) + [1]
        if given.ndim != 2 or any(sorted(row) != one_hot for row in rows):
            raise RequestError(argument, f"of shape {list(given.shape)} are not one-hot rows of {len(self.classes)}")
        return [row.index(1) for row in rows]

    def null(self, count: int) -> Tensor:
        """No class, so many times."""
        return torch.full((count,), NULL, dtype=torch.int64)


@dataclass(frozen=True)
class NumberAttribute:
    """A number. With a period, numbers that differ by it mean the same."""

    name: str
    mean: float  # of the training images
    std: float
    low: float
    high: float
    period: float | None = None
    kind: Literal["number"] = "number"

    def null(self, count: int) -> Tensor:
        """No number, so many times."""
        return torch.full((count,), math.nan)


@dataclass(frozen=True)
class TextAttribute:
    """A text, as the tokens that a frozen text encoder makes of it."""

    name: str
    encoder: str  # by which name or folder, or under which id on the hub
    sha256: str  # of the encoder's weights and words: tokens of another one would mean something else
    width: int  # of a token as the encoder gives it
    length: int  # tokens at most
    layers: int  # trained blocks that follow
    channels: int  # of a token behind them
    kind: Literal["text"] = "text"

    def null(self, count: int) -> Tensor:
        """No text, so many times."""
        return torch.full((count, self.length, self.width), math.nan)


Attribute: TypeAlias = ClassAttribute | NumberAttribute | TextAttribute


@dataclass(frozen=True)
class ConditionSchema:
    """The attributes of a data set's images; without any, the model is unconditional."""

    attributes: tuple[Attribute, ...] = ()

    @property
    def classes(self) -> ClassAttribute | None:
        """The attribute that labels are of: the first that is a class."""
        return next((each for each in self.attributes if each.kind == "class"), None)

    @property
    def text(self) -> TextAttribute | None:
        """The attribute that prompts are of: the first that is a text."""
        return next((each for each in self.attributes if each.kind == "text"), None)

    @property
    def token_channels(self) -> int:
        """The width of the tokens that texts become; 0 without a text."""
        return max((each.channels for each in self.attributes if each.kind == "text"), default=0)

    @property
    def choices(self) -> tuple[str, ...]:
        """What can be asked for by name, in order: the classes; empty for a model without."""
        return self.classes.classes if self.classes else ()

    def names(self, labels: ClassLabels | None) -> list[str]:
        """The names of the requested classes, all of them in turn for None; RequestError if there is no such class."""
        return [self.choices[index] for index in self.indices(labels)]

    def attribute(self, name: str) -> Attribute:
        """The attribute of a name; RequestError if there is none."""
        found = next((each for each in self.attributes if each.name == name), None)
        if found is None:
            known = ", ".join(each.name for each in self.attributes) or "none, it is unconditional"
            raise RequestError(name, f"is no condition of this model; its conditions: {known}")
        return found

    def request(self, labels: ClassLabels | None) -> "Condition":
        """The condition of one image for each of `labels`, as `names` reads them; all else is left out."""
        return self.condition(torch.tensor(self.indices(labels) or [NULL], dtype=torch.int64))

    def condition(self, indices: Tensor) -> "Condition":
        """The condition of one image for each class index, NULL where the class is left out, as all else is."""
        return Condition(
            {each.name: indices if each is self.classes else each.null(len(indices)) for each in self.attributes}
        )

    def indices(self, labels: ClassLabels | None) -> list[int]:
        """The indices of the requested classes, as `names` reads them."""
        if labels is None:
            return list(range(len(self.choices)))
        if self.classes is None:
            raise RequestError("labels", "needs a model with classes, and this one has none")
        given = self.classes.labels(labels)
        if not given:
            raise RequestError("labels", "names no class; leave it out for all classes in turn")
        return [self.classes.index(label) for label in given]


@dataclass(frozen=True, eq=False)
class Condition:
    """The conditions of a batch of images, by attribute; of an unconditional model it is empty.

    Of a class the index per image, int64, NULL where it is left out; of a number its value, NaN where it is left out;
    of a text its tokens, images x length x width, NaN behind the last one and everywhere where it is left out.
    """

    values: Mapping[str, Tensor]

    @property
    def count(self) -> int:
        """Of how many images they are; 0 where there is nothing to be told."""
        return next((len(value) for value in self.values.values()), 0)

    def __getitem__(self, rows: Tensor | Sequence[int]) -> "Condition":
        """The conditions of some of the images."""
        return Condition({name: value[rows] for name, value in self.values.items()})

    def repeated(self, numbers: Tensor) -> "Condition":
        """The conditions of images with these numbers, where the images of the batch are repeated without end."""
        return Condition({name: value[numbers % len(value)] for name, value in self.values.items()})

    def dropped(self, where: Tensor, name: str | None = None) -> "Condition":
        """The same, all or one of it left out for the images where the boolean `where` is true."""
        chosen = (name,) if name is not None else self.values
        return Condition(
            {
                each: value.masked_fill(where.view(-1, *[1] * (value.ndim - 1)), null_of(value))
                if each in chosen
                else value
                for each, value in self.values.items()
            }
        )

    def only(self, names: Collection[str]) -> "Condition":
        """The same without all but these attributes."""
        return Condition(
            {
                name: value if name in names else value.new_full(value.shape, null_of(value))
                for name, value in self.values.items()
            }
        )

    def null(self) -> "Condition":
        """The same number of images without any condition."""
        return self.only(())

    def joined(self, other: "Condition") -> "Condition":
        """The conditions of both batches, one behind the other."""
        return Condition({name: torch.cat([value, other.values[name]]) for name, value in self.values.items()})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Condition":
        """On another device."""
        return Condition({name: value.to(device, non_blocking=non_blocking) for name, value in self.values.items()})

    def pin_memory(self) -> "Condition":
        """In pinned memory, as a data loader asks for it."""
        return Condition({name: value.pin_memory() for name, value in self.values.items()})


def null_of(value: Tensor) -> float:
    """What stands for nothing among the values of an attribute: NULL among classes, NaN among all else."""
    return math.nan if value.is_floating_point() else NULL


class ImageBatch(NamedTuple):
    """Training images of an autoencoder: one part of a global batch."""

    images: Images
    labels: Labels


class LatentBatch(NamedTuple):
    """Clean latents, and everything random that a step of the denoiser needs: one part of a global batch."""

    latents: Latents
    noise: Latents
    sigma: NoiseLevels
    condition: Condition


@dataclass(frozen=True)
class Step:
    """One training step, or one micro-batch of it: what it is trained on, and its random numbers."""

    batch: Any
    rng: StepRandom

    @property
    def number(self) -> int:
        """The number of the step in the run, from 0. It tells one phase of a run from another."""
        return self.rng.step

    @property
    def now(self) -> float | Tensor:
        """The number of the step as a value to compute with."""
        return self.value("number", int)

    def value(self, name: str, of: Callable[[int], float]) -> float | Tensor:
        """`of(number)`, which changes with every step: of a step that is replayed, a float64 scalar on the device."""
        return of(self.number)


@dataclass(frozen=True)
class Losses:
    """`total` is what is minimized; `terms` are its weighted parts and anything else worth a line in the log.

    All are scalars on the device. `outputs` are detached tensors for what comes after the update: a panel, the
    discriminator's step, usage counters.
    """

    total: Tensor
    terms: dict[str, Tensor]
    outputs: dict[str, Tensor] = field(default_factory=dict)
