"""The metrics log: loss terms are kept on the device, then become lines of metrics.jsonl."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ldm.errors import DivergedError
from ldm.training.config import RunConfig
from ldm.training.run_folder import RunFolder


def stacked(terms: Mapping[str, Tensor]) -> Tensor:
    """The terms as one tensor, on the device."""
    return torch.stack([term.detach() for term in terms.values()])


class MetricsLog:
    """Keeps the terms of every micro-batch without waiting for the device, and reads them a few steps at a time."""

    def __init__(
        self,
        folder: RunFolder,
        accelerator: Accelerator,
        config: RunConfig,
        step: int,
        checkpoints: Callable[[], list[int]],
    ):
        self.checkpoints = checkpoints
        self.folder, self.accelerator, self.config = folder, accelerator, config
        self.bar = tqdm(disable=True)
        self.names: list[list[str]] = []
        self.rows: list[Tensor] = []
        self.since, self.read_at = time.monotonic(), step

    def progress(self) -> tqdm:
        """Start the progress bar and the clock."""
        hidden = not self.accelerator.is_main_process
        self.bar = tqdm(total=self.config.steps, initial=self.read_at, unit="step", disable=hidden)
        self.since = time.monotonic()
        return self.bar

    def append(self, terms: Mapping[str, Tensor]) -> None:
        """Remember the terms of a micro-batch on the device; they need not be the same every time."""
        self.keep([*terms], stacked(terms))

    def keep(self, names: list[str], row: Tensor) -> None:
        """Remember terms that are stacked already."""
        self.names.append(names)
        self.rows.append(row)

    def read(self, step: int, lr: float) -> dict[str, Any]:
        """Bring what was kept to the host and write one line; raise DivergedError at anything that is not finite."""
        rows = self.rows_on_host()
        self.check_finite(rows, step)
        # What is not finite here is excused, and JSON has no word for it.
        found = [(name, value) for row in rows for name, value in row.items() if math.isfinite(value)]
        values = {name: [value for other, value in found if other == name] for name in dict(found)}
        means = {name: float(f"{sum(several) / len(several):.7g}") for name, several in values.items()}
        rate = (step - self.read_at) * self.config.batch_size / max(time.monotonic() - self.since, 1e-9)
        self.since, self.read_at = time.monotonic(), step
        line = {
            "step": step,
            "images": step * self.config.batch_size,
            **means,
            "lr": lr,
            "images_per_second": round(rate, 1),
            "memory_gb": round(self.memory() / 2**30, 3),
        }
        self.write(line)
        first = next(iter(means))
        self.bar.set_postfix_str(f"{first} {means[first]:.4f}, {rate:.0f} images/s", refresh=False)
        self.bar.update(step - self.bar.n)
        return line

    def rows_on_host(self) -> list[dict[str, float]]:
        """What was kept, averaged over the processes, with one wait for the device."""
        flat, names = torch.cat(self.rows), self.names
        self.rows, self.names = [], []
        if self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(flat, "mean")
        values = iter(flat.cpu().double().tolist())  # on mps there is no float64
        return [{name: next(values) for name in row} for row in names]

    def write(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the same for the tracker if there is one."""
        if self.accelerator.is_main_process:
            self.folder.log(line)
        if self.config.report_to:
            self.accelerator.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    def check_finite(self, rows: list[dict[str, float]], step: int) -> None:
        """Raise DivergedError naming the first step and term that was not a finite number."""
        # float16 gradients overflow now and then; the loss scale answers that.
        excused = "gradient_norm" if self.accelerator.scaler is not None else " "
        bad = [
            (place, name)
            for place, row in enumerate(rows)
            for name, value in row.items()
            if not math.isfinite(value) and not name.endswith(excused)
        ]
        if not bad:
            return
        place, name = bad[0]
        first = step - (len(rows) - 1 - place) // self.config.accumulation
        saved = self.checkpoints()
        kept = f"the last checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint yet"
        rate = "--objective.discriminator.optim.lr" if name.startswith("discriminator") else "--optim.lr"
        raise DivergedError(
            f"{name} was not a finite number at step {first}; {kept}; try a lower {rate} in another --out"
        )

    def memory(self) -> int:
        """Peak bytes: of the GPU's allocator, or of the process."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        if sys.platform == "win32":
            import psutil  # Accelerate needs it too

            return int(psutil.Process().memory_info().peak_wset)
        import resource  # which Windows has not

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
