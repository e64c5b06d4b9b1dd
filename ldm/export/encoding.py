"""Folders of images to files of latents, and back."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder
from ldm.data.datasets import Dataset, Subset
from ldm.errors import CheckpointError, ConfigError, DataError
from ldm.export import latent_file
from ldm.export.latent_file import LatentArray, LatentFile, small
from ldm.nn.pretrained_weights import sha256_of
from ldm.pictures import grid, picture, save_png, upscaled
from ldm.randomness import generator
from ldm.shapes import to_float, to_uint8
from ldm.terminal import writing
from ldm.training.processes import Processes

MAX_IN_GRID = 1024  # images in one picture


@dataclass(frozen=True)
class Encoding:
    """What of a posterior is written: the mode, a sample whose noise depends on (seed, image), or all of it."""

    sample: int | None = None  # the seed
    moments: bool = False


@torch.no_grad()
def encode(
    autoencoder: Autoencoder,
    dataset: Dataset,
    out: Path,
    processes: Processes,
    *,
    encoding: Encoding,
    batch_size: int,
    source: str,
    on_images: Callable[[int], object],
) -> None:
    """Write the latents of every image, in the order of the data set; `on_images` gets the number in each batch."""
    parts = list(Subset(dataset, list(range(len(dataset)))).chunks(batch_size))
    statistics = LatentStatistics()

    def work(number: int) -> np.ndarray:
        images = parts[number].images().to(processes.device)
        return encoded(autoencoder, images, parts[number].indices, encoding)

    def chunks() -> Iterator[np.ndarray]:
        for part, chunk in zip(parts, processes.map(len(parts), work), strict=True):
            statistics.add(posterior_of(torch.from_numpy(chunk), autoencoder.latent_channels))
            on_images(len(part))
            yield chunk

    if not processes.is_main:
        for _ in chunks():
            pass
        return
    _, height, width = autoencoder.latent_shape(dataset.config.sides)
    channels = autoencoder.latent_channels
    depth = 2 * channels if encoding.moments and is_stochastic(autoencoder) else channels
    name = "moments" if depth > channels else "latents"
    measured = {"measured_mean": lambda: statistics.mean, "measured_std": lambda: statistics.std}
    arrays = [
        LatentArray(name, "float32", (len(dataset), depth, height, width), chunks),
        small("mean", autoencoder.latent_mean.flatten().cpu(), "float32"),
        small("std", autoencoder.latent_std.flatten().cpu(), "float32"),
        *(
            LatentArray(key, "float32", (channels,), lambda value=value: [value().numpy()])  # type: ignore[misc]
            for key, value in measured.items()
        ),
        *([small("labels", dataset.labels, "int64")] if dataset.classes else []),
    ]
    about = {"names": dataset.names, "classes": dataset.classes, "image": list(dataset.config.shape)}
    facts = {"autoencoder": Path(source).name, "sha256": sha256_of(autoencoder.state_dict()), "sample": encoding.sample}
    partial = out.with_name(f"{out.name}.partial")
    with writing(out):
        try:
            latent_file.write(partial, arrays, {**about, **facts})
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)


def is_stochastic(autoencoder: Autoencoder) -> bool:
    """Whether its posterior has a variance."""
    return autoencoder.bottleneck.is_stochastic


def encoded(autoencoder: Autoencoder, images: Tensor, indices: list[int], encoding: Encoding) -> np.ndarray:
    """The latents of a batch, or its moments; CheckpointError where they are not finite."""
    posterior = autoencoder.encode(images)
    found = posterior.mode()
    if encoding.moments and posterior.logvar is not None:
        found = torch.cat([posterior.mean, posterior.logvar], dim=1)
    elif encoding.sample is not None:
        shape = posterior.mean.shape[1:]
        noise = [torch.randn(shape, generator=generator(encoding.sample, "encode", index)) for index in indices]
        found = posterior.reparameterize(torch.stack(noise).to(posterior.mean))
    if not found.isfinite().all():
        raise CheckpointError("the autoencoder gives latents that are not finite numbers")
    return found.float().cpu().numpy()


def posterior_of(values: Tensor, channels: int) -> Posterior:
    """Latents or moments as a posterior."""
    return Posterior(values[:, :channels], values[:, channels:] if values.shape[1] > channels else None)


def check_fits(autoencoder: Autoencoder, file: LatentFile, path: Path) -> None:
    """Raise CheckpointError for latents that are of another shape than the autoencoder's."""
    if file.shape[1] != autoencoder.latent_channels:
        raise CheckpointError(
            f"{path} holds latents of {file.shape[1]} channels, and the autoencoder has {autoencoder.latent_channels}"
        )
    if (size := autoencoder.network.fixed_size) is not None:
        expected = autoencoder.latent_shape(size[1:])[1:]
        if tuple(file.shape[2:]) != expected:
            raise CheckpointError(
                f"{path} holds latents of {file.shape[2:]}, and the autoencoder takes {expected} alone"
            )


@torch.no_grad()
def decode(
    autoencoder: Autoencoder,
    file: LatentFile,
    count: int,
    out: Path,
    processes: Processes,
    *,
    batch_size: int,
    on_images: Callable[[int], object],
) -> None:
    """Draw the first `count` latents as single PNG files in the folder `out`, or as one grid where it ends in .png."""
    starts = range(0, count, batch_size)
    sides = file.about.get("image", [None] * 3)[1:]

    def images(number: int) -> Tensor:
        end = min(starts[number] + batch_size, count)
        latents = file.rows(starts[number], end).to(processes.device)
        if not latents.isfinite().all():
            raise DataError(f"the latents from number {starts[number]} to {end - 1} hold NaN or infinity")
        decoded = autoencoder.decode(latents)[..., : sides[0], : sides[1]]
        return to_uint8(decoded).cpu()

    if out.suffix.lower() != ".png":
        names = picture_names(file.about.get("names"), count)

        def draw(number: int) -> int:
            found = images(number)
            with writing(out):
                for name, image in zip(names[starts[number] :], found, strict=False):
                    save_png(picture(image), out / name)
            return len(found)

        for done in processes.map(len(starts), draw):
            on_images(done)
        return
    drawn = []
    for part in processes.map(len(starts), images):
        on_images(len(part))
        drawn.append(part)
    if processes.is_main:
        pixels = to_float(torch.cat(drawn))
        with writing(out):
            save_png(upscaled(grid(pixels, columns=max(round(count**0.5), 1))), out)


def picture_names(names: list[str] | None, count: int) -> list[str]:
    """Where each picture goes in the folder: named like the image that was encoded, or by its number; all different."""
    if names is None or len(names) < count:
        return [f"{number:05d}.png" for number in range(count)]
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise DataError(f"the file of latents names an image {name}, which leads out of the folder")
    short = [PurePosixPath(name).with_suffix(".png").as_posix() for name in names[:count]]
    several = {name for name, times in Counter(short).items() if times > 1}
    found = [f"{name}.png" if kept in several else kept for name, kept in zip(names, short, strict=False)]
    return found if len(set(found)) == count else [f"{name}.png" for name in names[:count]]


def check_grid(out: Path, count: int) -> None:
    """Raise ConfigError for a grid of more images than one picture should hold."""
    if out.suffix.lower() == ".png" and count > MAX_IN_GRID:
        raise ConfigError(f"--out {out} would be a grid of {count:,} images: name a folder, or give --images 64")
