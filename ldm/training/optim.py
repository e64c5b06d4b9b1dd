"""The optimizer: clipping, fused AdamW or Muon, learning rate schedule and a guard, without waiting for the device."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ldm.nn.magnitude_preserving import UnitWeight, force_magnitude
from ldm.training.config import MuonConfig, OptimConfig
from ldm.training.muon import Muon, hidden_weights


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of update number `step` (from 0) in a run of `steps`: linear warm-up, then as `config.schedule` says.

    Half a cosine, or constant and linear in the last `config.decay` of the steps; both end at a hundredth of the peak.
    """
    warmup = min(config.warmup, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "linear":
        left = (steps - step) / max(config.decay * steps, 1)
        return config.lr * (0.01 + 0.99 * min(max(left, 0.0), 1.0))
    done = (step - warmup) / max(steps - warmup, 1)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def lr_factors(module: nn.Module) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by: the `lr_factor` of the module that it is in, or 1.

    Of several modules that it is in, the innermost one that has a factor counts.
    """
    factors = {name: 1.0 for name, _ in module.named_parameters()}
    for prefix, part in module.named_modules():
        if hasattr(part, "lr_factor"):
            factors.update((f"{prefix}.{name}".lstrip("."), part.lr_factor) for name, _ in part.named_parameters())
    return factors


class GuardedOptimizer:
    """AdamW, beside Muon where the config says so, that is a no-op from the first loss or gradient that is not finite.

    `all_finite` is 1 on the device until then and 0 from then on; the host may look whenever it likes. Clipping is the
    fused kernel's division by `grad_scale`, skipping is its `found_inf`, so nothing is read back during a step.

    What it moves is `trained`: the module's parameters or, where `masters` has one by that name, the float32 master of
    a parameter that is itself in half precision and is rounded anew after every step.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        scaler: "torch.amp.GradScaler | None",
        masters: Mapping[str, nn.Parameter] | None = None,
    ):
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.trained = {name: (masters or {}).get(name, p) for name, p in self.parameters.items()}
        self.rounded = {name for name, p in self.parameters.items() if self.trained[name] is not p}
        self.gradients: dict[str, Tensor] = {}  # of masters, in float32
        self.config, self.scaler = config, scaler
        self.device = next(module.parameters()).device
        matrices = self.parameters.keys() & hidden_weights(module) if isinstance(config, MuonConfig) else set()
        lr, decay, on_gpu = config.lr, config.weight_decay, self.device.type == "cuda"
        factors = lr_factors(module)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.factors: list[float] = []  # of the learning rate, for each of the optimizers
        for factor in sorted({factors[name] for name in self.parameters}, reverse=True):
            here = [name for name in self.parameters if factors[name] == factor]
            if others := [self.trained[name] for name in here if name not in matrices]:
                adamw = torch.optim.AdamW(others, lr, config.betas, weight_decay=decay, fused=True, capturable=on_gpu)
                self.optimizers.append(adamw)
                self.factors.append(factor)
            if isinstance(config, MuonConfig) and (chosen := [self.trained[name] for name in here if name in matrices]):
                self.optimizers.append(Muon(chosen, lr=lr, momentum=config.momentum, weight_decay=decay))
                self.factors.append(factor)
        self.unit_weights = [
            self.trained[f"{name}.weight"] for name, part in module.named_modules() if isinstance(part, UnitWeight)
        ]
        self.all_finite = torch.ones((), dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def step(self, lr: float | Tensor, loss: Tensor) -> Tensor:
        """One update; returns the norm of the gradient before clipping. Gradients are gone afterwards.

        The learning rate is a number, or a float64 scalar on the device.
        """
        for parameter in self.parameters.values():
            if not parameter.requires_grad:  # frozen for now: no momentum may move it, and no decay
                parameter.grad = None
        self.give_gradients_to_masters()
        if self.scaler is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # 0 * loss is 0 unless the loss is infinite or not a number.
        finite = torch.add(norm if self.scaler is None else loss, loss, alpha=0) < math.inf
        self.all_finite.mul_(finite)
        applies = self.all_finite if self.scaler is None else self.all_finite * (norm < math.inf)
        for optimizer, factor in zip(self.optimizers, self.factors, strict=True):
            rate = lr if factor == 1 else lr * factor
            optimizer.found_inf = 1 - applies  # type: ignore[attr-defined]
            optimizer.grad_scale = (norm / self.config.clip).clamp_(min=1).float()  # type: ignore[attr-defined]
            optimizer.param_groups[0]["lr"] = rate if isinstance(optimizer, Muon) else self.rate_for_kernel(rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for weight in self.unit_weights:
            force_magnitude(weight, applies)
        if self.rounded:
            names = [name for name in self.parameters if name in self.rounded]
            torch._foreach_copy_([self.parameters[n] for n in names], [self.trained[n] for n in names])
        if self.scaler is not None:
            self.scaler.update()
        return norm

    def give_gradients_to_masters(self) -> None:
        """Move the gradients of rounded parameters to their masters, in float32."""
        names = [name for name, p in self.parameters.items() if name in self.rounded and p.grad is not None]
        if not names:
            return
        for name in names:
            if name not in self.gradients:
                self.gradients[name] = torch.empty_like(self.trained[name])
            self.trained[name].grad = self.gradients[name]
        torch._foreach_copy_(
            [self.gradients[name] for name in names],
            [self.parameters[name].grad for name in names],  # type: ignore
        )
        for name in names:
            self.parameters[name].grad = None

    def forget_gradients(self) -> None:
        """Drop the gradients of a step that came to nothing."""
        for parameter in (*self.parameters.values(), *self.trained.values()):
            parameter.grad = None

    def rate_for_kernel(self, lr: float | Tensor) -> float | Tensor:
        """The learning rate for AdamW: its kernel on a GPU takes a scalar there in float32, so that any is rounded."""
        if self.device.type != "cuda":
            return lr
        return lr.float() if isinstance(lr, Tensor) else float(np.float32(lr))

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's memory by parameter name."""
        return {
            f"{key}.{name}": value
            for name, parameter in self.trained.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for key, value in tensors.items():
            kind, name = key.split(".", 1)
            parameter = self.trained[name]
            holder = next(
                each for each in self.optimizers if any(parameter is p for p in each.param_groups[0]["params"])
            )
            if (kind == "momentum") != isinstance(holder, Muon):
                raise ValueError(f"{name} was trained by another optimizer")
            holder.state[parameter][kind] = value.to(parameter.device)
