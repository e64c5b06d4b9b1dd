"""What travels through a training step: the batch, the step itself, and the losses that come back."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ldm.condition import Condition
from ldm.randomness import StepRandom
from ldm.shapes import Images, Labels, Latents, NoiseLevels


class ImageBatch(NamedTuple):
    """Training images of an autoencoder: one part of a global batch."""

    images: Images
    labels: Labels


class LatentBatch(NamedTuple):
    """Clean latents, and everything random that a step of the denoiser needs: one part of a global batch."""

    latents: Latents
    noise: Latents
    sigma: NoiseLevels
    condition: Condition


@dataclass(frozen=True)
class Step:
    """One training step, or one micro-batch of it: what it is trained on, and its random numbers."""

    batch: Any
    rng: StepRandom

    @property
    def number(self) -> int:
        """The number of the step in the run, from 0."""
        return self.rng.step


@dataclass(frozen=True)
class Losses:
    """`total` is what is minimized; `terms` are its weighted parts and anything else worth a line in the log.

    All are scalars on the device. `outputs` are detached tensors for what comes after the update: a panel, the
    discriminator's step, usage counters.
    """

    total: Tensor
    terms: dict[str, Tensor]
    outputs: dict[str, Tensor] = field(default_factory=dict)
