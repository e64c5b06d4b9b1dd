"""What a run says about itself: loss terms wait on the device, then become lines of metrics.jsonl."""

import resource
import sys
import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ldm import checkpoint
from ldm.errors import DivergedError
from ldm.training.folder import RunFolder
from ldm.training.settings import Run as RunSettings


class History:
    """Keeps the terms of every micro-batch without waiting for the device, and reads them a few steps at a time."""

    def __init__(self, folder: RunFolder, accelerator: Accelerator, settings: RunSettings, step: int):
        self.folder, self.accelerator, self.settings = folder, accelerator, settings
        self.bar = tqdm(disable=True)
        self.names: list[str] = []
        self.rows: list[Tensor] = []
        self.since, self.read_at = time.monotonic(), step

    def progress(self) -> tqdm:
        """Start the progress bar and the clock."""
        hidden = not self.accelerator.is_main_process
        self.bar = tqdm(total=self.settings.steps, initial=self.read_at, unit="step", disable=hidden)
        self.since = time.monotonic()
        return self.bar

    def keep(self, terms: dict[str, Tensor], gradient: Tensor) -> None:
        """Remember the terms and the norm of the gradient, on the device."""
        self.names = [*terms, "gradient"]
        self.rows.append(torch.stack([*(term.detach() for term in terms.values()), gradient]))

    def read(self, step: int, lr: float) -> None:
        """Bring what was kept to the host and write one line; raise DivergedError at anything that is not finite."""
        rows, self.rows = torch.stack(self.rows), []
        if self.accelerator.num_processes > 1:
            rows = self.accelerator.reduce(rows, "mean")
        rows = rows.double().cpu()
        self.refuse_non_finite(rows, step)
        turns = self.settings.accumulation
        means = dict(zip(self.names, rows.mean(0).tolist(), strict=True))
        means["gradient"] = rows[turns - 1 :: turns, -1].mean().item()
        rate = (step - self.read_at) * self.settings.batch_size / max(time.monotonic() - self.since, 1e-9)
        self.since, self.read_at = time.monotonic(), step
        line = {
            "step": step,
            "images": step * self.settings.batch_size,
            **{name: float(f"{value:.7g}") for name, value in means.items()},
            "lr": lr,
            "images_per_second": round(rate, 1),
            "memory_gb": round(self.memory() / 2**30, 3),
        }
        self.write(line)
        self.bar.set_postfix_str(f"{self.names[0]} {means[self.names[0]]:.4f}, {rate:.0f} images/s", refresh=False)
        self.bar.update(step - self.bar.n)

    def write(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the same for the tracker if there is one."""
        if self.accelerator.is_main_process:
            self.folder.log(line)
        if self.settings.report_to:
            self.accelerator.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    def refuse_non_finite(self, rows: Tensor, step: int) -> None:
        """Raise DivergedError naming the first step and term that was not a finite number."""
        bad = ~rows.isfinite()
        if self.accelerator.scaler is not None:
            bad[:, -1] = False  # float16 gradients overflow now and then; the loss scale answers that
        if not bad.any():
            return
        row = int(bad.any(1).nonzero()[0])
        first = step - (len(rows) - 1 - row) // self.settings.accumulation
        name = self.names[int(bad[row].nonzero()[0])]
        saved = checkpoint.steps(self.folder.checkpoints)
        kept = f"the last checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint yet"
        raise DivergedError(
            f"{name} was not a finite number at step {first}; {kept}; try a lower --optim.lr in another --out"
        )

    def memory(self) -> int:
        """Peak bytes: of the GPU's allocator, or of the process."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
