"""A recorder of steps on the CPU, which stands for CUDA graphs: the same operations again, on the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ldm.training.recorder import RecordingError, recording_error

MAKES_MEMORY = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::new_empty_strided"}
Operation = tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]


def turns(function: Any) -> bool:
    """Whether an operation in place changes the shape or the strides of a tensor, and nothing in memory."""
    return torch.Tag.inplace_view in function.tags


def as_it_is(value: Any) -> Any:
    """The same memory with the shape and strides of now, whatever becomes of the tensor itself."""
    return value.detach() if isinstance(value, Tensor) else value


class Tape(TorchDispatchMode):
    """Every operation below autograd, with the tensors it read and gave; `ends_at` is one that cannot be recorded."""

    def __init__(self, ends_at: int | None = None) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.ends_at = ends_at

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function._schema.name, kwargs or {}
        assert name != "aten::_local_scalar_dense", "a graph cannot look at a number"
        assert kwargs.get("generator") is None, "a graph has no generator of the host"
        if len(self.operations) == self.ends_at:
            raise RuntimeError("operation not permitted when stream is capturing\nmore than one line")
        same = tree_map(as_it_is, (args, kwargs))
        results = function(*args, **kwargs)
        if not (function.is_view or turns(function) or name in MAKES_MEMORY):
            given = results if isinstance(results, tuple | list) else [results]
            made = [] if function._schema.is_mutable else [as_it_is(each) for each in given if isinstance(each, Tensor)]
            self.operations.append((function, *same, made))
        return results

    def replay(self) -> None:
        """Do it all again, without Python's part in it, and write the results where they were written before."""
        with torch.no_grad():
            for function, args, kwargs, made in self.operations:
                results = function(*args, **kwargs)
                given = results if isinstance(results, tuple | list) else [results]
                for kept, new in zip(made, [each for each in given if isinstance(each, Tensor)], strict=False):
                    kept.copy_(new)


class TapeRecorder:
    """Records tapes. What is done while recording is undone: a CUDA graph does nothing then.

    `ends_at` is, of each recording in order, the operation that cannot be recorded, or None.
    """

    ends_at: tuple[int | None, ...] = ()

    def __init__(self) -> None:
        self.ends = [*self.ends_at]

    def warm_up(self, action: Callable[[], None]) -> None:
        action()

    def record(self, action: Callable[[], None]) -> Callable[[], None]:
        tape, before = Tape(self.ends.pop(0) if self.ends else None), torch.get_rng_state()
        self.written: dict[int, tuple[Tensor, Tensor]] = {}
        try:
            with tape, Undo(self.written):
                action()
        except (RecordingError, RuntimeError) as error:
            raise recording_error(error) from error
        finally:
            with torch.no_grad():
                for kept, value in reversed(self.written.values()):  # overlapping ones end as they were first
                    kept.copy_(value)
            torch.set_rng_state(before)
        return tape.replay


class Undo(TorchDispatchMode):
    """Remembers what tensors held before they were first written to."""

    def __init__(self, written: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.written = written
        self.held: list[Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, argument in enumerate(() if turns(function) else function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                for each in value if isinstance(value, tuple | list) else [value]:
                    if isinstance(each, Tensor) and id(each) not in self.written:
                        self.held.append(each)  # so that no other tensor has its id
                        self.written[id(each)] = as_it_is(each), each.clone()
        return function(*args, **kwargs)
