"""The trained modules of a run: objectives, the training state of each module, and their schedules."""

from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ldm.errors import LDMError
from ldm.training.config import Graph, OptimConfig, RunConfig
from ldm.training.gradient_checkpointing import checkpoint_blocks
from ldm.training.graph import GraphedStep
from ldm.training.graph_setting import check_objective, why_not
from ldm.training.master_weights import lower_weights
from ldm.training.recorder import RECORDERS
from ldm.training.step import Learn, Schedule, WholeRun
from ldm.training.train_state import TrainState


class TrainedModules:
    """The modules that a run trains, by name; the main one has none."""

    def __init__(self, accelerator: Accelerator, config: RunConfig):
        self.accelerator, self.config = accelerator, config
        self.states: dict[str, TrainState] = {}
        self.objectives: list[nn.Module] = []
        self.schedules: list[Schedule] = []

    def add(
        self, objective: nn.Module, module: nn.Module, optim: OptimConfig, name: str, schedule: Schedule | None
    ) -> nn.Module:
        """The objective, ready on all processes; `module` is the part of it that is optimized and saved."""
        check_objective(objective, self.config)
        objective.to(self.accelerator.device)
        schedule = schedule or WholeRun(self.config.steps)
        scaler = self.accelerator.scaler
        scaler = torch.amp.GradScaler("cuda") if scaler is not None and name else scaler
        lowers = self.config.precision == "bf16-weights" and not name
        masters = lower_weights(module, "network") if lowers else None
        kept: dict[str, Any] = {"keeps_ema": not name, "window": schedule.window, "masters": masters}
        self.states[name] = TrainState(module, optim, scaler, name=name, **kept)
        if self.config.gradient_checkpointing and not name:
            checkpoint_blocks(module)
        if self.config.compile == "on" and not name:
            module.compile()
        self.schedules.append(schedule)
        self.objectives.append(self.accelerator.prepare(objective))
        return self.objectives[-1]

    @property
    def main(self) -> TrainState:
        """The state of the main module."""
        return self.states[""]

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules themselves."""
        return {name: state.module for name, state in self.states.items()}

    def begin_step(self, number: int) -> None:
        """Let begin what begins with a step."""
        for schedule in self.schedules:
            schedule.begin_step(number)

    def phase(self, number: int) -> Hashable:
        """The same for steps in which the same is computed."""
        return tuple(schedule.phase(number) for schedule in self.schedules)

    def graphed(self, learn: Learn, before: str, decide: Callable[[Graph, str], None]) -> Learn:
        """`learn`, recorded and replayed where `run.graph` is on.

        `auto` becomes on or off, which `decide` is told with news for the person at the terminal: here, and again where
        steps cannot be graphs after all. `before` is what it was as the run began, if it did.
        """
        device, processes = self.accelerator.device, self.accelerator.num_processes
        if self.config.graph != "auto":
            return learn if self.config.graph == "off" else GraphedStep(learn, self.phase, device)
        if reason := why_not(self.config, device, processes, self.objectives, before):
            is_news = device.type in RECORDERS or before == "on"
            decide("off", f"run.graph auto is off: {reason}" if is_news else "")
            return learn
        decide("on", "run.graph auto is on: a step is one CUDA graph")

        def give_up(reason: str) -> None:
            decide("off", f"warning: run.graph auto is off from here on, with the same numbers: {reason}")

        return GraphedStep(learn, self.phase, device, give_up=give_up)

    def gradients_stay_here(self) -> ExitStack:
        """A context in which no gradient is exchanged: that of all micro-batches of a step but the last."""
        stack = ExitStack()
        for objective in self.objectives:
            stack.enter_context(self.accelerator.no_sync(objective))
        return stack

    def check_equal(self, done: int) -> None:
        """Raise LDMError if the processes hold different weights after so many steps."""
        if self.accelerator.num_processes == 1:
            return
        sums = self.accelerator.gather(torch.cat([state.checksum() for state in self.states.values()])[None])
        if (sums != sums[0]).any():
            raise LDMError(f"the processes hold different weights at step {done}; nothing was saved")
