"""The parts into which processes and micro-batches divide a global batch."""

from collections.abc import Callable

from ldm.data.batches import BatchSampler, BatchSpec


def tiled(sampler: Callable[..., BatchSampler], step: int, *, processes: int, accumulation: int) -> list[BatchSpec]:
    """The parts of a step in order, once it is sure that together they are the whole batch."""
    whole = sampler().spec(step)
    parts = [
        sampler(processes=processes, accumulation=accumulation, rank=rank).spec(step * accumulation + micro_step)
        for micro_step in range(accumulation)
        for rank in range(processes)
    ]
    assert [index for part in parts for index in part.indices] == whole.indices
    assert [epoch for part in parts for epoch in part.epochs] == whole.epochs
    return parts
