"""A training step: the micro-batch, its random numbers, and what a training loop does with them."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from ldm.batch import Step
from ldm.training.config import RunConfig
from ldm.training.ema import SIGMA_RELS, ema_share
from ldm.training.metrics_log import MetricsLog
from ldm.training.train_state import TrainState


class Schedule(Protocol):
    """What changes over the steps of a run: the windows of the learning rate, phases, and what begins with a step."""

    def window(self, step: int) -> tuple[int, int]:
        """The first step of this one's window, and the first one after it."""
        ...

    def phase(self, step: int) -> Hashable:
        """The same for steps in which the same is computed, numbers that come with the step aside."""
        ...

    def begin_step(self, step: int) -> None:
        """Called before each step, also after a resume."""
        ...


class Panel(Protocol):
    """A picture of what a model makes of a few images, drawn again and again."""

    def draw(self, model: Any, path: Path, /) -> dict[str, float]:
        """Save the picture; returns metrics of what it shows."""
        ...


@dataclass(frozen=True)
class WholeRun:
    """One window and one phase, in which nothing changes."""

    steps: int

    def window(self, step: int) -> tuple[int, int]:
        """All steps belong together."""
        return 0, self.steps

    def phase(self, step: int) -> Hashable:
        """There is only one."""
        return 0

    def begin_step(self, step: int) -> None:
        """Nothing begins."""


class KeepsTerms(Protocol):
    """What takes the terms that a step logs."""

    def append(self, terms: Mapping[str, Tensor]) -> None:
        """Keep them on the device."""
        ...


@dataclass(frozen=True)
class TrainingStep(Step):
    """A step of a run, or a micro-batch of it where batches are accumulated."""

    micro_step: int  # which of the accumulated micro-batches it is
    config: RunConfig
    states: Mapping[str, TrainState]
    metrics: MetricsLog
    terms: KeepsTerms  # the metrics, or what stands between
    samples: Path | None  # the folder of the panels; None where this process draws none
    gradient_norms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        """Whether the optimizer's update comes with this micro-batch."""
        return self.micro_step == self.config.accumulation - 1

    def update(self, loss: Tensor, of: str = "") -> None:
        """Backward, and with the last micro-batch of a step: clip, AdamW, EMA. Never waits for the device.

        `of` names what is updated, as it was named to `Run.prepare`.
        """
        state, accumulation = self.states[of], self.config.accumulation
        loss = loss if accumulation == 1 else loss / accumulation
        (loss if state.scaler is None else state.scaler.scale(loss)).backward()
        if self.is_last:
            name = "_".join(filter(None, [of, "gradient_norm"]))
            lr = self.value(state.key("lr"), state.lr)
            shares = [self.value(f"share {length}", partial(share_of, length)) for length in SIGMA_RELS]
            self.gradient_norms[name] = state.advance(lr, shares, loss.detach())

    def log(self, terms: dict[str, Tensor]) -> None:
        """Keep the terms, on the device, until the next line of the log is due."""
        self.terms.append(terms | self.gradient_norms)

    @property
    def draws_panel(self) -> bool:
        """Whether a panel is drawn after this step, by this process."""
        config, number = self.config, self.number + 1
        due = number % (config.sample_every or max(config.steps // 10, 1)) == 0 or number == config.steps
        return due and self.is_last and self.samples is not None

    @property
    def panel_path(self) -> Path:
        """Where the panel of this step belongs."""
        assert self.samples is not None
        return self.samples / f"step-{self.number + 1:08d}.png"

    def record(self, **values: float) -> None:
        """Write metrics of this step, if there are any, to the log beside the loss terms."""
        if values:
            self.metrics.write({"step": self.number + 1, **values})


def share_of(length: str, step: int) -> float:
    """The share of the newest weights in an average, after step number `step` (from 0)."""
    return ema_share(length, step + 1)


Learn: TypeAlias = Callable[[TrainingStep], None]  # what a training loop does with a step
