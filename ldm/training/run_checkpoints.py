"""The checkpoints of a run: what they hold, when one is due, and which of them are kept."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ldm import checkpoint
from ldm.checkpoint import Checkpoint
from ldm.distributed import any_process
from ldm.pictures import drawn
from ldm.training.background_writer import BackgroundWriter, copies_on_host
from ldm.training.config import RunConfig
from ldm.training.processes import Processes
from ldm.training.run_folder import RunFolder
from ldm.training.signals import StopFlag
from ldm.training.snapshots import Snapshots

CURVES_EVERY = 30.0  # seconds, at least
CURVES_SHARE = 0.004  # of the time, at most: drawing them takes longer than copying a checkpoint
EARLY = (16, 8)  # there is a checkpoint at these parts of a run


class Resumable(Protocol):
    """A part of a run that must survive an interruption."""

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What a checkpoint holds, by file and name."""
        ...

    def host_state(self) -> Mapping[str, Any]:
        """What a checkpoint holds beside tensors."""
        ...

    def load(self, found: Checkpoint) -> None:
        """Take back what a checkpoint holds."""
        ...


class RunCheckpoints:
    """Writes the parts of a run to its folder, and reads them back. Only the main process writes.

    The run stands still while its state is copied; the copy is hashed, written and synced in a thread.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, warn: Callable[[str], None]):
        self.folder, self.config, self.warn = folder, config, warn
        self.parts: list[Resumable] = []
        self.snapshots = Snapshots(folder, config)
        self.writer = BackgroundWriter()
        self.saved_at = time.monotonic()
        self.draw_at = time.monotonic() + CURVES_EVERY

    def newest(self) -> Path | None:
        """Where the newest whole checkpoint lies; damaged ones are named."""
        found = checkpoint.newest(self.folder.checkpoints, self.warn)
        return None if found is None else found.path

    def steps(self) -> list[int]:
        """The steps of those that are there, once what is being written is."""
        self.writer.join()
        return checkpoint.steps(self.folder.checkpoints)

    def load(self, path: Path) -> int:
        """Give every part back what it had, and return the step."""
        found = checkpoint.load(path)
        for part in self.parts:
            part.load(found)
        return found.step

    @contextmanager
    def writing(self, stop: StopFlag) -> Iterator[None]:
        """The block in which a run makes its steps; however it ends, what it began to write is written first.

        Unless somebody asked twice to stop, which may arrive here as another exception than KeyboardInterrupt.
        """
        self.saved_at = time.monotonic()
        try:
            yield
        except BaseException:
            if not stop.was_repeated:
                self.writer.join()
            raise
        self.writer.wait()

    def is_due(self, done: int) -> bool:
        """Whether there is one after so many steps, whatever the clock says."""
        steps, every = self.config.steps, self.config.checkpoint_every
        early = {-(-steps // parts) for parts in EARLY}
        return done == steps or (done % every == 0 if every else done in early)

    def is_late(self, done: int) -> bool:
        """Whether the clock asks for one, which waits for a line of the log: the log does not depend on the clock."""
        if self.config.checkpoint_every or done % self.config.log_every:
            return False
        return time.monotonic() - self.saved_at >= self.config.checkpoint_seconds and not self.writer.is_busy

    def agree(self, done: int, stop: StopFlag, processes: Processes) -> tuple[bool, bool]:
        """Whether the run is to stop after so many steps, and whether it is to save: the same on every process.

        The main process has the clock, and whoever was asked to stop stops all. Several processes on GPUs, whom that
        makes wait for one another, compare notes at every eighth step and every line of the log. If nothing could be
        written since, that ends every one.
        """
        due = self.is_due(done)
        if processes.count > 1 and processes.device.type != "cpu" and done % 8 and done % self.config.log_every:
            return False, due
        mine = [bool(stop.name), processes.is_main and self.is_late(done), self.writer.has_failed]
        stops, late, failed = any_process(mine, processes.device)
        if failed:
            processes.on_main(self.writer.wait)
        return stops, stops or late or due

    def write(self, done: int, *, wait: bool) -> None:
        """Begin to write, and to prune; return when that is done if the run is to `wait` for it. Draws curves too."""
        folder, steps = self.folder.checkpoints, self.config.steps
        host_state: dict[str, Any] = {"step": done, "images": done * self.config.batch_size}
        tensors: dict[str, Mapping[str, Tensor]] = {}
        for part in self.parts:
            tensors |= part.tensors()
            host_state |= copy.deepcopy(part.host_state())
        copies = copies_on_host(tensors)

        def save() -> None:
            checkpoint.save(folder, done, copies, host_state)
            checkpoint.prune(folder, checkpoint.to_keep(checkpoint.steps(folder), steps))

        self.writer.start(save)
        self.saved_at = time.monotonic()
        if wait:
            self.writer.wait()
        if done == steps or time.monotonic() > self.draw_at:
            self.draw_curves()

    def draw_curves(self) -> None:
        """Draw the curves, and say when they may be drawn again."""
        began = time.monotonic()
        drawn("curves", self.folder.draw_curves, warn=self.warn)
        ended = time.monotonic()
        self.draw_at = ended + max(CURVES_EVERY, (ended - began) / CURVES_SHARE)
