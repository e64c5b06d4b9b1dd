"""Collectives of a distributed run: means over the processes, and the broadcast of initial weights."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether there are other processes to agree with."""
    return dist.is_available() and dist.is_initialized()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of `value` over all processes, without gradient; with one process the value itself."""
    if not is_distributed():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def any_process(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which of these flags are raised by this or any other process."""
    if not is_distributed():
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return [value > 0 for value in raised.tolist()]


def copy_from_main(module: nn.Module, device: torch.device) -> None:
    """Move a module to this process's device, and give it the parameters and buffers that the main process has."""
    module.to(device)
    for value in module.state_dict().values() if is_distributed() else ():
        dist.broadcast(value.detach(), 0)


def mean_with_gradient(value: Tensor) -> Tensor:
    """The same with gradient, which is averaged on its way back.

    A function of it then has on every process the gradient that it has for the whole batch, once the processes'
    gradients are averaged.
    """
    return _SharedMean.apply(value) if is_distributed() else value  # type: ignore[no-any-return]


class _SharedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return mean_over_processes(value)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return mean_over_processes(gradient[0].contiguous())
