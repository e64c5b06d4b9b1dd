"""All that a run must never lose: the weights, their averages, the optimizer's memory."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import Checkpoint
from ldm.errors import CheckpointError
from ldm.training.config import OptimConfig
from ldm.training.ema import SIGMA_RELS, PowerEMA
from ldm.training.optim import GuardedAdamW, learning_rate


class TrainState:
    """A module that is trained, with its optimizer and, where `averaged`, its averages.

    Several in one run are told apart by `name`; the main one has none. The learning rate goes through its schedule once
    in each `span` of steps: of a step the first one of it, and the first one after it.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        scaler: "torch.amp.GradScaler | None",
        *,
        name: str = "",
        ema_model: bool = True,
        window: Callable[[int], tuple[int, int]],
    ):
        self.module, self.config, self.scaler, self.name, self.window = module, config, scaler, name, window
        parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.names = list(parameters)
        self.optimizer = GuardedAdamW(parameters, config, scaler)
        self.averages = PowerEMA([*parameters.values()]) if ema_model else None

    def advance(self, number: int, lr: float, loss: Tensor) -> Tensor:
        """Update number `number` (from 1) with the gradients that are there; returns their norm."""
        norm = self.optimizer.step(lr, loss)
        if self.averages is not None:
            self.averages.update(number, self.optimizer.all_finite)
        return norm

    def lr(self, step: int) -> float:
        """The learning rate of update number `step` (from 0)."""
        first, end = self.window(step)
        return learning_rate(self.config, step - first, end - first)

    def file(self, name: str) -> str:
        """What a file of this module is called in a checkpoint: `model`, or `discriminator-model`."""
        return f"{self.name}-{name}" if self.name else name

    def averages_by_name(self) -> dict[str, dict[str, Tensor]]:
        """Both averages by length and parameter name; none where none are kept."""
        if self.averages is None:
            return {}
        return {length: dict(zip(self.names, self.averages.averages[length], strict=True)) for length in SIGMA_RELS}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file and name."""
        averages = {f"ema-{length}": average for length, average in self.averages_by_name().items()}
        held = {"model": self.module.state_dict(), "optimizer": self.optimizer.tensors(), **averages}
        return {self.file(name): tensors for name, tensors in held.items()}

    def host_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        return {} if self.scaler is None else {self.file("scaler"): self.scaler.state_dict()}

    def load(self, found: Checkpoint) -> None:
        """Take back what a checkpoint holds."""
        try:
            self.module.load_state_dict(found.tensors[self.file("model")])
            self.optimizer.load(found.tensors[self.file("optimizer")])
            for length, averages in self.averages_by_name().items():
                for name, average in averages.items():
                    average.copy_(found.tensors[self.file(f"ema-{length}")][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{found.path} does not fit this model: {error}") from error
        if self.scaler is not None and self.file("scaler") in found.state:
            self.scaler.load_state_dict(found.state[self.file("scaler")])

    def ema_model(self, length: str) -> Any:
        """A copy of the module with averaged weights, for looking at; training is not touched."""
        average = copy.deepcopy(self.module).eval()
        parameters = dict(average.named_parameters())
        with torch.no_grad():
            for name, value in self.averages_by_name()[length].items():
                parameters[name].copy_(value)
        return average

    def checksum(self) -> Tensor:
        """One integer per parameter that changes with any of its bits."""
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = [p.detach().view(integers[p.dtype.itemsize]).sum(dtype=torch.int64) for p in self.module.parameters()]
        return torch.stack(bits)
