"""Evaluates generated images by a fixed protocol, beside real images: the same metrics for any number of processes.

Samples are compared with training and with held-out images in a space of features. What can be reached is measured in
the same way: the held-out images themselves against the training images (the floor), the held-out images through the
autoencoder, and samples of the Gaussian of the latents, which is the best model that linear algebra has. All images are
rounded to 8 bits before anything is measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ldm.autoencoder.model import Autoencoder
from ldm.batch import NULL
from ldm.data.datasets import Dataset, Subset
from ldm.diffusion.gaussian import LatentGaussian, check_size, fit_gaussian
from ldm.diffusion.samplers import starting_noise
from ldm.errors import ConfigError, DataError
from ldm.evaluation.classifier import Classifier, ClassifierTask, accuracy, train_classifier
from ldm.evaluation.denoising import denoising_losses
from ldm.evaluation.feature_networks import FeatureExtractor
from ldm.evaluation.fidelity import ReferenceFeatures
from ldm.evaluation.image_sets import (
    NO_LABELS,
    ImageSet,
    ImageSetReader,
    SamplingSettings,
    allocated_labels,
)
from ldm.nn.pretrained_weights import sha256_of
from ldm.pipeline import LatentDiffusion
from ldm.shapes import Labels

MAX_LATENTS = 512  # held-out latents that are denoised at each noise level
MAX_IMAGES = 5000  # training images that samples are compared with, and as many held-out ones, unless --images says so


@dataclass(frozen=True, eq=False)
class RealData:
    """The real images that samples are compared with: training and held-out ones, of one data set."""

    training: Subset
    held_out: Subset
    are_halves: bool  # nothing is held out: every second training image takes the place of the held-out ones
    trained_on: Subset  # all training images

    @classmethod
    def of(cls, training: Subset, held_out: Subset, most: int) -> "RealData":
        """At most so many of each, evenly spaced. Raises DataError where there are too few."""
        halves, trained_on = not len(held_out), training
        if halves:
            training, held_out = (Subset(training.dataset, training.indices[start::2]) for start in (0, 1))
        for name, images in (("training", training), ("held-out", held_out)):
            if len(images) < 2:
                raise DataError(f"samples are compared with at least 2 {name} images, and there are {len(images)}")
        return cls(training.evenly_spaced(most), held_out.evenly_spaced(most), halves, trained_on)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty where there are none to tell apart."""
        names = tuple(self.training.dataset.classes)
        return names if len(set(self.training.labels.tolist())) > 1 else ()

    def labels(self, images: Subset) -> Labels:
        """The class indices of some of the images."""
        return images.labels if self.classes else NO_LABELS

    @property
    def class_counts(self) -> list[int]:
        """How many images of each class there are, of all images and not of those alone that are compared."""
        labels = torch.from_numpy(self.training.dataset.labels)
        return torch.bincount(labels, minlength=len(self.training.dataset.classes)).tolist()


@dataclass(frozen=True, eq=False)
class RealImages:
    """Real images as they are compared, with everything that depends on them alone and not on the samples."""

    data: RealData
    training: ImageSet
    held_out: ImageSet
    others: Mapping[str, ImageSet]  # what is measured beside samples, by name: reconstructions, gaussian
    gaussian: LatentGaussian | None  # of the training latents
    extractor: FeatureExtractor
    task: ClassifierTask
    classifier: Classifier | None  # of the training images, where it is needed
    against_training: ReferenceFeatures
    against_held_out: ReferenceFeatures


def read_real_images(
    data: RealData,
    reader: ImageSetReader,
    autoencoder: Autoencoder | None,
    extractor: FeatureExtractor | None,
    *,
    num: int,
    seed: int,
) -> RealImages:
    """Read and measure the real images; without an extractor the features are those of a classifier of them.

    The Gaussian of the latents, where there is an autoencoder, is sampled `num` times, with a seed.
    """
    training = reader.read(data.training, data.labels(data.training), "training images")
    held_out = reader.read(data.held_out, data.labels(data.held_out), "held-out images")
    flip = data.training.dataset.config.flip
    task = ClassifierTask(len(data.classes), flip)
    classifier = None
    if data.classes or extractor is None:
        classifier = trained_together(reader, task, [training], "training a classifier")[0]
    if extractor is None:
        assert classifier is not None
        extractor = classifier_extractor(classifier)
    others, gaussian = {}, None
    if autoencoder is not None:
        encoded = reader.encode(held_out.pixels, autoencoder, "latents of held-out images")
        held_out = replace(held_out, latents=encoded.modes)
        others["reconstructions"] = reader.decode(encoded.modes, autoencoder, held_out, "reconstructions")
        training, gaussian = with_gaussian(training, reader, autoencoder, flip)
        if gaussian is not None:
            drawn = gaussian.sample(starting_noise(gaussian.mean.shape, range(num), seed))
            none = ImageSet(held_out.pixels[:0], NO_LABELS, tuple(range(num)))
            others["gaussian"] = reader.decode(drawn, autoencoder, none, "samples of the Gaussian")
    training = reader.with_features(training, extractor, "features of training images")
    held_out = reader.with_features(held_out, extractor, "features of held-out images")
    others = {name: reader.with_features(images, extractor, f"features of {name}") for name, images in others.items()}
    assert training.features is not None and held_out.features is not None
    references = ReferenceFeatures(training.features), ReferenceFeatures(held_out.features)
    return RealImages(data, training, held_out, others, gaussian, extractor, task, classifier, *references)


def with_gaussian(
    training: ImageSet, reader: ImageSetReader, autoencoder: Autoencoder, flip: bool
) -> tuple[ImageSet, LatentGaussian | None]:
    """The training images with their latents, and the cross-validated Gaussian of these, unless they are too large."""
    name = "latents of training images"
    encoded = reader.encode(training.pixels, autoencoder, name)
    training = replace(training, latents=encoded.modes)
    try:
        channels, height, width = encoded.modes.shape[1:]
        check_size((channels, height, width))
        mirrored = (
            reader.encode(training.pixels, autoencoder, f"{name}, mirrored", mirrored=True).modes if flip else None
        )
        variances = encoded.variances.mean(0)

        def fit(_: int) -> LatentGaussian:
            return fit_gaussian(encoded.modes, noise_variance=variances, mirrored=mirrored, groups=training.groups)

        return training, next(reader.processes.map(1, fit))
    except ConfigError:  # too large, or of one group
        return training, None


def classifier_extractor(classifier: Classifier) -> FeatureExtractor:
    """The features of a classifier that was trained on the spot."""
    names = "frechet_classifier", "kernel_distance_classifier"
    return FeatureExtractor(*names, classifier.features, sha256_of(classifier.state_dict()))


def trained_together(reader: ImageSetReader, task: ClassifierTask, sets: list[ImageSet], name: str) -> list[Classifier]:
    """A classifier of each set, trained by whichever process, and the same on all of them."""
    device = reader.processes.device
    with reader.progress(name, len(sets), "classifier") as bar:

        def train(number: int) -> dict[str, torch.Tensor]:
            trained = train_classifier(task, sets[number].pixels, sets[number].labels, device)
            return {key: value.cpu() for key, value in trained.state_dict().items()}

        classifiers = []
        for weights in reader.processes.map(len(sets), train):
            classifier = Classifier(sets[0].pixels.shape[1], task.outputs).to(device)
            classifier.load_state_dict(weights)
            classifiers.append(classifier.eval().requires_grad_(False))
            bar.update()
    return classifiers


def draw_samples(
    model: LatentDiffusion, real: RealImages, settings: SamplingSettings, num: int, reader: ImageSetReader
) -> ImageSet:
    """Samples of the model with their features, of classes as frequent as in the data."""
    samples = reader.draw(model, num, requested_labels(model, real.data, num), settings)
    if not same_classes(model, real.data):
        samples = replace(samples, labels=NO_LABELS)
    return reader.with_features(samples, real.extractor, "features of samples")


def requested_labels(model: LatentDiffusion, data: RealData, num: int) -> Labels:
    """The classes of the samples: as frequent as in the data or, where these have others, all in turn."""
    if not model.classes:
        return torch.zeros(num, dtype=torch.int64)
    return allocated_labels(data.class_counts if same_classes(model, data) else [1] * len(model.classes), num)


def same_classes(model: LatentDiffusion, data: RealData) -> bool:
    """Whether the model can be asked for the classes of the data."""
    return bool(model.classes) and model.classes == tuple(data.training.dataset.classes)


def read_samples(
    dataset: Dataset, real: RealImages, autoencoder: Autoencoder | None, reader: ImageSetReader
) -> ImageSet:
    """Anybody's images with their features; their classes, where they have those of the real ones, by name."""
    everything, names = Subset(dataset, list(range(len(dataset)))), real.data.classes
    labels = NO_LABELS
    if dataset.classes and set(dataset.classes) <= set(names):
        places = torch.tensor([names.index(name) for name in dataset.classes])
        labels = places[everything.labels]
    samples = reader.read(everything, labels, "samples")
    if autoencoder is not None:
        samples = replace(samples, latents=reader.encode(samples.pixels, autoencoder, "latents of samples").modes)
    return reader.with_features(samples, real.extractor, "features of samples")


def measure(
    real: RealImages, samples: ImageSet, model: LatentDiffusion | None, reader: ImageSetReader
) -> dict[str, Any]:
    """All metrics of samples with features, beside those of what else there is; `model` is what drew them, if known."""
    metrics: dict[str, Any] = compared(real, samples, reader)
    if real.task.classes and len(samples.labels):
        metrics["classification"] = classification(real, samples, reader)
    if model is not None and real.held_out.latents is not None:
        held_out, condition = real.held_out.evenly_spaced(MAX_LATENTS), model.config.schema.condition
        known = same_classes(model, real.data) and len(held_out.labels)
        labels = held_out.labels if known else torch.full((len(held_out),), NULL)
        latents = held_out.latents
        assert latents is not None
        losses = reader.processes.map(1, lambda _: denoising_losses(model, real.gaussian, latents, condition(labels)))
        metrics["denoising"] = {"images": len(held_out), **next(losses)}
    return metrics


def compared(real: RealImages, samples: ImageSet, reader: ImageSetReader) -> dict[str, dict[str, dict[str, float]]]:
    """The metrics of features, of every set against training and against held-out images."""
    against_training = {"samples": samples, "held_out": real.held_out, **real.others}
    if len(samples) > len(real.held_out):  # a Fréchet distance of more images is smaller: one of as many beside it
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
    assert real.classifier is not None
    as_many = real.training.evenly_spaced(len(samples))
    on_samples, on_real = trained_together(reader, real.task, [samples, as_many], "training classifiers")
    held_out = real.held_out

    def read(classifier: Classifier, images: ImageSet) -> float:
        return accuracy(classifier, real.task, images.pixels, images.labels)

    found = {
        "read_as_class": read(real.classifier, samples),
        "held_out_read_as_class": read(real.classifier, held_out),
        "classification_accuracy_score": read(on_samples, held_out),
        "as_many_training_images": read(on_real, held_out),
        "largest_class": held_out.labels.bincount().max().item() / len(held_out),
    }
    if "reconstructions" in real.others:
        found["reconstructions_read_as_class"] = read(real.classifier, real.others["reconstructions"])
    return found
