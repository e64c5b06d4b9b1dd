"""Conditions: the schema of what images are conditioned on, and the values that travel from data to network.

On the way from data to network nobody looks inside: a batch carries a `Condition`, samplers and guidance pass it on,
and `ldm.diffusion.conditioning.ConditionEmbedding` turns it into what a network takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ldm.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NULL = -1  # the null label: the attribute is left out


@dataclass(frozen=True)
class ClassAttribute:
    """A class label: one of several names."""

    name: str  # of the attribute
    classes: tuple[str, ...]  # in the order of their indices
    kind: Literal["class"] = "class"

    def index(self, label: int | str) -> int:
        """The index of a class by name or index; a name that is also a number is read as a name. Else ConfigError."""
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if str(label).isdecimal() and int(label) < len(self.classes):
            return int(label)
        shown = ", ".join(self.classes[:20]) + (" ..." if len(self.classes) > 20 else "")
        raise ConfigError(f"--labels {label} is not a class of this model: {shown}")


@dataclass(frozen=True)
class ConditionSchema:
    """The attributes of a data set's images; without any, the model is unconditional."""

    attributes: tuple[ClassAttribute, ...] = ()

    @property
    def choices(self) -> tuple[str, ...]:
        """What can be asked for by name, in order: the classes; empty for an unconditional model."""
        return self.attributes[0].classes if self.attributes else ()

    def names(self, labels: Sequence[int | str] | None) -> list[str]:
        """The names of the requested classes, all of them in turn for None; ConfigError if there is no such class."""
        return [self.choices[index] for index in self._indices(labels)]

    def request(self, labels: Sequence[int | str] | None) -> "Condition":
        """The condition of one image for each of `labels`, as `names` reads them."""
        import torch

        indices = torch.tensor(self._indices(labels), dtype=torch.int64)
        return Condition({attribute.name: indices for attribute in self.attributes})

    def _indices(self, labels: Sequence[int | str] | None) -> list[int]:
        if labels is None:
            return list(range(len(self.choices)))
        if not self.attributes:
            raise ConfigError("--labels needs a model with classes, and this one has none")
        if not labels:
            raise ConfigError("--labels names no class; leave it out for all classes in turn")
        return [self.attributes[0].index(label) for label in labels]


@dataclass(frozen=True, eq=False)
class Condition:
    """The conditions of a batch of images: of each attribute a class index per image, int64, NULL where it is left out.

    Of an unconditional model it is empty.
    """

    values: Mapping[str, "Tensor"]

    def __getitem__(self, rows: "Tensor | Sequence[int]") -> "Condition":
        """The conditions of some of the images."""
        return Condition({name: value[rows] for name, value in self.values.items()})

    def repeated(self, numbers: "Tensor") -> "Condition":
        """The conditions of images with these numbers, where the images of the batch are repeated without end."""
        return Condition({name: value[numbers % len(value)] for name, value in self.values.items()})

    def dropped(self, where: "Tensor") -> "Condition":
        """The same, left out for the images where the boolean `where` is true (classifier-free guidance)."""
        return Condition({name: value.masked_fill(where, NULL) for name, value in self.values.items()})

    def null(self) -> "Condition":
        """The same number of images without any condition."""
        return Condition({name: value.new_full(value.shape, NULL) for name, value in self.values.items()})

    def joined(self, other: "Condition") -> "Condition":
        """The conditions of both batches, one behind the other."""
        import torch

        return Condition({name: torch.cat([value, other.values[name]]) for name, value in self.values.items()})

    def to(self, device: "torch.device | str", *, non_blocking: bool = False) -> "Condition":
        """On another device."""
        return Condition({name: value.to(device, non_blocking=non_blocking) for name, value in self.values.items()})

    def pin_memory(self) -> "Condition":
        """In pinned memory, as a data loader asks for it."""
        return Condition({name: value.pin_memory() for name, value in self.values.items()})
