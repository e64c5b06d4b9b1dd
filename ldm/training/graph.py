"""The training step as one CUDA graph: recorded once in a phase of the run, then launched as a whole.

A replayed step reads and writes the memory that it was recorded with. What differs between two steps therefore has
memory of its own, which is filled before each replay: the batch, the random numbers (`ReplayedRandom`), and what
depends on the number of the step (`StepScalars`: learning rate, shares of the averages, ramps). Everything else that
the host computes must be the same all through a phase.
"""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError, LDMError
from ldm.randomness import StepRandom
from ldm.training.config import RunConfig
from ldm.training.metrics_log import stacked
from ldm.training.step import Learn, TrainingStep

WARM_UP = 3  # steps of a phase that are made before one is recorded: what is created at first use is there by then
WAY_OUT = "set run.graph off"


class StepRecorder(Protocol):
    """What records a step on a device."""

    def warm_up(self, action: Callable[[], None]) -> None:
        """Do it, as it will be recorded."""
        ...

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        """What does the same again and again, in the same memory; nothing is done yet."""
        ...


class CUDARecorder:
    """Records CUDA graphs."""

    def warm_up(self, action: Callable[[], None]) -> None:
        """On a stream of its own, as `torch.cuda.graph` asks for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            action()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        """Other threads, as that of a data loader, may go on with what they do."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                action()
        except RuntimeError as error:
            raise recording_failure(error) from error
        return graph.replay


def recording_failure(error: BaseException) -> LDMError:
    """What a person is told of a step that could not be recorded.

    What ran out of memory may have become another error by the time that the recording is ended.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, torch.OutOfMemoryError):
        cause = cause.__context__
    if cause is not None:
        return LDMError(f"the GPU is out of memory as a step is recorded: lower run.batch_size, or {WAY_OUT}")
    return ConfigError(f"run.graph on: this step cannot be recorded ({str(error).splitlines()[0]}): {WAY_OUT}")


RECORDERS: dict[str, Callable[[], StepRecorder]] = {"cuda": CUDARecorder}  # by type of device


def obstacles(config: RunConfig, device: torch.device, processes: int) -> list[str]:
    """What keeps the steps of a run from being graphs."""
    found = {
        f"training on {device.type}": device.type not in RECORDERS,
        f"{processes} processes": processes > 1,
        f"run.accumulation {config.accumulation}": config.accumulation > 1,
        "run.precision fp16": config.precision == "fp16",
    }
    return [reason for reason, is_so in found.items() if is_so]


def check_graph(config: RunConfig, device: torch.device, processes: int) -> None:
    """Raise ConfigError if the steps of a run are to be graphs and cannot be."""
    if config.graph == "on" and (reasons := obstacles(config, device, processes)):
        raise ConfigError(f"run.graph on needs one GPU, no accumulation and no fp16, not {reasons[0]}: {WAY_OUT}")


def graph_hint(config: RunConfig, device: torch.device, processes: int) -> str:
    """What the first line of a run adds where its steps could be graphs, and are not."""
    if config.graph == "on" or obstacles(config, device, processes):
        return ""
    return "; --run.graph on makes steps of small networks several times faster"


def check_dropout(objective: nn.Module, config: RunConfig) -> None:
    """Raise ConfigError if the steps of a graph would have to draw a dropout mask twice.

    Which takes the state of the generator back to where it was, and the host has none while a graph is recorded.
    """
    if config.graph == "off" or not any(isinstance(each, nn.Dropout) and each.p > 0 for each in objective.modules()):
        return
    needs_it = {
        "run.gradient_checkpointing true": config.gradient_checkpointing,
        "objective.kind consistency": getattr(objective, "repeats_dropout", False),
    }
    if reasons := [reason for reason, is_so in needs_it.items() if is_so]:
        raise ConfigError(
            f"run.graph on: with {reasons[0]} a mask of dropout is drawn twice, which a graph cannot: set"
            f" denoiser.network.dropout 0, or run.graph off"
        )


class ReplayedRandom:
    """The random numbers of a step in memory of their own; what `StepRandom` gives, and drawn by one."""

    def __init__(self, rng: StepRandom, device: torch.device):
        self.rng, self.device = rng, device
        self.drawn: dict[tuple[str, str, tuple[int, ...]], Tensor] = {}
        self.is_complete = False

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
        """Numbers that the host would look at: a graph has no place for them."""
        raise drawn_on_host(purpose)

    def draw(self, kind: str, purpose: str, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        """The numbers of this step, always in the same memory."""
        if torch.device(device).type != self.device.type:
            raise drawn_on_host(purpose)
        key = kind, purpose, shape
        if key not in self.drawn:
            if self.is_complete:
                raise ConfigError(f"run.graph on: not every step draws the same numbers ({purpose}): {WAY_OUT}")
            self.drawn[key] = getattr(self.rng, kind)(purpose, *shape, device=self.device).clone()
        return self.drawn[key]


def drawn_on_host(purpose: str) -> ConfigError:
    """What is computed depends on numbers that only the host knows."""
    return ConfigError(f"run.graph on: the host decides by random numbers what a step does ({purpose}): {WAY_OUT}")


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
                raise ConfigError(f"run.graph on: not every step needs the same numbers ({name}): {WAY_OUT}")
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


class RecordedPhase:
    """The steps of one phase: a few are made one operation after the other, then one is recorded and replayed."""

    def __init__(self, learn: Learn, step: TrainingStep, recorder: StepRecorder, device: torch.device):
        self.learn, self.recorder = learn, recorder
        self.batch, self.terms = copy.deepcopy(step.batch), LoggedTerms()
        self.rng, self.scalars = ReplayedRandom(step.rng, device), StepScalars(device)
        self.steps = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, step: TrainingStep) -> None:
        for kept, given in zip(tensors_in(self.batch), tensors_in(step.batch), strict=True):
            if kept.shape != given.shape:
                raise ConfigError(f"run.graph on: a batch of another shape, {list(given.shape)}: {WAY_OUT}")
            kept.copy_(given, non_blocking=True)
        self.rng.fill(step.rng)
        self.scalars.fill(step.number)
        if self.steps < WARM_UP:
            self.recorder.warm_up(lambda: self.learn(self.replayed(step)))
        else:
            if self.replay is None:
                self.rng.is_complete = self.scalars.is_complete = True
                self.replay = self.recorder.record(lambda: self.learn(self.replayed(step)))
            self.replay()
        self.steps += 1
        step.metrics.keep(self.terms.names, self.terms.row.clone())

    def replayed(self, step: TrainingStep) -> ReplayedStep:
        """The same step, in the memory of this phase."""
        given = {each.name: getattr(step, each.name) for each in fields(TrainingStep)}
        kept = {"batch": self.batch, "rng": self.rng, "terms": self.terms, "gradient_norms": {}}
        return ReplayedStep(**(given | kept), scalars=self.scalars)


class GraphedStep:
    """What a training loop does with a step, as one graph for each phase of the run, whose number `phase` gives."""

    def __init__(self, learn: Learn, phase: Callable[[int], Hashable], device: torch.device):
        self.learn, self.phase, self.device = learn, phase, device
        self.recorder = RECORDERS[device.type]()
        self.recorded: RecordedPhase | None = None
        self.current: Hashable = None

    def __call__(self, step: TrainingStep) -> None:
        phase = self.phase(step.number)
        if self.recorded is None or phase != self.current:
            self.recorded = None  # the memory of the former phase is free before this one takes its own
            self.recorded, self.current = RecordedPhase(self.learn, step, self.recorder, self.device), phase
        self.recorded(step)


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
