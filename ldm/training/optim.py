"""The optimizer: clipping, fused AdamW or Muon, learning rate schedule and a guard, without waiting for the device."""

import math

import torch
from torch import Tensor, nn

from ldm.nn.magnitude_preserving import UnitWeight
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


class GuardedOptimizer:
    """AdamW, beside Muon where the config says so, that is a no-op from the first loss or gradient that is not finite.

    `all_finite` is 1 on the device until then and 0 from then on; the host may look whenever it likes. Clipping is the
    fused kernel's division by `grad_scale`, skipping is its `found_inf`, so nothing is read back during a step.
    """

    def __init__(self, module: nn.Module, config: OptimConfig, scaler: "torch.amp.GradScaler | None"):
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.config, self.scaler = config, scaler
        matrices = self.parameters.keys() & hidden_weights(module) if isinstance(config, MuonConfig) else set()
        others = [p for name, p in self.parameters.items() if name not in matrices]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        ]
        if isinstance(config, MuonConfig) and matrices:
            chosen = [p for name, p in self.parameters.items() if name in matrices]
            self.optimizers.append(
                Muon(chosen, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
            )
        self.unit_weights = [part for part in module.modules() if isinstance(part, UnitWeight)]
        self.all_finite = torch.ones((), dtype=torch.float32, device=next(module.parameters()).device)

    @torch.no_grad()
    def step(self, lr: float, loss: Tensor) -> Tensor:
        """One update; returns the norm of the gradient before clipping. Gradients are gone afterwards."""
        for parameter in self.parameters.values():
            if not parameter.requires_grad:  # frozen for now: no momentum may move it, and no decay
                parameter.grad = None
        if self.scaler is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # 0 * loss is 0 unless the loss is infinite or not a number.
        finite = torch.add(norm if self.scaler is None else loss, loss, alpha=0) < math.inf
        self.all_finite.mul_(finite)
        applies = self.all_finite if self.scaler is None else self.all_finite * (norm < math.inf)
        for optimizer in self.optimizers:
            optimizer.found_inf = 1 - applies  # type: ignore[attr-defined]
            optimizer.grad_scale = (norm / self.config.clip).clamp_(min=1).float()  # type: ignore[attr-defined]
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for part in self.unit_weights:
            part.force_magnitude(applies)
        if self.scaler is not None:
            self.scaler.update()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's memory by parameter name."""
        return {
            f"{key}.{name}": value
            for name, parameter in self.parameters.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for key, value in tensors.items():
            kind, name = key.split(".", 1)
            parameter = self.parameters[name]
            holder = next(
                each for each in self.optimizers if any(parameter is p for p in each.param_groups[0]["params"])
            )
            holder.state[parameter][kind] = value.to(parameter.device)
