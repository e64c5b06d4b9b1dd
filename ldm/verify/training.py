"""A minimal training loop, and a context that makes a check the same every time."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ldm.autoencoder.config import AutoencoderConfig, ReconstructionObjectiveConfig
from ldm.autoencoder.model import Autoencoder, create
from ldm.autoencoder.networks.mlp import MLPNetwork
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import ImageBatch, Losses, Step
from ldm.randomness import StepRandom, derived_seed, generator
from ldm.shapes import Images


@contextmanager
def reproducible(purpose: str, dtype: torch.dtype = torch.float64) -> Iterator[None]:
    """Initial weights that depend on `purpose` alone, in `dtype`; afterwards all is as it was.

    As a decorator it serves one call: what it is put on must not be a generator.
    """
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(0, purpose))
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def objective_of(
    config: AutoencoderConfig, loss: ReconstructionObjectiveConfig, *, images: Images, steps: int = 1
) -> ReconstructionObjective:
    """A new autoencoder for images of the shape of these, in its training loss for so many steps."""
    channels, height, width = images.shape[1:]
    autoencoder = create(config, image=(channels, height, width))
    return ReconstructionObjective(autoencoder, loss, steps=steps)


def train(
    objective: ReconstructionObjective,
    images: Images,
    *,
    lr: float,
    batch: int = 0,
    on_step: Callable[[int, Losses], None] | None = None,
) -> None:
    """Adam over the steps that the objective was made for, its rate falling to 0 along a cosine in every stage.

    Each step sees `batch` images drawn at random, or, where that is 0, all of them.
    """
    optimizer = torch.optim.Adam([each for each in objective.parameters() if each.requires_grad], lr, betas=(0.9, 0.99))
    for step in range(objective.schedule.ends[-1]):
        first, end = objective.schedule.window(step)
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * (step - first) / (end - first))) / 2
        objective.schedule.begin_step(step)
        losses = objective_at(objective, drawn(images, batch, step), step)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        if "code" in losses.outputs:
            objective.autoencoder.bottleneck.update_usage(losses.outputs["code"], step)
        if on_step is not None:
            on_step(step, losses)


def objective_at(objective: ReconstructionObjective, images: Images, step: int = 0, *, seed: int = 0) -> Losses:
    """The losses of these images in a step of that number."""
    batch = labeled(images)
    losses: Losses = objective(batch, Step(batch, StepRandom(seed, step, len(images))))
    return losses


def drawn(images: Images, batch: int, step: int) -> Images:
    """The images of one step."""
    if not batch:
        return images
    return images[torch.randint(len(images), (batch,), generator=generator(0, "truths batch", step))]


def labeled(images: Images) -> ImageBatch:
    """A batch whose images are all of one class."""
    return ImageBatch(images, torch.zeros(len(images), dtype=torch.int64))


def as_images(vectors: Tensor) -> Images:
    """n x d numbers as n images of 1 x 1 x d."""
    return vectors[:, None, None, :]


def as_vectors(images: Images) -> Tensor:
    """All numbers of each image in a row."""
    return images.flatten(1)


def mlp_of(autoencoder: Autoencoder) -> MLPNetwork:
    """The fully connected network of an autoencoder that has one."""
    network: object = autoencoder.network
    assert isinstance(network, MLPNetwork)
    return network
