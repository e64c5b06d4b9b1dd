"""Evaluates generated images by a fixed protocol, beside real images: the same metrics for any number of processes.

Samples are compared with training and with held-out images in a space of features. What can be reached is measured in
the same way: the held-out images themselves against the training images (the floor), the held-out images through the
autoencoder, and samples of the Gaussian of the latents, which is the best model that linear algebra has. All images are
rounded to 8 bits before anything is measured.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ldm.autoencoder.model import Autoencoder
from ldm.data.condition_columns import ConditionColumn
from ldm.data.datasets import Subset
from ldm.diffusion.gaussian import LatentGaussian, check_size, fit_gaussian
from ldm.diffusion.samplers import starting_noise
from ldm.errors import ConfigError, DataError
from ldm.evaluation.classifier import STEPS, Classifier, ClassifierTask, image_shape, train_classifier
from ldm.evaluation.feature_networks import FeatureExtractor
from ldm.evaluation.fidelity import ReferenceFeatures
from ldm.evaluation.image_sets import NO_LABELS, Encoded, ImageSet, ImageSetReader
from ldm.latents import LatentCache
from ldm.nn.pretrained_weights import sha256_of
from ldm.shapes import Labels

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

    def labels(self, indices: Sequence[int]) -> Labels:
        """The class indices of images of the data set; none where there are no classes to tell apart."""
        return torch.from_numpy(self.training.dataset.labels[list(indices)]) if self.classes else NO_LABELS

    @property
    def readable(self) -> tuple[str, ...]:
        """The conditions that are classes to tell apart, but for that which is the classes of the data."""
        names = [column.name for column in self.training.dataset.columns if column.config.kind == "class"]
        counts = {name: len(self.condition_labels(name, self.training.indices).unique()) for name in names}
        return tuple(name for name, count in counts.items() if count > 1 and not self.is_classes(name))

    def is_classes(self, name: str) -> bool:
        """Whether a condition is the classes of the data."""
        column, dataset = self._column(name), self.training.dataset
        return bool(self.classes) and column.names == self.classes and np.array_equal(column.values, dataset.labels)

    def condition_labels(self, name: str, indices: Sequence[int]) -> Labels:
        """The class indices of images of the data set, of one of the conditions."""
        return torch.from_numpy(self._column(name).values[list(indices)])

    def _column(self, name: str) -> ConditionColumn:
        return next(column for column in self.training.dataset.columns if column.name == name)

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
    gaussian: LatentGaussian | None  # of the training latents; None: no latents, or too large or too few ones
    extractor: FeatureExtractor
    task: ClassifierTask
    classifiers: tuple[Classifier, ...]  # of the training images; of as many of them as there are samples
    against_training: ReferenceFeatures
    against_held_out: ReferenceFeatures
    readers: Mapping[str, tuple[ClassifierTask, Classifier]] = field(default_factory=dict)  # of other conditions


def read_real_images(
    data: RealData,
    reader: ImageSetReader,
    autoencoder: Autoencoder | None,
    extractor: FeatureExtractor | None,
    *,
    num: int,
    seed: int,
    cache: LatentCache | None = None,
    read: Collection[str] = (),
) -> RealImages:
    """Read and measure the real images, to be compared with `num` samples.

    Without an extractor the features are those of a classifier of the training images. The Gaussian of the latents,
    where there is an autoencoder, is sampled `num` times, with a seed; a `cache` of the latents saves encoding. A
    classifier is trained for each of the conditions to `read`.
    """
    training = reader.read(data.training, data.labels(data.training.indices), "training images")
    held_out = reader.read(data.held_out, data.labels(data.held_out.indices), "held-out images")
    task = ClassifierTask(len(data.classes), data.training.dataset.config.flip)
    classifiers: tuple[Classifier, ...] = ()
    if data.classes or extractor is None:
        sets = [training, training.evenly_spaced(num)] if data.classes else [training]
        classifiers = trained_together(reader, task, sets)
    readers = {name: reader_of(name, data, training, reader) for name in read}
    others, gaussian = {}, None
    if autoencoder is not None:
        encoded = latents_of(held_out, reader, autoencoder, cache, "latents of held-out images")
        held_out = replace(held_out, latents=encoded.modes)
        others["reconstructions"] = reader.decode(encoded.modes, autoencoder, held_out, "reconstructions")
        training, gaussian = with_gaussian(training, reader, autoencoder, cache, task.flip)
        if gaussian is not None:
            drawn = gaussian.sample(starting_noise(gaussian.mean.shape, range(num), seed))
            like = ImageSet(held_out.pixels[:0], NO_LABELS, tuple(range(num)))
            others["gaussian"] = reader.decode(drawn, autoencoder, like, "samples of the Gaussian")
    extractor = extractor or classifier_extractor(classifiers[0])
    training = reader.with_features(training, extractor, "features of training images")
    held_out = reader.with_features(held_out, extractor, "features of held-out images")
    others = {name: reader.with_features(images, extractor, f"features of {name}") for name, images in others.items()}
    assert training.features is not None and held_out.features is not None
    references = ReferenceFeatures(training.features), ReferenceFeatures(held_out.features)
    return RealImages(data, training, held_out, others, gaussian, extractor, task, classifiers, *references, readers)


def reader_of(
    name: str, data: RealData, training: ImageSet, reader: ImageSetReader
) -> tuple[ClassifierTask, Classifier]:
    """A classifier of training images by one of their conditions."""
    labels = data.condition_labels(name, training.indices)
    task = ClassifierTask(int(labels.max()) + 1, data.training.dataset.config.flip)
    (classifier,) = trained_together(reader, task, [replace(training, labels=labels)])
    return task, classifier


def with_gaussian(
    training: ImageSet, reader: ImageSetReader, autoencoder: Autoencoder, cache: LatentCache | None, flip: bool
) -> tuple[ImageSet, LatentGaussian | None]:
    """The training images with their latents, and the Gaussian of these, unless they are too large or too few."""
    name = "latents of training images"
    encoded = latents_of(training, reader, autoencoder, cache, name)
    training = replace(training, latents=encoded.modes)
    channels, height, width = encoded.modes.shape[1:]
    try:
        check_size((channels, height, width))
    except ConfigError:
        return training, None
    mirrored = None
    if flip:
        mirrored = latents_of(training, reader, autoencoder, cache, f"{name}, mirrored", mirrored=True).modes
    noise = encoded.variances.mean(0)

    def fit(_: int) -> LatentGaussian | None:
        if len(set(training.groups)) < 2:
            return None
        return fit_gaussian(encoded.modes, noise_variance=noise, mirrored=mirrored, groups=training.groups)

    return training, next(reader.processes.map(1, fit))


def latents_of(
    images: ImageSet,
    reader: ImageSetReader,
    autoencoder: Autoencoder,
    cache: LatentCache | None,
    name: str,
    *,
    mirrored: bool = False,
) -> Encoded:
    """The latents of real images, or of their mirror images, encoded unless they are in a cache."""
    if cache is None:
        return reader.encode(images.pixels, autoencoder, name, mirrored=mirrored)
    posterior = cache.posterior(list(images.indices), [int(mirrored)] * len(images))
    return Encoded(posterior.mode().float(), posterior.variance.double().mean((2, 3)))


def classifier_extractor(classifier: Classifier) -> FeatureExtractor:
    """The features of a classifier that was trained on the spot."""
    names = "frechet_classifier", "kernel_distance_classifier"
    return FeatureExtractor(*names, classifier.features, sha256_of(classifier.state_dict()))


def trained_together(reader: ImageSetReader, task: ClassifierTask, sets: list[ImageSet]) -> tuple[Classifier, ...]:
    """A classifier of each set, trained by whichever process, and the same on all of them."""
    device, name = reader.processes.device, f"training {len(sets)} classifier{'s' if len(sets) > 1 else ''}"
    own_steps = -(-len(sets) // reader.processes.count) * STEPS  # those of the process that has the bar
    with reader.progress(name, own_steps, "step") as bar:

        def train(number: int) -> dict[str, torch.Tensor]:
            images = sets[number]
            trained = train_classifier(task, images.pixels, images.labels, device, on_step=bar.update)
            return {key: value.cpu() for key, value in trained.state_dict().items()}

        classifiers = []
        for weights in reader.processes.map(len(sets), train):
            classifier = Classifier(image_shape(sets[0].pixels), task.outputs).to(device)
            classifier.load_state_dict(weights)
            classifiers.append(classifier.eval().requires_grad_(False))
    return tuple(classifiers)
