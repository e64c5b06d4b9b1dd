"""Recording: what a step does on a GPU becomes a CUDA graph, or it is said why not."""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch

from ldm.errors import ConfigError, LDMError

WAY_OUT = "set run.graph off"


class RecordingError(Exception):
    """A step cannot be recorded; the message is the reason."""

    def refusal(self) -> LDMError:
        """What a person is told who insists on graphs."""
        return ConfigError(f"run.graph on: {self}: {WAY_OUT}")


class NoMemoryToRecord(RecordingError):
    """The graph of a step does not fit beside what else is on the GPU."""

    def refusal(self) -> LDMError:
        """It is no fault of a setting."""
        return LDMError(f"{self}: lower run.batch_size, or {WAY_OUT}")


class StepRecorder(Protocol):
    """What records a step on a device."""

    def warm_up(self, action: Callable[[], None]) -> None:
        """Do it, as it will be recorded."""
        ...

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        """What does the same again and again, in the same memory; nothing is done yet.

        RecordingError where that cannot be: then the device is as it was.
        """
        ...


class CUDARecorder:
    """Records CUDA graphs."""

    def warm_up(self, action: Callable[[], None]) -> None:
        """On a stream of its own, as `torch.cuda.graph` asks for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            action()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        """Other threads, as that of a data loader, may go on with what they do."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        dropout = torch.cuda.get_rng_state()
        try:
            # The outer stream, as torch.cuda.graph leaves its own one in place where a recording cannot be ended.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
            ):
                action()
        except (RecordingError, RuntimeError) as error:
            abandon(pool, dropout)
            raise recording_error(error) from error
        return graph.replay


def abandon(pool: tuple[int, int], dropout: torch.Tensor) -> None:
    """Undo what PyTorch has begun for a recording that came to nothing, and does not always undo itself.

    Its allocator may still wait for the end, and keep the memory of the graph for ever; the generator that dropout
    draws from may still count for the graph, and refuse to draw. `dropout` is its state from before.
    """
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # it has ended by itself
        torch.cuda.memory._cuda_endAllocateToPool(device, pool)
        torch.cuda.memory._cuda_releasePool(device, pool)
    fresh = torch.Generator(f"cuda:{device}")
    fresh.set_state(dropout)
    torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())


def recording_error(error: BaseException) -> RecordingError:
    """Why a step could not be recorded.

    What went wrong at first may have become another error by the time that the recording is ended.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError):
            return NoMemoryToRecord("the GPU is out of memory as a step is recorded")
        if isinstance(cause, RecordingError):
            return type(cause)(*cause.args)
        cause = cause.__context__
    first_line, *_ = str(error).splitlines() or [type(error).__name__]
    return RecordingError(f"this step cannot be recorded ({first_line})")


RECORDERS: dict[str, Callable[[], StepRecorder]] = {"cuda": CUDARecorder}  # by type of device
