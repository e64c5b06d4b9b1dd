"""The image codec: an autoencoder, an entropy model of its latents, and what was measured of both."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.compression.container import Header, check_plausible, pack, unpack
from ldm.compression.step_search import Target, target_of
from ldm.config.parts import Part
from ldm.entropy.categorical import import_constriction
from ldm.entropy.model import LARGEST_SYMBOL, EntropyModel
from ldm.entropy.tables import POSITIONS, steps_of
from ldm.errors import CodecError, DataError
from ldm.evaluation import metrics
from ldm.nn.pretrained_weights import sha256_of
from ldm.shapes import Images, Latents, rounded

BATCH_PIXELS = 2**20  # of images that go through the network together

# Fitting, reading and writing are built upon this module, so they are named here and not imported.
PARTS = {
    "fit": Part("ldm.compression.fitting:fit_codec"),
    "load": Part("ldm.compression.saving:load"),
    "save": Part("ldm.compression.saving:save"),
}


@dataclass(frozen=True)
class MeasuredStep:
    """What a step costs and gives on held-out images: the mean of bits per pixel, of symbols alone, and of PSNR."""

    step: float  # in standard deviations of the latent
    bits_per_pixel: float
    factorized_bits_per_pixel: float  # by the entropy model without context
    psnr: float  # of the centers of the cells
    centroid_psnr: float


@dataclass(frozen=True)
class Symbols:
    """A file that is decoded up to its symbols, channels x h x w of integers."""

    header: Header
    values: np.ndarray


class Codec:
    """Images to files and back, at any rate: latents are quantized with a uniform step and coded losslessly.

    Channel number c has the step times `ratios[c]`. A header names the codec by its hash, `codec.id`: a file can be
    decoded by the codec alone that wrote it. The same file has the same symbols on every machine; its pixels are the
    decoder's, and may differ in the last bit of a float.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        entropy_model: EntropyModel,
        ratios: Sequence[float],
        measured: Sequence[MeasuredStep] = (),
        *,
        id: str = "",
    ):
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.entropy_model, self.ratios, self.measured = entropy_model, list(ratios), list(measured)
        self.id = id or self._hash()
        import_constriction()

    @classmethod
    def fit(cls, autoencoder: Autoencoder, training: Iterable[Images], held_out: Images, **options: Any) -> "Codec":
        """The codec of a trained autoencoder: `ldm.compression.fitting.fit_codec`, which has the options."""
        codec: Codec = PARTS["fit"].load()(autoencoder, training, held_out, **options)
        return codec

    @classmethod
    def load(cls, folder: str | Path) -> "Codec":
        """The codec in a folder that `save` wrote, on the CPU; CheckpointError if there is none."""
        codec: Codec = PARTS["load"].load()(Path(folder))
        return codec

    def save(self, folder: str | Path) -> None:
        """Write what `load` reads: tables, autoencoder and what was measured; ConfigError if the folder exists."""
        PARTS["save"].load()(self, Path(folder))

    def to(self, device: torch.device | str) -> "Codec":
        """The same, its autoencoder on another device; symbols are coded on the CPU."""
        self.autoencoder.to(device)
        return self

    def compress(
        self,
        images: Iterable[Tensor],
        *,
        step: float | None = None,
        rate: float | None = None,
        psnr: float | None = None,
    ) -> list[bytes]:
        """Images in [-1, 1], each channels x height x width and of any size, as files.

        One of: the `step`, in standard deviations of the latent; the `rate`, bits per pixel that no file exceeds, its
        header counted; the `psnr` in dB, once decoded to 8 bits, that no image falls below. The last two are
        met by the choice of a step for each image; RequestError says what is in reach where they cannot be.
        """
        return list(self.compressed(list(images), target_of(step, rate, psnr)))

    def compressed(self, images: Sequence[Tensor], target: Target) -> Iterator[bytes]:
        """The same files, each as soon as it is there."""
        for image, latent in self.encoded(images):
            yield self._compressed(image, latent, target)

    def encoded(self, images: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each image and its latent; DataError for an image that the codec does not take."""
        for batch in self._batches(images):
            yield from zip(batch, self.latents(batch), strict=True)

    def decompress(self, files: Iterable[bytes], refine: "Refinement | None" = None) -> list[Tensor]:
        """The image of each file in [-1, 1], channels x height x width; CodecError for one that is not of this codec.

        `refine` gets the centers of the cells and their sizes, and returns the latents that are decoded instead.
        """
        return self.images([self.symbols(file) for file in files], refine)

    def symbols(self, file: bytes) -> Symbols:
        """The symbols of a file: what is the same on every machine."""
        header, payload = unpack(file)
        (shape,) = self.shapes([header], payload)
        return Symbols(header, self.entropy_model.decode(payload, shape, steps_of(header.step, self.ratios)))

    def shapes(self, headers: Sequence[Header], payload: bytes) -> list[tuple[int, int, int]]:
        """The shape of each latent; CodecError for headers that are not of this codec, or lie."""
        network, shapes = self.autoencoder.network, []
        for header in headers:
            if header.codec.hex() != self.id[: 2 * len(header.codec)]:
                other = header.codec.hex()
                raise CodecError(f"it was written with another codec ({other}), and this one is {self.id[:8]}")
            if network.fixed_size not in (None, (network.image_channels, *header.sides)):
                claimed = f"{header.height} x {header.width} pixels"
                raise CodecError(f"it claims {claimed}, a size that the codec does not take")
            shapes.append(self.autoencoder.latent_shape(header.sides))
        check_plausible(headers, sum(math.prod(shape) for shape in shapes), payload)
        return shapes

    def images(self, decoded: Sequence[Symbols], refine: "Refinement | None" = None) -> list[Tensor]:
        """The images of symbols."""
        found: list[Tensor] = []
        for sides, group in groupby(decoded, key=lambda each: each.header.sides):
            same = list(group)
            size = max(BATCH_PIXELS // (sides[0] * sides[1]), 1)
            for start in range(0, len(same), size):
                part = same[start : start + size]
                latents = self.dequantized(part, centers=refine is not None)
                if refine is not None:
                    cells = torch.tensor([steps_of(each.header.step, self.ratios) for each in part]) / POSITIONS
                    latents = refine(latents, cells.to(latents)[:, :, None, None])
                found.extend(self._decoded(latents, sides))
        return found

    def verify(self, image: Tensor, file: bytes) -> Images:
        """The image of a file that was just made of `image`; CodecError if its symbols are not those of the image."""
        decoded = self.symbols(file)
        if not np.array_equal(decoded.values, self.quantized(self.latents(image[None])[0], decoded.header.step)):
            raise CodecError("it does not decode to the symbols that were coded")
        return self.images([decoded])[0]

    def dequantized(self, decoded: Sequence[Symbols], *, centers: bool = False) -> Latents:
        """Latents of symbols of one size: the center of each cell, or the centroid where the header says so."""
        found = []
        for each in decoded:
            steps = steps_of(each.header.step, self.ratios)
            positions = each.values * np.reshape(steps, (-1, 1, 1)).astype(np.float64)
            if each.header.has_centroids and not centers:
                positions = positions + self.entropy_model.centroids(each.values, steps)
            found.append(torch.from_numpy(positions / POSITIONS).to(torch.get_default_dtype()))
        return torch.stack(found)

    def quantized(self, latent: Tensor, step: int) -> np.ndarray:
        """The symbols of a latent, channels x h x w, at a step in positions."""
        steps = np.reshape(steps_of(step, self.ratios), (-1, 1, 1))
        symbols = np.rint(latent.double().cpu().numpy() * POSITIONS / steps)
        if not (np.abs(symbols) < LARGEST_SYMBOL).all():
            raise DataError("the autoencoder gives latents that are not finite numbers, or beyond all bounds")
        return symbols.astype(np.int64)

    def bits(self, symbols: np.ndarray, step: int) -> float:
        """What symbols cost by the entropy model, without the header."""
        return self.entropy_model.bits(symbols, steps_of(step, self.ratios))

    def header(self, sides: tuple[int, int], step: int) -> Header:
        """The header of an image of this height and width; centroids where they helped at the nearest measured step."""
        nearest = min(self.measured, key=lambda each: abs(np.log(each.step * POSITIONS / step)), default=None)
        helps = nearest is not None and nearest.centroid_psnr > nearest.psnr
        return Header(bytes.fromhex(self.id)[:4], *sides, step, helps)

    @torch.no_grad()
    def latents(self, images: Images) -> Latents:
        """The mode of each image's posterior, not rounded."""
        device = self.autoencoder.latent_mean.device
        return self.autoencoder.unrounded(images.to(device)).mode().cpu()

    @torch.no_grad()
    def _decoded(self, latents: Latents, sides: tuple[int, int]) -> Images:
        images = self.autoencoder.decode(latents.to(self.autoencoder.latent_mean))
        return images[..., : sides[0], : sides[1]].float().cpu().clamp(-1, 1)

    def _batches(self, images: Sequence[Tensor]) -> Iterator[Images]:
        """Neighbors of one size together, as many as fit."""
        channels = self.autoencoder.network.image_channels
        for number, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != channels or 0 in image.shape:
                shape = " x ".join(map(str, image.shape))
                raise DataError(f"image {number} is of {shape}, and the codec takes {channels} x height x width")
            if not image.isfinite().all():
                raise DataError(f"image {number} holds NaN or infinity")
        for shape, group in groupby(images, key=lambda image: image.shape):
            same = list(group)
            size = max(BATCH_PIXELS // (shape[1] * shape[2]), 1)
            for start in range(0, len(same), size):
                yield torch.stack(same[start : start + size])

    def _compressed(self, image: Tensor, latent: Tensor, target: Target) -> bytes:
        sides = (image.shape[1], image.shape[2])

        def file(step: int) -> bytes:
            payload = self.entropy_model.encode(self.quantized(latent, step), steps_of(step, self.ratios))
            return pack(self.header(sides, step), payload)

        def bits_per_pixel(step: int) -> float:
            return 8 * len(file(step)) / (sides[0] * sides[1])

        def decibels(step: int) -> float:
            found = self.images([Symbols(self.header(sides, step), self.quantized(latent, step))])[0]
            return float(metrics.psnr(image[None].float(), rounded(found)[None]))

        return file(target.chosen(bits_per_pixel, decibels))

    def _hash(self) -> str:
        tensors = {f"entropy.{name}": torch.from_numpy(value) for name, value in self.entropy_model.tensors().items()}
        return sha256_of({**tensors, **self.autoencoder.state_dict()}, json.dumps(["codec", 1, self.ratios]))[:16]


Refinement = Callable[[Latents, Tensor], Latents]  # of latents and the sizes of their cells, batch x channels x 1 x 1
