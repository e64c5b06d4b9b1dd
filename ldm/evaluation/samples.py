"""Generated images: drawn from a model or read from files, and their metrics beside those of real images."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm.autoencoder.model import Autoencoder
from ldm.batch import NULL
from ldm.data.datasets import Dataset, Subset
from ldm.diffusion.config import SAMPLERS
from ldm.evaluation.classifier import Classifier, accuracy
from ldm.evaluation.denoising import denoising_losses
from ldm.evaluation.generation import RealImages, trained_together
from ldm.evaluation.image_sets import NO_LABELS, ImageSet, ImageSetReader, SamplingSettings
from ldm.evaluation.sample_conditions import (
    conditions_of_images,
    conditions_of_samples,
    same_classes,
    takes_rows,
)
from ldm.pipeline import LatentDiffusion
from ldm.shapes import Labels

MAX_LATENTS = 512  # held-out latents that are denoised at each noise level


def draw_samples(
    model: LatentDiffusion, real: RealImages, settings: SamplingSettings, num: int, reader: ImageSetReader
) -> ImageSet:
    """Samples of the model with their features, of conditions as in the data."""
    requested = conditions_of_samples(model, real.data, num)
    samples = reader.draw(model, num, requested.rows, settings)
    samples = replace(samples, labels=requested.labels, asked=requested.asked)
    return reader.with_features(samples, real.extractor, "features of samples")


def read_samples(
    dataset: Dataset, real: RealImages, autoencoder: Autoencoder | None, reader: ImageSetReader
) -> ImageSet:
    """Anybody's images with their features; their classes, where they have those of the real ones, by name."""
    samples = reader.read(Subset(dataset, list(range(len(dataset)))), labels_of(dataset, real.data.classes), "samples")
    if autoencoder is not None:
        samples = replace(samples, latents=reader.encode(samples.pixels, autoencoder, "latents of samples").modes)
    return reader.with_features(samples, real.extractor, "features of samples")


def labels_of(dataset: Dataset, classes: tuple[str, ...]) -> Labels:
    """The classes that images bear themselves, or that their names end in as sample.py has it: 00012-CLASS.png.

    None where they are not those of the real images.
    """
    places = {name: number for number, name in enumerate(classes)}
    if dataset.classes:
        known = torch.tensor([places.get(name, -1) for name in dataset.classes])
        labels = known[torch.from_numpy(dataset.labels)]
    else:
        places = {plain_name(name): number for name, number in places.items()}
        stems = [Path(name).stem.partition("-")[2] for name in dataset.names]
        labels = torch.tensor([places.get(plain_name(stem), -1) for stem in stems])
    return labels if len(labels) and int(labels.min()) >= 0 else NO_LABELS


def plain_name(name: str) -> str:
    """A class as it is found again in the name of a file, which cannot hold every letter."""
    return re.sub(r"\W", "_", name)[:60]


def measure(real: RealImages, samples: ImageSet, reader: ImageSetReader) -> dict[str, Any]:
    """All metrics of samples with features, beside those of what else there is."""
    metrics: dict[str, Any] = compared(real, samples, reader)
    if real.task.classes and len(samples.labels):
        metrics["classification"] = classification(real, samples, reader)
    if found := {name: read_as_asked(real, samples, name) for name in samples.asked if name in real.readers}:
        metrics["conditions"] = found
    return metrics


def read_as_asked(real: RealImages, samples: ImageSet, name: str) -> dict[str, float]:
    """How many images are read as the class that they were asked for of one of several conditions."""
    task, classifier = real.readers[name]
    held_out = real.data.condition_labels(name, real.held_out.indices)
    return {
        "read_as_asked": accuracy(classifier, task, samples.pixels, samples.asked[name]),
        "held_out_read_as_theirs": accuracy(classifier, task, real.held_out.pixels, held_out),
        "largest": held_out.bincount().max().item() / len(held_out),
    }


def held_out_denoising(real: RealImages, model: LatentDiffusion, reader: ImageSetReader) -> dict[str, Any] | None:
    """The denoising losses of held-out latents by noise level, with the condition that each has.

    None of a model that was tuned for few steps, which does not denoise.
    """
    if SAMPLERS[model.config.sampling.sampler].consistency:
        return None
    held_out, schema = real.held_out.evenly_spaced(MAX_LATENTS), model.config.schema
    if takes_rows(model, real.data):
        table = conditions_of_images(model, real.data.held_out.dataset, held_out.indices)
        condition = table[torch.arange(len(held_out))]
    else:
        known = same_classes(model, real.data) and len(held_out.labels)
        condition = schema.condition(held_out.labels if known else torch.full((len(held_out),), NULL))
    latents = held_out.latents
    assert latents is not None
    losses = reader.processes.map(1, lambda _: denoising_losses(model, real.gaussian, latents, condition))
    return {"images": len(held_out), **next(losses)}


def compared(real: RealImages, samples: ImageSet, reader: ImageSetReader) -> dict[str, dict[str, dict[str, float]]]:
    """The metrics of features, of every set against training and against held-out images.

    Most of them depend on how many images there are: each set has as many as there are samples or, where these are more
    than the held-out images, there is a second row of as many samples.
    """
    beside = {"held_out": real.held_out, **real.others}
    against_training = {"samples": samples, **{name: each.evenly_spaced(len(samples)) for name, each in beside.items()}}
    if len(samples) > len(real.held_out):
        against_training["samples_as_many_as_held_out"] = samples.first(len(real.held_out))
    against_held_out = {"samples": samples, "training": real.training.evenly_spaced(len(samples))}
    if "gaussian" in real.others:
        against_held_out["gaussian"] = real.others["gaussian"]
    sides = [(real.against_training, against_training), (real.against_held_out, against_held_out)]

    def of_side(number: int) -> dict[str, dict[str, float]]:
        reference, sets = sides[number]
        found = {}
        for name, images in sets.items():
            assert images.features is not None
            found[name] = {"images": len(images), **reference.metrics(images.features)}
        return found

    results = list(reader.processes.map(len(sides), of_side))
    return dict(zip(("against_training", "against_held_out"), results, strict=True))


def classification(real: RealImages, samples: ImageSet, reader: ImageSetReader) -> dict[str, float]:
    """How many images are read as their class by a classifier of training images, and what can be learned from samples.

    The classification accuracy score (Ravuri and Vinyals 2019) is the accuracy on held-out images of a classifier that
    was trained on samples alone; beside it, of one trained on as many training images.
    """
    on_training, on_as_many = real.classifiers
    (on_samples,) = trained_together(reader, real.task, [samples])
    held_out = real.held_out

    def read(classifier: Classifier, images: ImageSet) -> float:
        return accuracy(classifier, real.task, images.pixels, images.labels)

    found = {
        "read_as_class": read(on_training, samples),
        "held_out_read_as_class": read(on_training, held_out),
        "classification_accuracy_score": read(on_samples, held_out),
        "as_many_training_images": read(on_as_many, held_out),
        "largest_class": held_out.labels.bincount().max().item() / len(held_out),
    }
    if "reconstructions" in real.others:
        found["reconstructions_read_as_class"] = read(on_training, real.others["reconstructions"])
    return found
