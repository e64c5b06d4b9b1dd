"""The background writer: hashes, writes and syncs in a thread, while the run goes on."""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class BackgroundWriter:
    """One writing action at a time, in a thread of its own; its failure is raised where somebody waits for it.

    The thread does not outlive the process, and nothing is lost with it: what it writes is taken for whole only once
    it is, as after kill -9.
    """

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.failure: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is being written."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether `wait` would raise something."""
        return self.failure is not None

    def start(self, action: Callable[[], object]) -> None:
        """Begin with `action`, once the one before it is done; raise what failed in that."""
        self.wait()
        self.thread = threading.Thread(target=self._run, args=(action,), daemon=True)
        self.thread.start()

    def join(self) -> None:
        """Return when nothing is being written any more."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def wait(self) -> None:
        """Return when everything is on the disk, or raise what failed."""
        self.join()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def _run(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as error:  # whatever it is: it ends the run where somebody waits for it
            self.failure = error


def copies_on_host(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Copies in the memory of the host, which later steps leave alone; those of a GPU's tensors are pinned.

    The caching allocator of pinned memory gives the next copies the memory of these, once they are gone.
    """
    copies = {file: {name: _copy(tensor.detach()) for name, tensor in each.items()} for file, each in tensors.items()}
    if any(tensor.is_cuda for each in tensors.values() for tensor in each.values()):
        torch.cuda.synchronize()
    return copies


def _copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
