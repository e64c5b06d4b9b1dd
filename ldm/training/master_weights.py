"""Half-precision weights with float32 masters: the network computes in bfloat16, and training adds up in float32."""

import torch
from torch import nn


def lower_weights(module: nn.Module, part: str) -> dict[str, nn.Parameter]:
    """Round all parameters of a part of a module to bfloat16, in place; returns their float32 masters by name.

    Its buffers stay as they are. What the part is given is brought to its precision by the module: no autocast is
    needed, and no copies of the weights in another precision are made during a step.
    """
    masters: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        if name.startswith(f"{part}."):
            masters[name] = nn.Parameter(parameter.detach().float().clone())
            parameter.data = parameter.data.to(torch.bfloat16)
    return masters
