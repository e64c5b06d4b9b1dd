"""The checkpoints of a run: what they hold, when one is due, and which of them are kept."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ldm import checkpoint
from ldm.checkpoint import Checkpoint
from ldm.pictures import drawn
from ldm.training.config import RunConfig
from ldm.training.run_folder import RunFolder
from ldm.training.snapshots import Snapshots

CURVES_EVERY = 30.0  # seconds, at least: drawing them takes longer than a small checkpoint


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
    """Writes the parts of a run to its folder, and reads them back. Only the main process writes."""

    def __init__(self, folder: RunFolder, config: RunConfig, warn: Callable[[str], None]):
        self.folder, self.config, self.warn = folder, config, warn
        self.parts: list[Resumable] = []
        self.snapshots = Snapshots(folder, config)
        self.curves_drawn_at = time.monotonic()

    def newest(self) -> Path | None:
        """Where the newest whole checkpoint lies; damaged ones are named."""
        found = checkpoint.newest(self.folder.checkpoints, self.warn)
        return None if found is None else found.path

    def load(self, path: Path) -> int:
        """Give every part back what it had, and return the step."""
        found = checkpoint.load(path)
        for part in self.parts:
            part.load(found)
        return found.step

    def is_due(self, done: int) -> bool:
        """Whether there is one after so many steps."""
        steps = self.config.steps
        every = self.config.checkpoint_every or min(max(steps // 10, 1), 1000)
        return done % every == 0 or done == steps

    def write(self, done: int) -> None:
        """Write, prune, and draw the curves now and then."""
        folder, steps = self.folder.checkpoints, self.config.steps
        host_state: dict[str, Any] = {"step": done, "images": done * self.config.batch_size}
        tensors: dict[str, Mapping[str, Tensor]] = {}
        for part in self.parts:
            tensors |= part.tensors()
            host_state |= part.host_state()
        checkpoint.save(folder, done, tensors, host_state)
        checkpoint.prune(folder, checkpoint.to_keep(checkpoint.steps(folder), steps))
        if done == steps or time.monotonic() - self.curves_drawn_at > CURVES_EVERY:
            drawn("curves", self.folder.draw_curves, warn=self.warn)
            self.curves_drawn_at = time.monotonic()
