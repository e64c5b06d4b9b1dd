"""The training state: the weights, their averages (EMA) and the optimizer's state, to and from a checkpoint."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import Checkpoint
from ldm.errors import CheckpointError
from ldm.training.config import OptimConfig
from ldm.training.ema import SIGMA_RELS, PowerEMA
from ldm.training.optim import GuardedOptimizer, learning_rate


class TrainState:
    """A module that is trained, with its optimizer and, where `keeps_ema`, its averages.

    Several in one run are told apart by `name`; the main one has none. The learning rate goes through its schedule once
    in each `window` of steps: the first step of the one that a step lies in, and the first step after it.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        scaler: "torch.amp.GradScaler | None",
        *,
        name: str = "",
        keeps_ema: bool = True,
        window: Callable[[int], tuple[int, int]],
    ):
        self.module, self.config, self.scaler, self.name, self.window = module, config, scaler, name, window
        parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.names = list(parameters)
        self.optimizer = GuardedOptimizer(module, config, scaler)
        self.ema = PowerEMA([*parameters.values()]) if keeps_ema else None

    def advance(self, number: int, lr: float, loss: Tensor) -> Tensor:
        """Update number `number` (from 1) with the gradients that are there; returns their norm."""
        norm = self.optimizer.step(lr, loss)
        if self.ema is not None:
            self.ema.update(number, self.optimizer.all_finite)
        return norm

    def lr(self, step: int) -> float:
        """The learning rate of update number `step` (from 0)."""
        first, end = self.window(step)
        return learning_rate(self.config, step - first, end - first)

    def key(self, name: str) -> str:
        """The name of a file of this module in a checkpoint: `model`, or `discriminator-model`."""
        return f"{self.name}-{name}" if self.name else name

    def ema_by_name(self) -> dict[str, dict[str, Tensor]]:
        """Both averages by length and parameter name; none where none are kept."""
        if self.ema is None:
            return {}
        return {length: dict(zip(self.names, self.ema.averages[length], strict=True)) for length in SIGMA_RELS}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file and name."""
        averages = {f"ema-{length}": average for length, average in self.ema_by_name().items()}
        held = {"model": self.module.state_dict(), "optimizer": self.optimizer.tensors(), **averages}
        return {self.key(name): tensors for name, tensors in held.items()}

    def host_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        return {} if self.scaler is None else {self.key("scaler"): self.scaler.state_dict()}

    def load(self, found: Checkpoint) -> None:
        """Take back what a checkpoint holds."""
        try:
            self.module.load_state_dict(found.tensors[self.key("model")])
            self.optimizer.load(found.tensors[self.key("optimizer")])
            for length, averages in self.ema_by_name().items():
                for name, average in averages.items():
                    average.copy_(found.tensors[self.key(f"ema-{length}")][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{found.path} does not fit this model: {error}") from error
        if self.scaler is not None and self.key("scaler") in found.state:
            self.scaler.load_state_dict(found.state[self.key("scaler")])

    def ema_model(self, length: str) -> Any:
        """A copy of the module with averaged weights, for looking at; training is not touched."""
        return self.with_weights(self.ema_by_name()[length])

    def with_weights(self, weights: Mapping[str, Tensor]) -> Any:
        """A copy of the module whose parameters of these names have other values."""
        other = copy.deepcopy(self.module).eval()
        parameters = dict(other.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        return other

    def checksum(self) -> Tensor:
        """One integer per parameter that changes with any of its bits."""
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = [p.detach().view(integers[p.dtype.itemsize]).sum(dtype=torch.int64) for p in self.module.parameters()]
        return torch.stack(bits)
