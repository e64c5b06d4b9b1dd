"""How much the discriminator's opinion weighs against the distances: their gradients are compared where both begin."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ldm.distributed import mean_over_processes
from ldm.shapes import full_precision

MAX_WEIGHT = 1e4  # the largest adaptive weight


@contextmanager
def record_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What the layer is given while the context lasts."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def gradients_at(loss: Callable[..., Tensor], places: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The value of `loss(*places)` and its gradient at each of them, without going further back.

    The backward pass is made of the loss times the number of values of the first place: the gradient of a mean would
    be too small for half precision.
    """
    leaves = [place.detach().requires_grad_() for place in places]
    value, scale = loss(*leaves), leaves[0].numel()
    found = torch.autograd.grad(value * scale, leaves, materialize_grads=True)
    return value.detach(), [gradient / scale for gradient in found]


class _KnownGradients(torch.autograd.Function):
    """The identity on its first argument; the second half of the others are the gradients at the first half."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *places_and_gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*places_and_gradients[len(places_and_gradients) // 2 :])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradients = ctx.saved_tensors
        return None, *(upstream[0] * gradient for gradient in gradients), *(None for _ in gradients)


def with_known_gradients(value: Tensor, places: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """`value`, as a function of `places` whose gradients are known already.

    A gradient that overflowed in half precision stays in the gradient, where the loss scale answers it.
    """
    return _KnownGradients.apply(value, *places, *gradients)


@torch.no_grad()
def adaptive_weight(distances: Tensor, generator_loss: Tensor, given: Tensor, layer: nn.Conv2d) -> Tensor:
    """The norm of the distances' gradient at the weight of the last layer over that of the discriminator's opinion.

    Esser et al. 2021 (VQGAN), equation 7. `distances` and `opinion` are the gradients at the layer's output, batch x
    channels x height x width, `given` is its input. One convolution makes them the gradients at the weight, which are
    averaged over the processes before their norms are taken, so that all processes find the same number. With
    accumulation every micro-batch has a weight of its own.
    """
    channels, *rest = layer.weight.shape
    with torch.autocast(given.device.type, enabled=False):
        both = conv2d_weight(
            full_precision(given),
            (2 * channels, *rest),
            torch.cat([distances, generator_loss], 1),
            layer.stride,
            layer.padding,
            layer.dilation,
        )
    of_distances, of_opinion = mean_over_processes(both).reshape(2, -1).norm(dim=1)
    # An overflow in half precision must not reach the value of the loss: that would be the end of the run.
    return (of_distances / (of_opinion + 1e-8)).nan_to_num(nan=0.0).clamp(max=MAX_WEIGHT)
