"""All that a run must never lose: the weights, their averages, the optimizer's memory."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import Checkpoint
from ldm.errors import CheckpointError
from ldm.training.ema import LENGTHS, PowerAverages
from ldm.training.optim import GuardedAdamW
from ldm.training.settings import Optim as OptimSettings


class State:
    """The module that is trained, with its optimizer and its averages."""

    def __init__(self, module: nn.Module, settings: OptimSettings, scaler: "torch.amp.GradScaler | None"):
        self.module, self.scaler = module, scaler
        parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.names = list(parameters)
        self.optimizer = GuardedAdamW(parameters, settings, scaler)
        self.averages = PowerAverages([*parameters.values()])

    def advance(self, number: int, lr: float, loss: Tensor) -> Tensor:
        """Update number `number` (from 1) with the gradients that are there; returns their norm."""
        norm = self.optimizer.step(lr, loss)
        self.averages.update(number, self.optimizer.alive)
        return norm

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file and name."""
        averages = {
            f"ema-{length}": dict(zip(self.names, self.averages.averages[length], strict=True)) for length in LENGTHS
        }
        return {"model": self.module.state_dict(), "optimizer": self.optimizer.tensors(), **averages}

    def counters(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        return {} if self.scaler is None else {"scaler": self.scaler.state_dict()}

    def load(self, found: Checkpoint) -> None:
        """Take back what a checkpoint holds."""
        try:
            self.module.load_state_dict(found.tensors["model"])
            self.optimizer.load(found.tensors["optimizer"])
            for length in LENGTHS:
                for name, average in zip(self.names, self.averages.averages[length], strict=True):
                    average.copy_(found.tensors[f"ema-{length}"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{found.path} does not fit this model: {error}") from error
        if self.scaler is not None and "scaler" in found.state:
            self.scaler.load_state_dict(found.state["scaler"])

    def averaged(self, length: str) -> Any:
        """A copy of the module with averaged weights, for looking at; training is not touched."""
        average = copy.deepcopy(self.module).eval()
        parameters = dict(average.named_parameters())
        with torch.no_grad():
            for name, value in zip(self.names, self.averages.averages[length], strict=True):
                parameters[name].copy_(value)
        return average

    def checksum(self) -> Tensor:
        """One integer per parameter that changes with any of its bits."""
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = [p.detach().view(integers[p.dtype.itemsize]).sum(dtype=torch.int64) for p in self.module.parameters()]
        return torch.stack(bits)
