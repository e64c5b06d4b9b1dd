"""How much the critic's opinion weighs against the distances: their gradients are compared where both begin."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ldm.processes import mean_over_processes
from ldm.shapes import full_precision

MOST = 1e4  # the largest adaptive weight


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
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


def with_gradients(value: Tensor, places: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """`value`, as a function of `places` whose gradients are known already."""
    moved = [((place - place.detach()) * gradient).sum() for place, gradient in zip(places, gradients, strict=True)]
    return value + torch.stack(moved).sum()


@torch.no_grad()
def adaptive_weight(distances: Tensor, opinion: Tensor, given: Tensor, layer: nn.Conv2d) -> Tensor:
    """The norm of the distances' gradient at the weight of the last layer over that of the critic's opinion.

    Esser et al. 2021 (VQGAN), equation 7. `distances` and `opinion` are the gradients at the layer's output, batch x
    channels x height x width, `given` is its input. One convolution makes them the gradients at the weight, which are
    averaged over the processes before their norms are taken, so that all processes find the same number.
    """
    channels, *rest = layer.weight.shape
    with torch.autocast(given.device.type, enabled=False):
        both = conv2d_weight(
            full_precision(given),
            (2 * channels, *rest),
            torch.cat([distances, opinion], 1),
            layer.stride,
            layer.padding,
            layer.dilation,
        )
    of_distances, of_opinion = mean_over_processes(both).unflatten(0, (2, channels)).flatten(1).norm(dim=1)
    return (of_distances / (of_opinion + 1e-8)).clamp(max=MOST)
