"""The optimizer: gradient clipping, fused AdamW, learning rate schedule and a guard, without waiting for the device."""

import math

import torch
from torch import Tensor, nn

from ldm.training.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of update number `step` (from 0) in a run of `steps`: linear warm-up, then constant or half a cosine."""
    warmup = min(config.warmup, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(steps - warmup, 1)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


class GuardedAdamW:
    """Fused AdamW that becomes a no-op, for good, at the first loss or gradient that is not a finite number.

    `alive` is 1 on the device until then and 0 from then on; the host may look whenever it likes. Clipping is the
    fused kernel's division by `grad_scale`, skipping is its `found_inf`, so nothing is read back during a step.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], config: OptimConfig, scaler: "torch.amp.GradScaler | None"):
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.config, self.scaler = config, scaler
        self.adamw = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.all_finite = torch.ones((), dtype=torch.float32, device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, lr: float, loss: Tensor) -> Tensor:
        """One update; returns the norm of the gradient before clipping. Gradients are gone afterwards."""
        for parameter in self.parameters:
            if not parameter.requires_grad:  # frozen for now: no momentum may move it, and no decay
                parameter.grad = None
        if self.scaler is not None:
            self.scaler.unscale_(self.adamw)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # 0 * loss is 0 unless the loss is infinite or not a number.
        finite = torch.add(norm if self.scaler is None else loss, loss, alpha=0) < math.inf
        self.all_finite.mul_(finite)
        applies = self.all_finite if self.scaler is None else self.all_finite * (norm < math.inf)
        self.adamw.found_inf = 1 - applies  # type: ignore[attr-defined]
        self.adamw.grad_scale = (norm / self.config.clip).clamp_(min=1).float()  # type: ignore[attr-defined]
        self.adamw.param_groups[0]["lr"] = lr
        self.adamw.step()
        if self.scaler is not None:
            self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's memory by parameter name."""
        return {
            f"{key}.{name}": value
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for key, value in self.adamw.state[parameter].items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for key, value in tensors.items():
            kind, name = key.split(".", 1)
            parameter = self.parameters[self.names.index(name)]
            self.adamw.state[parameter][kind] = value.to(parameter.device)
