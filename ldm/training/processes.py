"""Processes: work that several share, or that one does for all; the failure of one ends every one."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ldm.errors import LDMError
from ldm.training.devices import TIMEOUT, choose_device

T = TypeVar("T")


class Processes:
    """The processes that torchrun started, or the only one, and the device of this one.

    `device` is what a person asked for, if anything; it must be usable, and with several processes it names a kind.
    """

    def __init__(self, device: str | torch.device | None = None):
        chosen = choose_device(device)
        state = PartialState(cpu=chosen.type == "cpu", timeout=TIMEOUT)
        self.count, self.rank, self.is_main = state.num_processes, state.process_index, state.is_main_process
        self.device = state.device if self.count > 1 else chosen

    def map(self, jobs: int, work: Callable[[int], T]) -> Iterator[T]:
        """`work(0)`, `work(1)`, ... in order, on every process; they are computed in turn, and travel between them.

        A job's result does not depend on the process that computes it, so neither do the results on their number. The
        failure of one process ends all of them, and is said once.
        """
        for first in range(0, jobs, self.count):
            result, failure = None, None
            try:
                result = work(first + self.rank) if first + self.rank < jobs else None
            except Exception as error:  # unexpected ones too: the others would wait for ever
                failure = error
            together: list[Any] = gather_object([(result, _for_others(failure))])
            self._end_if_any_failed([reported for _, reported in together], failure)
            yield from (result for result, _ in together[: jobs - first])

    def main_first(self, action: Callable[[], T]) -> T:
        """The result of `action`, run on the main process first, so that the others find what it downloaded."""
        if self.count == 1:
            return action()
        kept: list[T] = []

        def act(is_turn: bool) -> None:
            if is_turn:
                kept.append(action())

        list(self.map(self.count, lambda _: act(self.is_main)))
        list(self.map(self.count, lambda _: act(not self.is_main)))
        return kept[0]

    def on_main(self, action: Callable[[], T]) -> T:
        """The result of `action`, run on the main process only; its failure ends every process."""
        if self.count == 1:
            return action()
        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_main:
            try:
                outcome[0] = action()
            except Exception as error:  # unexpected ones too: the others would wait for ever
                failure = error
                outcome[1] = error if isinstance(error, LDMError) else LDMError("the main process failed")
        broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            outcome[1].was_reported = True
            raise outcome[1]
        result: T = outcome[0]
        return result

    def end(self) -> None:
        """Let the other processes go."""
        PartialState().destroy_process_group()

    def _end_if_any_failed(self, failures: list[LDMError | None], mine: Exception | None) -> None:
        """An expected failure is said by the main process, as its progress bar may stand there; a bug where it is."""
        if mine is not None and not isinstance(mine, LDMError):
            raise mine
        for failure in failures:
            if failure is not None:
                failure.was_reported |= not self.is_main
                raise failure from mine


def _for_others(failure: Exception | None) -> LDMError | None:
    """A failure as it travels to the other processes."""
    if failure is None or isinstance(failure, LDMError):
        return failure
    other = LDMError("another process failed")
    other.was_reported = True
    return other
