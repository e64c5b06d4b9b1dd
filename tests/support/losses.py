"""One training step of an objective, as a run calls it, with the random numbers of seed 0."""

from torch import nn

from ldm.batch import ImageBatch, Losses, Step
from ldm.randomness import StepRandom


def losses_of(objective: nn.Module, batch: ImageBatch, number: int = 0, rng: StepRandom | None = None) -> Losses:
    """The losses of a batch in step `number`; with `rng`, of a part of the global batch that these are for."""
    losses: Losses = objective(batch, Step(batch, rng or StepRandom(0, number, len(batch.images))))
    return losses
