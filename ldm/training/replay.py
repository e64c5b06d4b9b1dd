"""The memory of a step that is replayed: its batch, its random numbers, and what depends on the number of the step."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.randomness import StepRandom
from ldm.training.metrics_log import stacked
from ldm.training.recorder import RecordingError
from ldm.training.step import TrainingStep


class ReplayedRandom:
    """The random numbers of a step in memory of their own; what `StepRandom` gives, and drawn by one.

    `is_complete` once a step is recorded: what it asks for first then would be the same in every step. `drawn_on_host`
    names numbers that the host looks at, for which a graph has no place.
    """

    def __init__(self, rng: StepRandom, device: torch.device):
        self.rng, self.device = rng, device
        self.drawn: dict[tuple[str, str, tuple[int, ...]], Tensor] = {}
        self.is_complete, self.drawn_on_host = False, ""

    @property
    def step(self) -> int:
        """The number of the step."""
        return self.rng.step

    def fill(self, rng: StepRandom) -> None:
        """Draw again what was drawn so far, for another step."""
        self.rng = rng
        for (kind, purpose, shape), kept in self.drawn.items():
            kept.copy_(getattr(rng, kind)(purpose, *shape, device=self.device))

    def normal(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """As `StepRandom.normal`."""
        return self.draw("normal", purpose, shape, device)

    def uniform(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """As `StepRandom.uniform`."""
        return self.draw("uniform", purpose, shape, device)

    def generator(self, purpose: str) -> torch.Generator:
        """As `StepRandom.generator`."""
        self.note_host(purpose)
        return self.rng.generator(purpose)

    def draw(self, kind: str, purpose: str, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        """The numbers of this step, always in the same memory."""
        if torch.device(device).type != self.device.type:
            self.note_host(purpose)
            return getattr(self.rng, kind)(purpose, *shape, device=device)  # type: ignore[no-any-return]
        key = kind, purpose, shape
        if key not in self.drawn:
            if self.is_complete:
                raise RecordingError(f"not every step draws the same numbers ({purpose})")
            self.drawn[key] = getattr(self.rng, kind)(purpose, *shape, device=self.device).clone()
        return self.drawn[key]

    def note_host(self, purpose: str) -> None:
        """What is computed depends on numbers that only the host knows."""
        self.drawn_on_host = f"the host decides by random numbers what a step does ({purpose})"
        if self.is_complete:
            raise RecordingError(self.drawn_on_host)


class StepScalars:
    """What depends on the number of the step, as float64 scalars on the device."""

    def __init__(self, device: torch.device):
        self.device, self.number = device, 0
        self.is_complete = False
        self.functions: dict[str, Callable[[int], float]] = {}
        self.kept: dict[str, Tensor] = {}

    def fill(self, number: int) -> None:
        """Compute again what was asked for so far, for another step."""
        self.number = number
        if self.kept:
            torch._foreach_copy_([*self.kept.values()], list(self.on_device(*self.functions.values()).unbind()))

    def value(self, name: str, of: Callable[[int], float]) -> Tensor:
        """`of(number)`, always in the same memory."""
        if name not in self.kept:
            if self.is_complete:  # a recorded copy from the host would read memory that is something else by then
                raise RecordingError(f"not every step needs the same numbers ({name})")
            self.functions[name] = of
            self.kept[name] = self.on_device(of).squeeze(0)
        return self.kept[name]

    def on_device(self, *functions: Callable[[int], float]) -> Tensor:
        """The values of some functions of the step's number."""
        values = torch.tensor([of(self.number) for of in functions], dtype=torch.float64)
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)  # or the host would wait


class LoggedTerms:
    """The terms that a step logs, in the memory that every replay writes to."""

    names: list[str]
    row: Tensor

    def append(self, terms: Mapping[str, Tensor]) -> None:
        """Where a step logs them."""
        self.names, self.row = [*terms], stacked(terms)


@dataclass(frozen=True, kw_only=True)
class ReplayedStep(TrainingStep):
    """A step whose batch and numbers are always in the same memory."""

    scalars: StepScalars

    def value(self, name: str, of: Callable[[int], float]) -> Tensor:
        return self.scalars.value(name, of)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a batch, in order: in named tuples, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, Mapping):
        yield from tensors_in([*value.values()])
    elif is_dataclass(value):
        yield from tensors_in([getattr(value, each.name) for each in fields(value)])


def shapes_in(value: Any) -> list[tuple[int, ...]]:
    """The shapes of all tensors in a batch."""
    return [tuple(each.shape) for each in tensors_in(value)]
