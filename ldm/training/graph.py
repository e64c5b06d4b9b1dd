"""The training step as one CUDA graph: recorded once in a phase of the run, then launched as a whole.

A replayed step reads and writes the memory that it was recorded with. What differs between two steps therefore has
memory of its own, which is filled before each replay: the batch, the random numbers (`ReplayedRandom`), and what
depends on the number of the step (`StepScalars`: learning rate, shares of the averages, ramps). Everything else that
the host computes must be the same all through a phase.
"""

import copy
import gc
from collections.abc import Callable, Hashable
from dataclasses import fields

import torch

from ldm.training.recorder import RECORDERS, RecordingError, StepRecorder
from ldm.training.replay import LoggedTerms, ReplayedRandom, ReplayedStep, StepScalars, shapes_in, tensors_in
from ldm.training.step import Learn, TrainingStep

WARM_UP = 3  # steps of a phase that are made before one is recorded: what is created at first use is there by then


class RecordedPhase:
    """The steps of one phase: a few are made one operation after the other, then one is recorded and replayed."""

    def __init__(self, learn: Learn, step: TrainingStep, recorder: StepRecorder, device: torch.device):
        self.learn, self.recorder = learn, recorder
        self.batch, self.terms = copy.deepcopy(step.batch), LoggedTerms()
        self.rng, self.scalars = ReplayedRandom(step.rng, device), StepScalars(device)
        self.steps = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, step: TrainingStep) -> None:
        """RecordingError if it would have to be recorded and cannot be: then nothing of it is done."""
        for kept, given in zip(tensors_in(self.batch), tensors_in(step.batch), strict=True):
            kept.copy_(given, non_blocking=True)
        self.rng.fill(step.rng)
        self.scalars.fill(step.number)
        if self.steps < WARM_UP:
            self.recorder.warm_up(lambda: self.learn(self.replayed(step)))
        else:
            self.replay = self.replay or self.recorded(step)
            self.replay()
        self.steps += 1
        step.metrics.keep(self.terms.names, self.terms.row.clone())

    def recorded(self, step: TrainingStep) -> Callable[[], None]:
        """What makes this step, and every later one of the phase."""
        self.rng.is_complete = self.scalars.is_complete = True
        return self.recorder.record(lambda: self.learn(self.replayed(step)))

    def replayed(self, step: TrainingStep) -> ReplayedStep:
        """The same step, in the memory of this phase."""
        given = {each.name: getattr(step, each.name) for each in fields(TrainingStep)}
        kept = {"batch": self.batch, "rng": self.rng, "terms": self.terms, "gradient_norms": {}}
        return ReplayedStep(**(given | kept), scalars=self.scalars)


class GraphedStep:
    """What a training loop does with a step, as one graph for each phase of the run, whose number `phase` gives.

    Where steps cannot be graphs after all, that ends the run in one line. With `give_up`, which is told the reason,
    steps are made one operation after the other from then on, with the same numbers; and so is a batch of another
    shape, by itself.
    """

    def __init__(
        self,
        learn: Learn,
        phase: Callable[[int], Hashable],
        device: torch.device,
        *,
        give_up: Callable[[str], None] | None = None,
    ):
        self.learn, self.phase, self.device, self.give_up = learn, phase, device, give_up
        self.recorder = RECORDERS[device.type]()
        self.recorded: RecordedPhase | None = None
        self.current: Hashable = None
        self.is_eager = False

    def __call__(self, step: TrainingStep) -> None:
        if self.is_eager:
            self.learn(step)
            return
        phase = self.phase(step.number)
        if self.recorded is None or phase != self.current:
            self.recorded = None  # the memory of the former phase is free before this one takes its own
            self.recorded, self.current = RecordedPhase(self.learn, step, self.recorder, self.device), phase
        if shapes_in(step.batch) != shapes_in(self.recorded.batch):
            self.make_alone(step)
            return
        try:
            self.recorded(step)
        except RecordingError as error:
            if self.give_up is None:
                raise error.refusal() from error
            reason = str(error)
        else:
            if self.recorded.rng.drawn_on_host:
                self.become_eager(step, self.recorded.rng.drawn_on_host)
            return
        self.become_eager(step, reason)  # here, where the error holds none of the memory any more
        self.learn(step)

    def make_alone(self, step: TrainingStep) -> None:
        """A step that the graph does not fit."""
        if self.give_up is None:
            raise RecordingError(f"a batch of another shape, {shapes_in(step.batch)}").refusal()
        self.learn(step)

    def become_eager(self, step: TrainingStep, reason: str) -> None:
        """Forget graphs, and what a recording that failed has left: gradients in memory of its own."""
        if self.give_up is None:
            raise RecordingError(reason).refusal()
        self.is_eager, self.recorded = True, None
        for state in step.states.values():
            state.optimizer.forget_gradients()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.give_up(reason)
