"""Objectives as train_vae.py makes them, and one training step as a run calls it, with the random numbers of seed 0."""

from torch import nn

from ldm.autoencoder.config import ReconstructionObjectiveConfig
from ldm.autoencoder.config_checks import check_compatibility
from ldm.autoencoder.losses.discriminator import Discriminator
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import ImageBatch, Losses, Step
from ldm.randomness import StepRandom


def losses_of(objective: nn.Module, batch: ImageBatch, number: int = 0, rng: StepRandom | None = None) -> Losses:
    """The losses of a batch in step `number`; with `rng`, of a part of the global batch that these are for."""
    losses: Losses = objective(batch, Step(batch, rng or StepRandom(0, number, len(batch.images))))
    return losses


def checked_objective(
    autoencoder: Autoencoder,
    config: ReconstructionObjectiveConfig,
    discriminator: Discriminator | None = None,
    *,
    steps: int = 1,
    classes: int = 0,
) -> ReconstructionObjective:
    """The objective, after the check of whether its parts fit together, as train_vae.py makes it."""
    check_compatibility(autoencoder, config, classes)
    return ReconstructionObjective(autoencoder, config, discriminator, steps=steps)
