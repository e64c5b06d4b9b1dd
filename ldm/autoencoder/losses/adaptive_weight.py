"""The adaptive weight of the adversarial loss: gradient norms are compared at the last layer (VQGAN)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ldm.distributed import mean_over_processes
from ldm.shapes import full_precision

MAX_WEIGHT = 1e4


@contextmanager
def record_inputs(layer: nn.Module | None) -> Iterator[list[Tensor]]:
    """The inputs that the layer is given while the context lasts, detached; without a layer there are none."""
    inputs: list[Tensor] = []
    if layer is None:
        yield inputs
        return
    handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    try:
        yield inputs
    finally:
        handle.remove()


def summed(terms: dict[str, Tensor]) -> Tensor:
    """The sum of some loss terms, in their order."""
    return reduce(add, terms.values())


def gradients_at(
    losses: Callable[..., dict[str, Tensor]], places: list[Tensor]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The terms of `losses(*places)`, and their sum's gradient at each place, without going further back.

    The backward pass is made of the sum times the number of values of the first place: the gradient of a mean would
    be too small for half precision.
    """
    leaves = [place.detach().requires_grad_() for place in places]
    terms, scale = losses(*leaves), leaves[0].numel()
    gradients = torch.autograd.grad(summed(terms) * scale, leaves, materialize_grads=True)
    return {name: term.detach() for name, term in terms.items()}, [gradient / scale for gradient in gradients]


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
def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, layer_input: Tensor, layer: nn.Conv2d) -> Tensor:
    """The norm of the reconstruction loss's gradient at the last layer's weight over that of the adversarial loss's.

    Esser et al. 2021 (VQGAN), equation 7. `reconstruction` and `adversarial` are the two losses' gradients at the
    layer's output, batch x channels x height x width, `layer_input` is its input. One convolution makes them the
    gradients at the weight, which are averaged over the processes before their norms are taken, so that all processes
    find the same number. With accumulation every micro-batch has a weight of its own.
    """
    channels, *rest = layer.weight.shape
    with torch.autocast(layer_input.device.type, enabled=False):
        both = conv2d_weight(
            full_precision(layer_input),
            (2 * channels, *rest),
            torch.cat([reconstruction, adversarial], 1),
            layer.stride,
            layer.padding,
            layer.dilation,
        )
    of_reconstruction, of_adversarial = mean_over_processes(both).reshape(2, -1).norm(dim=1)
    # An overflow in half precision must not reach the value of the loss: that would be the end of the run.
    return (of_reconstruction / (of_adversarial + 1e-8)).nan_to_num(nan=0.0).clamp(max=MAX_WEIGHT)
