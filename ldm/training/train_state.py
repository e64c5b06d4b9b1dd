"""The training state: the weights, their averages (EMA) and the optimizer's state, to and from a checkpoint."""

import copy
from collections.abc import Callable, Mapping, Sequence
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
    in each `window` of steps: the first step of the one that a step lies in, and the first step after it. `masters` are
    the float32 weights of the parameters that the module itself has in half precision: they are trained, averaged, and
    kept in checkpoints.
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
        masters: Mapping[str, nn.Parameter] | None = None,
    ):
        self.module, self.config, self.scaler, self.name, self.window = module, config, scaler, name, window
        self.masters = masters or {}
        self.optimizer = GuardedOptimizer(module, config, scaler, self.masters)
        self.names = list(self.optimizer.trained)
        self.ema = PowerEMA([*self.optimizer.trained.values()]) if keeps_ema else None

    def advance(self, lr: float | Tensor, shares: Sequence[float | Tensor], loss: Tensor) -> Tensor:
        """An update with the gradients that are there, of which the averages take their shares; returns the norm."""
        norm = self.optimizer.step(lr, loss)
        if self.ema is not None:
            self.ema.update(shares, self.optimizer.all_finite)
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
        held = {"model": self.weights(), "optimizer": self.optimizer.tensors(), **averages}
        return {self.key(name): tensors for name, tensors in held.items()}

    def weights(self) -> dict[str, Tensor]:
        """The module's state dict, with masters where there are any."""
        masters = {
            id(p): self.masters[name].detach() for name, p in self.module.named_parameters() if name in self.masters
        }
        plain, named = self.module.state_dict(), self.module.state_dict(keep_vars=True)
        return {name: masters.get(id(named[name]), value) for name, value in plain.items()}

    def host_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        return {} if self.scaler is None else {self.key("scaler"): self.scaler.state_dict()}

    def load(self, found: Checkpoint) -> None:
        """Take back what a checkpoint holds."""
        try:
            weights = found.tensors[self.key("model")]
            self.module.load_state_dict(weights)
            with torch.no_grad():
                for name, master in self.masters.items():
                    master.copy_(weights[name])
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
        for name, master in self.masters.items():
            parameters[name].data = master.detach().clone()
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        return other

    def checksum(self) -> Tensor:
        """One integer per parameter that changes with any of its bits."""
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        values = [self.masters.get(name, parameter).detach() for name, parameter in self.module.named_parameters()]
        return torch.stack([each.view(integers[each.dtype.itemsize]).sum(dtype=torch.int64) for each in values])
