"""Work without training that several processes share: each does its part, and all end with the same results."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ldm.errors import ConfigError, LDMError
from ldm.training.devices import PATIENCE

T = TypeVar("T")


class Processes:
    """The processes that torchrun started, or the only one, and the device of this one.

    `device` is what a person asked for, if anything; it must be usable, and with several processes it names a kind.
    """

    def __init__(self, device: str | None = None):
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
        state = PartialState(cpu=torch.device(name).type == "cpu", timeout=PATIENCE)
        self.count, self.rank, self.is_main = state.num_processes, state.process_index, state.is_main_process
        self.device = state.device if self.count > 1 else torch.device(name)

    def results(self, jobs: int, work: Callable[[int], T]) -> Iterator[T]:
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
            together: list[Any] = gather_object([(result, _told(failure))])
            self._end_if_any_failed([told for _, told in together], failure)
            yield from (result for result, _ in together[: jobs - first])

    def everywhere(self, action: Callable[[], T]) -> T:
        """The result of `action`, which every process runs for itself."""
        kept: list[T] = []
        for _ in self.results(self.count, lambda _: kept.append(action())):
            pass
        return kept[0]

    def end(self) -> None:
        """Let the other processes go."""
        PartialState().destroy_process_group()

    def _end_if_any_failed(self, failures: list[LDMError | None], mine: Exception | None) -> None:
        ranks = [rank for rank, failure in enumerate(failures) if failure is not None]
        if not ranks:
            return
        if mine is not None and (ranks[0] == self.rank or not isinstance(mine, LDMError)):
            raise mine
        failure = failures[ranks[0]]
        assert failure is not None
        failure.told = True
        raise failure


def _told(failure: Exception | None) -> LDMError | None:
    """A failure as the other processes hear of it."""
    return failure if failure is None or isinstance(failure, LDMError) else LDMError("another process failed")
