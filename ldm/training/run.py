"""A training run: the training loop's steps, and everything that must survive between them."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from ldm.config import reader
from ldm.data.batches import BatchSampler, TrainingBatches, balanced_order, to_device
from ldm.data.datasets import Subset
from ldm.distributed import copy_from_main
from ldm.errors import ConfigError, StopRequested
from ldm.pictures import drawn
from ldm.randomness import StepRandom, derived_seed
from ldm.training import dry_run
from ldm.training.config import Graph, OptimConfig
from ldm.training.devices import create_accelerator, resolve_precision
from ldm.training.graph import WARM_UP
from ldm.training.graph_setting import check_graph
from ldm.training.kernels import ieee_float32, prepare_kernels, training_kernels
from ldm.training.metrics_log import MetricsLog
from ldm.training.processes import Processes
from ldm.training.run_checkpoints import RunCheckpoints
from ldm.training.run_folder import RunFolder
from ldm.training.signals import StopFlag, catch_signals
from ldm.training.step import Learn, Panel, Schedule, TrainingStep
from ldm.training.trained import TrainedModules
from ldm.training.validation import HeldOutLosses, Validation

T = TypeVar("T")


class Run:
    """A run over one folder. `config` is the whole config of a script; `run` and `optim` of it are read here.

    A `dry` run makes a few steps, writes nothing but a cache of latents, and reports what the run would take.
    `find_unused_parameters` says that not every step trains every parameter, which several processes must know
    beforehand.
    """

    def __init__(self, config: Any, out: Path, *, dry: bool = False, find_unused_parameters: bool = False):
        prepare_kernels(config.run)
        precision = resolve_precision(config.run.precision)
        self.config = replace(config, run=replace(config.run, precision=precision))
        self.run_config, self.dry = self.config.run, dry
        self.accelerator = create_accelerator(self.run_config, out, find_unused_parameters=find_unused_parameters)
        self.device = self.accelerator.device
        self.processes = Processes(self.device)
        check_graph(self.run_config, self.device, self.processes.count)
        self.is_main, self.folder = self.processes.is_main, RunFolder(out)
        self.trained = TrainedModules(self.accelerator, self.run_config)
        self.monitors: list[Callable[[dict[str, Any]], str | None]] = []
        self.validation = Validation(keeps_best=self.run_config.keep == "best")
        self.checkpoints = RunCheckpoints(self.folder, self.run_config, self.print)
        self.first_step, self.stop = 0, StopFlag()
        self.recorded: Any = None  # the settings that were written last
        self.on_main(lambda: self.folder.check_usable(self.config))
        if not dry:
            self.on_main(lambda: self.folder.claim(self.config, self.print))
            list(self.processes.map(self.processes.count, lambda _: self.folder.check_shared()))
        self.print(f"{out}: {self.processes.count} process(es) on {self.device.type}, {precision}")
        if self.run_config.report_to and not dry:
            self.accelerator.init_trackers("ldm", config={"config": reader.dump(self.config)})

    def is_finished(self) -> bool:
        """Whether an earlier run of the same command did everything already; says so."""
        done = 0 if self.dry else self.on_main(self.folder.finished_steps)
        if finished := done >= self.run_config.steps:
            self.print(f"{self.folder.path} is finished: {done} steps; raise --run.steps to resume it")
        return finished

    # ---- before the first step

    def batch_sampler(self, training: Subset) -> BatchSampler:
        """The order in which this process sees the training images."""
        config, processes = self.run_config, self.processes
        if config.batch_size > len(training):
            found = f"the {len(training)} training images: give at most {len(training)}"
            raise ConfigError(f"run.batch_size {config.batch_size} is larger than {found}")
        layout = (config.batch_size, config.accumulation, processes.count, processes.rank)
        return BatchSampler(tuple(training.indices), config.seed, *layout, balanced_order(training, config.seed))

    def initialize(self, module: nn.Module, from_data: Callable[[], None]) -> None:
        """Let `from_data`, once and on the main process, set what of `module` starts from the training data.

        Not if a checkpoint has it. Comes before `prepare`, which takes the averages' start from the weights.
        """
        if self.newest_checkpoint is None:
            self.on_main(from_data)
            copy_from_main(module, self.device)

    def prepare(
        self,
        objective: nn.Module,
        *,
        trains: nn.Module,
        optim: OptimConfig | None = None,
        name: str = "",
        schedule: Schedule | None = None,
    ) -> nn.Module:
        """Make an objective ready on all processes; `trains` is the part of it that is optimized and saved.

        The main objective has no name, and an EMA is kept of its module. A further one, as a discriminator's, has a
        name and its own optimizer config. The learning rate goes through its schedule once in the run, or once in every
        window of `schedule`.
        """
        prepared = self.trained.add(objective, trains, optim or self.config.optim, name, schedule)
        self.checkpoints.parts = [*self.trained.states.values(), self.validation]
        return prepared

    def resume(self, data: str, perceptual_weights: str = "", **facts: Any) -> None:
        """Go on from the newest whole checkpoint in the folder, if there is one.

        `data` is the data's fingerprint, `perceptual_weights` a hash of the pretrained network in the loss, if there is
        one; these and a `start` among the recorded `facts` must be as the run began. Comes after the last `prepare`.
        """
        if not self.dry:
            precision = self.run_config.precision
            facts |= {"device": self.device.type, "processes": self.processes.count, "precision": precision}
            self.on_main(lambda: self.folder.describe_environment(data, perceptual_weights, **facts))
            if self.newest_checkpoint is not None:
                self.first_step = self.checkpoints.load(self.newest_checkpoint)
                self.print(f"resuming from step {self.first_step}")
            self.on_main(lambda: self.folder.forget_after(self.first_step))
        first, kept = self.first_step, self.checkpoints.steps
        self.metrics = MetricsLog(self.folder, self.accelerator, self.run_config, first, kept)

    @cached_property
    def newest_checkpoint(self) -> Path | None:
        """Where the newest whole checkpoint lies that the run began with."""
        return None if self.dry else self.on_main(self.checkpoints.newest)

    # ---- the loop

    def steps(self, batches: TrainingBatches[Any, Any], learn: Learn) -> Iterator[TrainingStep]:
        """Every step from where the run stands to its end, after `learn` was called with it, once per micro-batch.

        Between two steps the run logs, saves, and stops if it was asked to. A dry run makes its last few steps only, in
        which everything takes part that starts late, and measures them.
        """
        learn, config = self.graphed(learn), self.run_config
        if self.dry:
            with training_kernels(config, self.device):
                yield from self.dry_steps(batches, learn)
            return
        loader = torch.utils.data.DataLoader(
            batches,
            batch_size=None,
            sampler=range(self.first_step * config.accumulation, config.steps * config.accumulation),
            num_workers=config.workers if batches.loads_data else 0,
            pin_memory=self.device.type == "cuda",
        )
        kernels = training_kernels(config, self.device)
        with catch_signals() as self.stop, self.metrics.progress(), self.checkpoints.writing(self.stop), kernels:
            # The iterator comes before the first seed of dropout: it draws from the global generator.
            incoming = batches.on_device(iter(loader), self.device, self.first_step * config.accumulation)
            for number in range(self.first_step, config.steps):
                self.begin_step(number)
                for micro_step in range(config.accumulation):
                    is_last = micro_step == config.accumulation - 1
                    with nullcontext() if is_last else self.trained.gradients_stay_here():
                        learn(step := self.step(number, micro_step, next(incoming)))
                        yield step
                self.between_steps(number + 1)

    def graphed(self, learn: Learn) -> Learn:
        """`learn`, recorded and replayed where `run.graph` is on; `auto` becomes on or off here."""
        before = "" if self.dry else self.folder.graph_before(self.config)
        return self.trained.graphed(learn, before, self.decide_graph)

    def decide_graph(self, graph: Graph, news: str) -> None:
        """What `run.graph auto` is from now on; the next step records it."""
        self.run_config = replace(self.run_config, graph=graph)
        self.config = replace(self.config, run=self.run_config)
        if news:
            self.print(news)

    def dry_steps(self, batches: TrainingBatches[Any, Any], learn: Learn) -> Iterator[TrainingStep]:
        """The last few steps of the run, on its first batches, and then the report."""
        accumulation, seconds = self.run_config.accumulation, []
        slower = 1 if self.run_config.graph == "off" else WARM_UP + 1  # the first ones
        for micro_batch in range((dry_run.STEPS + slower - 1) * accumulation):
            began = time.monotonic()
            number = max(self.run_config.steps - 1 - micro_batch // accumulation, 0)
            self.begin_step(number)
            learn(step := self.step(number, micro_batch % accumulation, batches.batch(micro_batch, self.device)))
            yield step
            self.metrics.rows_on_host()  # waits for the device
            seconds.append(time.monotonic() - began)
        per_step = mean(seconds[slower:]) * accumulation
        self.measured = dry_run.Measured(per_step, self.metrics.memory())

    def report(self, image: tuple[int, ...], latent: tuple[int, ...], training: Subset, held_out: Subset) -> None:
        """After the steps of a dry run: print what the whole run would take, for images and latents of these shapes."""
        sizes = (image, latent, training, held_out)
        lines = partial(dry_run.report, self.config, self.measured, self.trained.modules, *sizes)
        self.on_main(lambda: self.print("\n".join(lines())))

    def begin_step(self, number: int) -> None:
        """Whatever is due before a step: phases that begin, and the seed of dropout."""
        self.trained.begin_step(number)
        torch.manual_seed(derived_seed(self.run_config.seed, "dropout", number, self.processes.rank))

    def step(self, number: int, micro_step: int, batch: Any) -> TrainingStep:
        """A micro-batch of a step on this process's device, with its part of the step's random numbers."""
        config, processes = self.run_config, self.processes
        parts, part = config.accumulation * processes.count, micro_step * processes.count + processes.rank
        rng = StepRandom.of_part(config.seed, number, total=config.batch_size, parts=parts, part=part)
        samples = self.folder.samples if self.is_main and not self.dry else None
        kept = (self.trained.states, self.metrics, self.metrics, samples)
        return TrainingStep(to_device(batch, self.device), rng, micro_step, config, *kept)

    def add_monitor(self, monitor: Callable[[dict[str, Any]], str | None]) -> None:
        """Let `monitor` read every line of the log; what it returns is printed as a warning, once."""
        self.monitors.append(monitor)

    def ema_model(self) -> Any:
        """A copy of the trained module with the averaged weights that would be exported now."""
        return self.trained.main.ema_model(self.run_config.ema)

    def final_model(self) -> Any:
        """A copy of the trained module as it is exported: averaged now or, with `run.keep best`, where it was best."""
        best = self.validation.best
        return self.trained.main.with_weights(best) if best else self.ema_model()

    # ---- between two steps

    def between_steps(self, done: int) -> None:
        """Read, log, save, stop: whatever is due when so many steps are done."""
        config = self.run_config
        stop, saves = self.checkpoints.agree(done, self.stop, self.processes)
        if saves or done % config.log_every == 0:
            self.read_metrics(done)
        if self.recorded is not self.config:
            self.on_main(lambda: self.folder.record(self.config))
            self.recorded = self.config
        if (snapshots := self.checkpoints.snapshots).is_due(done):  # before the checkpoint, which is resumed after it
            self.on_main(lambda: snapshots.write(done, self.trained.main.ema_by_name()))
        if saves:
            self.trained.check_equal(done)
            self.on_main(lambda: self.checkpoints.write(done, wait=stop or done == config.steps))
        if stop:
            raise StopRequested(
                f"stopped by {self.stop.name or 'a signal'} at step {done} of {config.steps}, all saved;"
                f" run the same command again to {'resume' if done < config.steps else 'export it'}"
            )

    def read_metrics(self, done: int) -> None:
        """Write what was kept as one line of the log, and let the monitors read it."""
        line = self.metrics.read(done, self.trained.main.lr(done - 1))
        for monitor in list(self.monitors):
            if warning := monitor(line):
                self.print(f"warning: {warning}")
                self.monitors.remove(monitor)

    # ---- small services

    @ieee_float32()
    def draw_panel(self, panel: Panel, step: TrainingStep) -> None:
        """Draw what the model makes of a few images at this step, and record the metrics of that."""
        step.record(**drawn("panel", lambda: panel.draw(self.ema_model(), step.panel_path), warn=self.print) or {})

    @ieee_float32()
    def validate(self, held_out: HeldOutLosses, step: TrainingStep) -> None:
        """Record the held-out loss of the averaged model at this step, and say once since when it overfits."""
        if not held_out.groups:
            return
        state, length = self.trained.main, self.run_config.ema
        losses = held_out.losses(state.ema_model(length))
        weights = state.ema_by_name()[length]
        step.record(**self.validation.update(step.number + 1, losses, held_out.groups, weights))
        if warning := self.validation.warning():
            self.print(f"warning: {warning}")

    def on_main(self, action: Callable[[], T]) -> T:
        """The result of `action`, run on the main process only; its failure ends every process."""
        return self.processes.on_main(action)

    def main_first(self, action: Callable[[], T]) -> T:
        """The result of `action`, run on the main process first, so that the others find what it downloaded."""
        return self.processes.main_first(action)

    def finish(self) -> None:
        """Everything is on disk: note it, for people and for the next time."""
        self.on_main(lambda: self.folder.mark_finished(self.config))
        self.accelerator.end_training()
        self.print(f"done: {self.folder.path}")

    def print(self, line: str) -> None:
        """One line for the person at the terminal, from the main process."""
        if self.is_main:
            tqdm.write(line)
