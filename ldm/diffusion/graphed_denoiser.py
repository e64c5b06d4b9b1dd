"""One denoising as a CUDA graph: its kernels are launched together, which is what a small network waits for."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ldm.batch import Condition
from ldm.diffusion.denoiser import Denoiser
from ldm.errors import RequestError
from ldm.shapes import Latents, NoiseLevels

WARM_UP = 3  # calls before one is recorded, in which libraries choose their kernels
Replay: TypeAlias = Callable[[list[Tensor]], Tensor]


class GraphedDenoiser:
    """A denoiser whose calls are recorded once for each shape of their arguments, and then replayed.

    Its weights must stay where they are. RequestError where there is no CUDA GPU.
    """

    def __init__(self, denoiser: Denoiser):
        device = next(denoiser.parameters()).device
        if device.type != "cuda":
            raise RequestError("graph", f"needs a CUDA GPU, and the model is on {device.type}")
        self.denoiser, self.replays = denoiser, dict[object, Replay]()

    def __call__(self, noisy: Latents, sigma: NoiseLevels, condition: Condition | None) -> Latents:
        names = () if condition is None else tuple(condition.values)
        inputs = [noisy, sigma, *(() if condition is None else condition.values.values())]
        key = (condition is None, names, tuple((each.shape, each.dtype) for each in inputs))
        if key not in self.replays:
            self.replays[key] = self.recorded(inputs, None if condition is None else names)
        return self.replays[key](inputs)

    def recorded(self, inputs: list[Tensor], names: tuple[str, ...] | None) -> Replay:
        """A call with inputs of these shapes, as a graph that reads them from one place."""
        fixed = [each.clone(memory_format=torch.contiguous_format) for each in inputs]

        def call() -> Tensor:
            condition = None if names is None else Condition(dict(zip(names, fixed[2:], strict=True)))
            denoised: Tensor = self.denoiser(fixed[0], fixed[1], condition)
            return denoised

        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.no_grad(), torch.cuda.graph(graph):
            output = call()

        def replay(given: list[Tensor]) -> Tensor:
            for place, value in zip(fixed, given, strict=True):
                place.copy_(value)
            graph.replay()
            return output.clone()

        return replay
