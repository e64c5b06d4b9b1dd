"""Copies of training images among generated ones: in pixels, in latents, and in the features of the other metrics."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.data.datasets import Subset
from ldm.evaluation.generation import RealImages
from ldm.evaluation.image_sets import ImageSet, ImageSetReader
from ldm.evaluation.memorization import Memorization, Rows, find_neighbors, parts_of, pixel_rows
from ldm.evaluation.neighbors import distinct_groups
from ldm.evaluation.report_files import MARK
from ldm.evaluation.sample_sheet import captioned
from ldm.latents import LatentCache
from ldm.pictures import save_png
from ldm.shapes import Images, to_float, to_uint8


class TrainingRows:
    """The rows of all images that were trained on, a part of them at a time; those known already are not made again.

    Mirror images have no rows of features: networks hardly tell them apart from the images.
    """

    def __init__(
        self, real: RealImages, autoencoder: Autoencoder | None, cache: LatentCache | None, reader: ImageSetReader
    ):
        self.images, self.mirrored = real.data.trained_on, real.data.trained_on.dataset.config.flip
        self.known = real.training if list(real.training.indices) == self.images.indices else None
        self.autoencoder, self.cache, self.extractor = autoencoder, cache, real.extractor
        self.device, self.batch_size = reader.processes.device, reader.batch_size

    def pixels(self, part: slice) -> Tensor:
        """The pixels of some of the images, uint8."""
        if self.known is not None:
            return self.known.pixels[part]
        return to_uint8(Subset(self.images.dataset, self.images.indices[part]).images())

    def rows(self, part: slice) -> Iterator[Rows]:
        """Those of some of the images, and those of their mirror images if they were trained on."""
        pixels = self.pixels(part)
        if self.known is not None:
            yield rows_of(self.known[torch.arange(len(self.images))[part]])
        else:
            features = self.batched(self.extractor.features, pixels)
            yield self.without_features(pixels, part, mirrored=False) | {"features": features.flatten(1)}
        if self.mirrored:
            yield self.without_features(pixels.flip(-1), part, mirrored=True)

    def without_features(self, pixels: Tensor, part: slice, *, mirrored: bool) -> dict[str, Tensor]:
        """The rows of pixels and latents; `pixels` are those of a part, or of its mirror images."""
        found = {"pixels": pixel_rows(to_float(pixels))}
        if self.cache is not None:
            indices = self.images.indices[part]
            found["latents"] = self.cache.posterior(indices, [int(mirrored)] * len(indices)).mode().float().flatten(1)
        elif self.autoencoder is not None:
            encode = self.autoencoder.encode
            found["latents"] = self.batched(lambda images: encode(images).mode(), pixels).flatten(1)
        return found

    @torch.no_grad()
    def batched(self, network: Callable[[Images], Tensor], pixels: Tensor) -> Tensor:
        """What a network makes of pixels, a batch at a time; on the CPU."""
        parts = [network(to_float(images).to(self.device)).float().cpu() for images in pixels.split(self.batch_size)]
        return torch.cat(parts)


def rows_of(images: ImageSet) -> Rows:
    """The rows of a set of images in every space that it has."""
    rows = {"pixels": pixel_rows(to_float(images.pixels))}
    for name, values in (("latents", images.latents), ("features", images.features)):
        if values is not None:
            rows[name] = values.flatten(1)
    return rows


def find_copies(
    real: RealImages,
    samples: ImageSet,
    autoencoder: Autoencoder | None,
    cache: LatentCache | None,
    reader: ImageSetReader,
) -> Memorization:
    """The nearest of all training images for each sample and, where images were held out, for each of these.

    A `cache` of the latents saves encoding.
    """
    training, held_out = TrainingRows(real, autoencoder, cache, reader), real.held_out
    if real.data.are_halves:
        held_out = held_out.first(0)
    images = training.images
    names = [images.dataset.names[index] for index in images.indices]
    groups = [images.dataset.groups[index] for index in images.indices]
    pixels = (image for part in parts_of(len(names)) for image in training.pixels(part))
    numbers = distinct_groups(pixels, groups, mirrored=training.mirrored)
    with reader.progress("nearest training images", len(parts_of(len(names))), "part") as bar:
        return find_neighbors(
            rows_of(samples),
            rows_of(held_out),
            training.rows,
            names,
            numbers,
            reader.processes,
            mirrored=training.mirrored,
            on_part=bar.update,
        )


def draw_pairs(found: Memorization, real: RealImages, samples: ImageSet, path: Path) -> None:
    """Save the worst pairs of each space: samples above their nearest training images."""
    dataset, indices = real.data.trained_on.dataset, real.data.trained_on.indices

    def training_image(place: int) -> Tensor:
        return to_uint8(to_float(dataset.eval_view(indices[place])))

    caption = "in {}: samples, above the training images nearest to them; the most like copies first"
    pairs = {caption.format(name): found.pair_images(name, samples.pixels, training_image) for name in found.samples}
    save_png(captioned(pairs), path, MARK)
