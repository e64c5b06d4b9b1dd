"""One training run: it hands out the steps, updates the weights, and keeps everything that must survive."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm import checkpoint
from ldm.config import reader
from ldm.data.batches import BatchSampler
from ldm.errors import ConfigError, LDMError, StopRequested
from ldm.randomness import StepRandom, derived_seed
from ldm.training.config import OptimConfig
from ldm.training.devices import asked_processes, create_accelerator, resolve_precision
from ldm.training.metrics_log import MetricsLog
from ldm.training.processes import on_main
from ldm.training.run_folder import RunFolder
from ldm.training.signals import StopFlag, catch_signals
from ldm.training.train_state import TrainState

T = TypeVar("T")
CURVES_EVERY = 30.0  # seconds, at least: drawing them takes longer than a small checkpoint


class Run:
    """A run over one folder. `settings` is the whole config of a script; `run` and `optim` of it are read here.

    `parts_rest` says that not every step trains every parameter, which several processes must know beforehand.
    """

    def __init__(self, settings: Any, out: Path, *, dry: bool = False, find_unused_parameters: bool = False):
        precision = resolve_precision(settings.run.precision)
        self.config = replace(settings, run=replace(settings.run, precision=precision))
        self.settings, self.dry = self.config.run, dry
        self.accelerator = create_accelerator(self.settings, out, find_unused_parameters=find_unused_parameters)
        self.is_main, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.processes = self.accelerator.num_processes
        self.folder = RunFolder(out)
        self.states: dict[str, TrainState] = {}
        self.objectives: list[nn.Module] = []
        self.watches: list[Callable[[dict[str, Any]], str | None]] = []
        self.gradients: dict[str, Tensor] = {}
        self.step = self.micro_step = 0
        self.drawn = time.monotonic()  # when the curves were last drawn
        self.stop = StopFlag()
        if not dry:
            self.on_main(lambda: self.folder.claim(self.config))
        self.print(f"{out}: {self.processes} process(es) on {self.device.type}, {precision}")
        if asked_processes() > self.processes:
            self.print(
                f"warning: {asked_processes()} processes were asked for and {self.processes} came up;"
                " on CPUs use: torchrun --nproc-per-node N"
            )
        if self.settings.report_to and not dry:
            self.accelerator.init_trackers("ldm", config={"config": reader.dump(self.config)})
        torch.manual_seed(derived_seed(self.settings.seed, "weights"))

    def is_finished(self) -> bool:
        """Whether an earlier run of the same command did everything already; says so."""
        finished = not self.dry and bool(self.on_main(lambda: self.folder.is_finished(self.settings.steps)))
        if finished:
            self.print(
                f"{self.folder.path} is finished: {self.settings.steps} steps; more --run.steps go on from there"
            )
        return finished

    # ---- before the first step

    def list_unreadable(self, bad: list[str]) -> None:
        """Name the images that could not be read and were replaced."""
        for reason in bad[:20]:
            self.print(f"unreadable, replaced by another: {reason}")
        if len(bad) > 20:
            self.print(f"unreadable, replaced by others: {len(bad) - 20} more")

    def order(self, samples: list[int]) -> BatchSampler:
        """The order in which this process sees the training samples."""
        settings = self.settings
        if settings.batch_size > len(samples):
            raise ConfigError(f"run.batch_size {settings.batch_size} is larger than the {len(samples)} training images")
        rank = self.accelerator.process_index
        return BatchSampler(
            tuple(samples), settings.seed, settings.batch_size, settings.accumulation, self.processes, rank
        )

    def prepare(
        self,
        objective: nn.Module,
        *,
        trains: nn.Module,
        optim: OptimConfig | None = None,
        name: str = "",
        window: Callable[[int], tuple[int, int]] | None = None,
    ) -> nn.Module:
        """Make an objective ready on all processes; `trains` is the part of it that is optimized and saved.

        The main objective has no name, and its module is averaged too. A further one, as a discriminator's, has a name and its
        own optimizer settings. The learning rate goes through its schedule once in the run, or once in every `span`: of
        a step the first step that belongs together with it, and the first one that no longer does.
        """
        objective.to(self.device)
        scaler = self.accelerator.scaler
        scaler = torch.amp.GradScaler("cuda") if scaler is not None and name else scaler
        settings = optim or self.config.optim
        self.states[name] = TrainState(
            trains, settings, scaler, name=name, ema_model=not name, window=window or self.whole
        )
        self.objectives.append(self.accelerator.prepare(objective))
        return self.objectives[-1]

    def whole(self, step: int) -> tuple[int, int]:
        """All steps of the run belong together."""
        return 0, self.settings.steps

    def resume(self, data: str, perceptual_weights: str = "") -> None:
        """Go on from the newest whole checkpoint in the folder, if there is one.

        `data` is the data's fingerprint, `judges` a hash of the pretrained networks in the loss, if there are any.
        The circumstances are recorded, or compared with those the run began in. Comes after the last `prepare`.
        """
        if not self.dry:
            facts = {"device": self.device.type, "processes": self.processes, "precision": self.settings.precision}
            self.on_main(lambda: self.folder.describe_environment(data, perceptual_weights, **facts))
            newest = self.on_main(self.newest_checkpoint)
            if newest is not None:
                found = checkpoint.load(newest)
                for state in self.states.values():
                    state.load(found)
                self.step = found.step
                self.print(f"going on from step {self.step}")
            self.on_main(lambda: self.folder.forget_after(self.step))
        self.history = MetricsLog(self.folder, self.accelerator, self.settings, self.step)

    def newest_checkpoint(self) -> Path | None:
        """Where the newest whole checkpoint lies."""
        found = checkpoint.newest(self.folder.checkpoints, self.print)
        return None if found is None else found.path

    # ---- the loop

    def steps(self, batches: Any) -> Iterator[tuple[int, Any]]:
        """Every step from where the run stands to its end, with its batch; a step comes once per micro-batch.

        Between two steps the run logs, saves, and stops if it was asked to.
        """
        settings = self.settings
        loader = torch.utils.data.DataLoader(
            batches,
            batch_size=None,
            sampler=range(self.step * settings.accumulation, settings.steps * settings.accumulation),
            num_workers=settings.workers,
            pin_memory=self.device.type == "cuda",
        )
        with catch_signals() as self.stop, self.history.progress():
            incoming = iter(loader)
            for step in range(self.step, settings.steps):
                torch.manual_seed(derived_seed(settings.seed, "dropout", step, self.accelerator.process_index))
                for self.micro_step in range(settings.accumulation):
                    last = self.micro_step == settings.accumulation - 1
                    with ExitStack() as stack:
                        for objective in () if last else self.objectives:
                            stack.enter_context(self.accelerator.no_sync(objective))
                        yield step, self.to_device(next(incoming))
                self.step = step + 1
                self.between_steps()

    @property
    def rng(self) -> StepRandom:
        """The random numbers of this process's part of the current step."""
        settings = self.settings
        parts, part = (
            settings.accumulation * self.processes,
            self.micro_step * self.processes + self.accelerator.process_index,
        )
        return StepRandom.of_part(settings.seed, self.step, total=settings.batch_size, parts=parts, part=part)

    def update(self, total: Tensor, of: str = "") -> None:
        """Backward, and with the last micro-batch of a step: clip, AdamW, the averages. Never waits for the device.

        `of` names what is updated, as it was named to `prepare`.
        """
        state, accumulation = self.states[of], self.settings.accumulation
        total = total if accumulation == 1 else total / accumulation
        (total if state.scaler is None else state.scaler.scale(total)).backward()
        if self.micro_step == accumulation - 1:
            lr = state.lr(self.step)
            self.gradients["_".join(filter(None, [of, "gradient"]))] = state.advance(self.step + 1, lr, total.detach())

    def log(self, terms: dict[str, Tensor]) -> None:
        """Keep the terms, on the device, until the next line of the log is due."""
        self.history.keep(terms | self.gradients)
        self.gradients.clear()

    def watch(self, metric: Callable[[dict[str, Any]], str | None]) -> None:
        """Let `judge` read every line of the log; what it has to say is said as a warning, once."""
        self.watches.append(metric)

    def panel_is_due(self) -> bool:
        """Whether a panel is drawn after the step that is being computed; true on the main process only."""
        number, every = self.step + 1, self.settings.sample_every or max(self.settings.steps // 10, 1)
        due = number % every == 0 or number == self.settings.steps
        return due and self.is_main and self.micro_step == self.settings.accumulation - 1

    def panel_path(self) -> Path:
        """Where the panel of this step belongs."""
        return self.folder.samples / f"step-{self.step + 1:08d}.png"

    def ema_model(self) -> Any:
        """A copy of the trained module with the weights that would be exported now."""
        return self.states[""].ema_model(self.settings.ema)

    def record(self, **figures: float) -> None:
        """Write figures of this step to the log beside the loss terms."""
        self.history.write({"step": self.step + 1, **figures})

    # ---- between two steps

    def between_steps(self) -> None:
        """Read, log, save, stop: whatever is due after this step."""
        settings = self.settings
        every = settings.checkpoint_every or min(max(settings.steps // 10, 1), 1000)
        stop = self.stop_is_agreed()
        saves = stop or self.step % every == 0 or self.step == settings.steps
        if saves or self.step % settings.log_every == 0:
            self.read_history()
        if saves:
            self.save()
        if stop and self.step < settings.steps:
            raise StopRequested(
                f"stopped by {self.stop.name or 'a signal'} at step {self.step} of {settings.steps}, all saved;"
                " the same command goes on from there"
            )

    def read_history(self) -> None:
        """Write what was kept as one line of the log, and hear what those who watch it have to say."""
        line = self.history.read(self.step, self.states[""].lr(self.step - 1))
        for metric in list(self.watches):
            if warning := metric(line):
                self.print(f"warning: {warning}")
                self.watches.remove(metric)

    def stop_is_agreed(self) -> bool:
        """Whether any process was asked to stop; with several on GPUs they compare notes every eighth step."""
        if self.processes == 1:
            return bool(self.stop.name)
        if self.device.type != "cpu" and self.step % 8:
            return False
        asked = torch.tensor([float(bool(self.stop.name))], device=self.device)
        return bool(self.accelerator.reduce(asked, "sum").item())

    def save(self) -> None:
        """Write a checkpoint, once every process has shown that it holds the same weights."""
        if self.processes > 1:
            sums = self.accelerator.gather(torch.cat([state.checksum() for state in self.states.values()])[None])
            if (sums != sums[0]).any():
                raise LDMError(f"the processes hold different weights at step {self.step}; nothing was saved")
        self.on_main(self.write)

    def write(self) -> None:
        folder, host_state = (
            self.folder.checkpoints,
            {"step": self.step, "images": self.step * self.settings.batch_size},
        )
        tensors: dict[str, dict[str, Tensor]] = {}
        for state in self.states.values():
            tensors |= state.tensors()
            host_state |= state.host_state()
        checkpoint.save(folder, self.step, tensors, host_state)
        checkpoint.prune(folder, checkpoint.to_keep(checkpoint.steps(folder), self.settings.steps))
        if self.step == self.settings.steps or time.monotonic() - self.drawn > CURVES_EVERY:
            self.folder.draw_curves()
            self.drawn = time.monotonic()

    # ---- small services

    def on_main(self, action: Callable[[], T]) -> T:
        """The result of `action`, run on the main process only; its failure ends every process."""
        return on_main(action, count=self.processes, is_main=self.is_main)

    def main_first(self, action: Callable[[], T]) -> T:
        """The result of `action`, run on the main process and then on the others: what it downloads, it finds."""
        results: list[T] = []
        self.on_main(lambda: results.append(action()))
        return results[0] if results else action()

    def finish(self) -> None:
        """Everything is on disk: note it, for people and for the next time."""
        self.on_main(lambda: self.folder.mark_finished(self.settings.steps))
        self.accelerator.end_training()
        self.print(f"done: {self.folder.path}")

    def print(self, line: str) -> None:
        """One line for the person at the terminal, from the main process."""
        if self.is_main:
            tqdm.write(line)

    def to_device(self, batch: Any) -> Any:
        """The same batch on this process's device."""
        return type(batch)(*(part.to(self.device, non_blocking=True) for part in batch))
