"""Kernel counts of a training step's network on a GPU, on the meta device: nothing is computed.

    python benchmarks/kernels.py

Every call into torch that is not a view counts as one kernel: forward and backward of the objective, by precision. The
optimizer and the averages add about 20, whatever the size. Autocast is imitated by CUDA's lists, fused attention by one
kernel each way: both would need a GPU. In eager mode a kernel costs the host about 6 µs, in a CUDA graph about 2.5.
"""

import collections
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.batch import ClassAttribute, ConditionSchema, LatentBatch, Step
from ldm.diffusion.config import DenoiserConfig, SamplingConfig, UNetConfig
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.objective import DenoisingObjective
from ldm.randomness import StepRandom
from ldm.training.master_weights import lower_weights

DIGITS = ConditionSchema((ClassAttribute("label", tuple("0123456789")),))
HALF = {torch.conv2d, F.linear, torch.matmul, torch.bmm, torch.addmm, Tensor.matmul, Tensor.__matmul__}
FULL = {F.group_norm, torch.group_norm, F.layer_norm, torch.layer_norm, F.mse_loss, F.l1_loss, F.softmax, torch.exp}
FULL |= {Tensor.exp, torch.log, Tensor.log, Tensor.pow, Tensor.__pow__, torch.pow, Tensor.sum, Tensor.norm}
NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh"}
SIZES = {  # of U-Nets: widths, blocks, side of the latents, batch
    "9.8 M": ((96, 192), 2, 16, 64),
    "72 M": ((160, 320, 480), 2, 32, 256),
}


class Kernels(TorchDispatchMode):
    """Counts the kernels, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        self.counts[name] += function.namespace == "aten" and not function.is_view and name not in NO_KERNEL
        return function(*args, **(kwargs or {}))


class FusedAttention(torch.autograd.Function):
    """One kernel forward and one backward, as flash and memory-efficient attention have them."""

    @staticmethod
    def forward(ctx: Any, *qkv: Tensor) -> Tensor:
        return torch.ops.aten.clone(qkv[0])

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        whole = torch.ops.aten.clone(gradient[0])
        return whole, whole.view_as(whole), whole.view_as(whole)


class AsOnCUDA(TorchFunctionMode):
    """Attention is fused, and with `autocast` functions get their arguments as CUDA's autocast to bf16 gives them."""

    def __init__(self, *, autocast: bool) -> None:
        super().__init__()
        self.autocast, self.weights = autocast, dict[int, Tensor]()

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (value.is_leaf and value.requires_grad and dtype == torch.bfloat16):
            return value.to(dtype)
        if id(value) not in self.weights:
            self.weights[id(value)] = value.to(dtype)
        return self.weights[id(value)]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            if not args[0].is_contiguous():
                torch.ops.aten.clone(args[0])  # `prefers_contiguous` on a GPU: one copy of all three
            qkv = [self.cast(each, torch.bfloat16) if self.autocast else each for each in args[:3]]
            return FusedAttention.apply(*qkv)
        if self.autocast and (function in HALF or function in FULL):
            dtype = torch.bfloat16 if function in HALF else torch.float32
            args = tuple(self.cast(each, dtype) for each in args)
            kwargs = {name: self.cast(each, dtype) for name, each in kwargs.items()}
        return function(*args, **kwargs)


def kernels(objective: nn.Module, module: nn.Module, batch: Any, precision: str) -> collections.Counter[str]:
    """Those of one forward and backward pass."""
    if precision == "bf16-weights":
        lower_weights(module, "network")
    with AsOnCUDA(autocast=precision == "bf16"), Kernels() as counter:
        objective(batch, Step(batch, StepRandom(0, 0, 1))).total.backward()
    return counter.counts


def denoiser(size: str, precision: str) -> collections.Counter[str]:
    """The step of a denoiser."""
    widths, blocks, side, count = SIZES[size]
    attention = tuple(range(1, len(widths)))
    config = DenoiserConfig(network=UNetConfig(widths=widths, blocks=blocks, attention=attention))
    with torch.device("meta"):
        model = create_denoiser(DiffusionModelConfig((4, side, side), DIGITS, config, SamplingConfig()))
        latents, sigma = torch.empty(count, 4, side, side), torch.empty(count)
        condition = DIGITS.condition(torch.empty(count, dtype=torch.int64))
    batch = LatentBatch(latents, torch.empty_like(latents), sigma, condition)
    return kernels(DenoisingObjective(model), model, batch, precision)


def main() -> None:
    for size in SIZES:
        for precision in ("fp32", "bf16", "bf16-weights"):
            counts = denoiser(size, precision)
            most = ", ".join(f"{count} {name}" for name, count in counts.most_common(6))
            print(f"U-Net {size:6} {precision:12} {counts.total():5} kernels: {most}")


if __name__ == "__main__":
    main()
