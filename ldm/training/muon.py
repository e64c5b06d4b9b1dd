"""Muon (Jordan et al. 2024): each matrix moves along its momentum, orthogonalized."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ldm.nn.outer_convolution import OuterConv2d
from ldm.nn.outer_linear import OuterLinear

CHANNELS = 32  # on both sides, at least: those that face images, latents or labels are left to AdamW
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic of Newton-Schulz; it takes singular values to about 1
ITERATIONS = 5
RMS = 0.2  # of an update at learning rate 1, about that of AdamW: so one learning rate serves both


class Muon(torch.optim.Optimizer):
    """M ← β M + (1 − β) G, W ← (1 − lr λ) W − lr · 0.2 √max(rows, columns) · UVᵀ, with USVᵀ = (1 − β) G + β M.

    That is Muon with Nesterov momentum, scaled as by Liu et al. 2025, equation 4. A convolution filter is the matrix
    outputs x (inputs · positions). As AdamW's fused kernel does, a step divides gradients by `grad_scale` and is a
    no-op where `found_inf` is 1; both are scalars on the device, and nothing is read back.
    """

    grad_scale: Tensor
    found_inf: Tensor

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        (group,) = self.param_groups
        applies = 1 - self.found_inf
        beta, lr, decay = group["momentum"], group["lr"], group["lr"] * group["weight_decay"]
        if isinstance(lr, Tensor):  # on the device, in float64
            lr, decay = lr.to(applies.dtype), decay.to(applies.dtype)
        shapes = self.of_one_shape()
        stacks = [self.nesterov(parameters, applies, beta) for parameters in shapes]
        for parameters, update in zip(shapes, orthogonalized(stacks), strict=True):
            shape = parameters[0].shape
            update = update * RMS * math.sqrt(max(update_sides(shape)))
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - decay * applies)
            torch._foreach_sub_(parameters, list((lr * applies * update).view(-1, *shape)))

    def nesterov(self, parameters: list[Tensor], applies: Tensor, beta: float) -> Tensor:
        """Move the momentum of parameters of one shape; (1 − β) G + β M of each, as a stack of matrices."""
        gradients = torch.stack([p.grad.flatten(1) for p in parameters if p.grad is not None]) / self.grad_scale
        gradients = torch.where(applies > 0, gradients, 0.0)  # what is not finite must not meet a product
        moments = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        momentum = torch.stack([moment.flatten(1) for moment in moments])
        momentum += applies * (1 - beta) * (gradients - momentum)
        torch._foreach_copy_(moments, list(momentum.view(-1, *parameters[0].shape)))
        return torch.lerp(gradients, momentum, beta)

    def of_one_shape(self) -> list[list[Tensor]]:
        """The parameters that have a gradient, by shape."""
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                shapes.setdefault(parameter.shape, []).append(parameter)
        return list(shapes.values())


def orthogonalized(stacks: Sequence[Tensor]) -> list[Tensor]:
    """About UVᵀ for each matrix USVᵀ of some stacks: its singular values become 0.7 to 1.2 (zero stays zero).

    Five Newton-Schulz iterations of a quintic, x ← (a + b xxᵀ + c (xxᵀ)²) x. They are made on xxᵀ, whose side is the
    shorter one of the matrix, and applied once: of a 3 x 3 filter that is a third of the work. All matrices whose
    shorter sides are equal are iterated together, whatever their shapes, as a GPU waits for each small product.
    """
    tall = [stack.shape[-2] > stack.shape[-1] for stack in stacks]
    wide = [stack.mT if is_tall else stack for stack, is_tall in zip(stacks, tall, strict=True)]
    wide = [x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7) for x in wide]
    sides = [x.shape[-2] for x in wide]
    factors: dict[int, Iterator[Tensor]] = {}
    for side in set(sides):
        grams = [x @ x.mT for x in wide if x.shape[-2] == side]
        factors[side] = iter(newton_schulz(torch.cat(grams)).split([len(gram) for gram in grams]))
    updates = [next(factors[side]) @ x for side, x in zip(sides, wide, strict=True)]
    return [x.mT if is_tall else x for x, is_tall in zip(updates, tall, strict=True)]


def newton_schulz(gram: Tensor) -> Tensor:
    """The matrices that take each x of a batch to about UVᵀ, computed from the xxᵀ alone."""
    a, b, c = COEFFICIENTS
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    whole = torch.baddbmm(b * gram, gram, gram, alpha=c) + a * identity
    gram = whole @ gram @ whole
    for _ in range(ITERATIONS - 1):
        factor = torch.baddbmm(b * gram, gram, gram, alpha=c) + a * identity
        whole = factor @ whole
        gram = factor @ gram @ factor
    return whole


def update_sides(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a weight as a matrix."""
    return shape[0], math.prod(shape[1:])


def is_hidden_weight(module: nn.Module) -> bool:
    """Whether a module's weight is a matrix between hidden layers."""
    if isinstance(module, OuterConv2d | OuterLinear):
        return False
    if isinstance(module, nn.Linear):
        return min(module.in_features, module.out_features) >= CHANNELS
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and min(module.in_channels, module.out_channels) >= CHANNELS
    return False


def hidden_weights(module: nn.Module) -> set[str]:
    """The names of the weights that Muon is made for, as in `module.named_parameters()`."""
    return {
        f"{name}.weight" if name else "weight"
        for name, part in module.named_modules()
        if is_hidden_weight(part) and "weight" in dict(part.named_parameters(recurse=False))
    }
