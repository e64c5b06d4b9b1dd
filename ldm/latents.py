"""The latent cache: images encoded once, standardized, and drawn from at every training step."""

import errno
import json
import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.latent_encoding import check_shared, encode_shards
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder, create_pixels
from ldm.checkpoint import read_entry
from ldm.data.config import DataSourceConfig
from ldm.data.datasets import Dataset, Subset
from ldm.diffusion.config import DenoiserConfig, SamplingConfig, ScalarSkipConfig
from ldm.diffusion.denoiser import EDM, Denoiser
from ldm.diffusion.gaussian import LatentGaussian, check_size, fit_gaussian, folds_of
from ldm.errors import CheckpointError, ConfigError
from ldm.nn.pretrained_weights import sha256_of
from ldm.shapes import format_size
from ldm.training import locks
from ldm.training.run import Run
from ldm.training.run_folder import check_cache_folder
from ldm.training.sharded_array import TYPES, ShardedArray, as_tensor

MOST_FITTED = 16384  # images that a Gaussian is fitted to


def fingerprint(autoencoder: Autoencoder, data: str, flips: int) -> str:
    """A hash of all that the cached moments depend on: weights, statistics, data, transform."""
    return sha256_of(autoencoder.state_dict(), f"moments 1 {data} {flips}")


@dataclass(frozen=True)
class LatentCache:
    """Posterior moments of every image, and of its mirror image where flips are on: flips x images x 2c x h x w.

    Moments, not samples: a cached sample would freeze the noise. Of a deterministic code there is the code alone, c x h
    x w. The mirror image is encoded, for the mirrored latent is not the latent of the mirrored image. The file is
    memory-mapped; of bfloat16 it holds the bits, as uint16 (`as_tensor`).
    """

    fingerprint: str
    moments: np.ndarray
    channels: int  # of a latent
    mean: Tensor  # what standardizes them further, channels x 1 x 1
    std: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent."""
        return self.channels, *self.moments.shape[3:]

    def __getstate__(self) -> dict[str, Any]:
        """A process that is not forked maps the file anew: it would be sent all that is in it."""
        moments: Any = self.moments
        is_file = isinstance(moments, np.memmap) and isinstance(moments.base, mmap.mmap)
        return vars(self) | {"moments": moments.filename if is_file else moments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        moments = state["moments"]
        opened = moments if isinstance(moments, np.ndarray) else np.load(moments, mmap_mode="r", allow_pickle=False)
        vars(self).update(state | {"moments": opened})

    def posterior(self, indices: list[int], flips: list[int] | None = None) -> Posterior:
        """The posteriors of these images; `flips` says, image by image, whether the mirror image is meant."""
        rows = self.moments[[0] * len(indices) if flips is None else flips, indices]
        return self.posterior_of(as_tensor(rows))

    def posterior_of(self, moments: Tensor) -> Posterior:
        """The standardized posteriors of these rows of the cache, on their device."""
        moments = moments.to(torch.get_default_dtype())
        mean, logvar = moments[:, : self.channels], moments[:, self.channels :]
        posterior = Posterior(mean, logvar if logvar.shape[1] else None)
        return posterior.standardized(self.mean.to(mean), self.std.to(mean))

    def statistics_on(self, device: torch.device | str) -> "LatentCache":
        """The same, with what standardizes the moments on a device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def standardize(self, autoencoder: Autoencoder, indices: list[int]) -> "LatentCache":
        """Make mean 0 and std 1 what they are over `indices`, for the cached latents and in the autoencoder itself."""
        statistics = LatentStatistics()
        for start in range(0, len(indices), 256):
            statistics.add(self.posterior(indices[start : start + 256]))
        mean, std = statistics.mean.view(-1, 1, 1), statistics.std.view(-1, 1, 1)
        std = torch.where(std > 0, std, torch.ones_like(std))  # a channel that never varies keeps its scale
        autoencoder.standardize(mean, std)
        return replace(self, mean=self.mean + self.std * mean, std=self.std * std)


def open_latents(run: Run, folder: Path, autoencoder: Autoencoder, dataset: Dataset) -> LatentCache:
    """The cache in `folder`; what is missing of it is encoded first, by all processes. Every byte is verified.

    Raises CheckpointError if the folder holds the cache of another autoencoder, other data or another transform,
    ConfigError if it lies among images or is not one folder for all processes.
    """
    check_cache_folder(folder, dataset.config)
    array = array_of(folder, autoencoder, dataset, run.run_config.latents)
    processes, channels = run.processes, autoencoder.latent_channels

    def opened() -> LatentCache | None:
        return open_cache(folder, array.fingerprint, channels, array.precision)

    with ExitStack() as stack:

        def begin() -> list[int] | None:
            if opened() is not None:
                return None
            if folder.resolve() == run.folder.path.resolve():
                raise ConfigError(f"--cache {folder} is the run's own folder: choose another, or leave it out")
            stack.enter_context(cache_lock(folder, run.print))
            return None if opened() is not None else array.begin()

        missing = run.on_main(begin)
        if missing is not None:
            encode_shards(array, missing, autoencoder, dataset, processes)
            run.on_main(array.finish)
    for _ in processes.map(processes.count, lambda _: check_shared(folder, opened() is not None)):
        pass
    for _ in processes.map(len(array), array.verify):
        pass
    cache = opened()
    assert cache is not None
    return cache


def array_of(folder: Path, autoencoder: Autoencoder, dataset: Dataset, precision: str) -> ShardedArray:
    """The file of the moments of these images in `folder`, whether it is there or not."""
    flips = 2 if dataset.config.flip else 1
    _, *sides = autoencoder.latent_shape(dataset.config.sides)
    channels = autoencoder.latent_channels * (2 if autoencoder.bottleneck.is_stochastic else 1)
    expected = fingerprint(autoencoder, dataset.fingerprint, flips)
    return ShardedArray(folder, expected, (flips, len(dataset), channels, *sides), precision)


@contextmanager
def cache_lock(folder: Path, warn: Callable[[str], None] = tqdm.write) -> Iterator[None]:
    """Nobody else builds a cache in `folder` meanwhile: a run that shares it waits, and finds it built."""
    try:
        if (folder / "moments.npy").exists() and not (folder / ".lock").exists():
            raise ConfigError(f"--cache {folder} holds a moments.npy that no run made: choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        lock = locks.acquire(folder / ".lock", wait=True, warn=warn)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(f"--cache {folder} cannot be written: {error.filename}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def open_cache(folder: Path, expected: str, channels: int, precision: str | None = None) -> LatentCache | None:
    """The cache of latents of `channels`, None if there is none, CheckpointError if it is of something else.

    Without a `precision` it may have any.
    """
    description = folder / "cache.json"
    if not description.exists():
        return None
    try:
        written = json.loads(description.read_text())
        written_for, shape, found = written["fingerprint"], tuple(written["shape"]), written.get("precision", "float32")
        moments = np.load(folder / "moments.npy", mmap_mode="r", allow_pickle=False)
        if (moments.dtype, moments.shape) != (TYPES[found], shape):
            raise ValueError(f"moments.npy holds {moments.dtype} {moments.shape} instead of {found} {shape}")
    except Exception as error:  # what NumPy and json raise for damaged files is of many types
        raise CheckpointError(f"the latent cache {folder} is damaged ({error}): delete it and run again") from error
    if written_for != expected:
        raise CheckpointError(
            f"the latent cache {folder} is stale: it was made with another autoencoder, other data or another"
            " transform; delete it, or choose another --cache"
        )
    if precision not in (None, found):
        raise CheckpointError(
            f"the latent cache {folder} is of {found}, and run.latents is {precision}: delete it, or choose another"
            " --cache"
        )
    return LatentCache(expected, moments, channels, torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1))


def possible_skip(
    config: DenoiserConfig, latents: LatentCache, training: Subset, say: Callable[[str], None]
) -> DenoiserConfig:
    """The same config, with a scalar skip where the latents are too large or too few for a Gaussian, which is said."""
    if config.skip.kind == "gaussian":
        try:
            check_size(latents.shape)
            folds_of(len(training), groups_of(training))
        except ConfigError as error:
            say(f"denoiser.skip gaussian is off: {error}")
            return replace(config, skip=ScalarSkipConfig())
    return config


def initialize_skip(run: Run, denoiser: Denoiser, latents: LatentCache, training: Subset) -> None:
    """Fit the Gaussian skip of a denoiser, if it has one, to the training latents, unless a checkpoint has it."""
    gaussian = denoiser.gaussian
    if gaussian is None:
        return

    def fit() -> None:
        gaussian.load_state_dict(gaussian_of(latents, training, len(gaussian.eigenvalues)).state_dict())
        sigmas = torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0])
        losses = (gaussian.c_out(sigmas) / EDM.c_out(sigmas, 1.0)) ** 2
        expected = ", ".join(f"{loss:.3f} at {sigma:g}" for loss, sigma in zip(losses, sigmas, strict=True))
        run.print(f"Gaussian skip of rank {len(gaussian.eigenvalues)}: before training the loss is about {expected}")

    run.initialize(denoiser, fit)


def gaussian_of(latents: LatentCache, training: Subset, rank: int | None = None) -> LatentGaussian:
    """The Gaussian of the training latents and of those of their mirror images, cross-validated by group."""
    chosen = training.evenly_spaced(MOST_FITTED)
    posterior = latents.posterior(chosen.indices)
    mirrored = None
    if len(latents.moments) > 1:
        mirrored = latents.posterior(chosen.indices, [1] * len(chosen)).mean
    noise = posterior.variance.double().mean((0, 2, 3))
    groups = groups_of(chosen)
    return fit_gaussian(posterior.mean, noise_variance=noise, mirrored=mirrored, groups=groups, rank=rank)


def groups_of(images: Subset) -> list[str]:
    """The group of each image."""
    return [images.dataset.groups[index] for index in images.indices]


def above_noise(sampling: SamplingConfig, noise: Tensor | None, say: Callable[[str], None]) -> SamplingConfig:
    """The same grid, whose last level is at least the noise that the latents have anyway, which is said.

    `noise` is the posterior's standard deviation per channel; None leaves the grid alone.
    """
    if noise is None or sampling.sigma_min >= (least := float(noise.min())):
        return sampling
    say(f"sampling.sigma_min {sampling.sigma_min:g} is raised to {least:.3g}, the noise of the autoencoder's latents")
    return replace(sampling, sigma_min=least)


def open_autoencoder(source: str | None, config: DataSourceConfig, data: str) -> tuple[Autoencoder, bool]:
    """The autoencoder whose latents are denoised, and whether its statistics are those of these very data.

    `source` is what `Autoencoder.load` takes, or None for the pixels themselves; `data` is the data's fingerprint.
    Raises CheckpointError if there is none, or if it takes other images than the settings describe.
    """
    if source is None:
        return create_pixels(config.shape).requires_grad_(False), False
    autoencoder = Autoencoder.load(source).requires_grad_(False)
    if not autoencoder.decodes_images:
        raise CheckpointError(
            f"the autoencoder {source} decodes to patches without their mean and variance, and to no images: train it"
            " with objective.target images"
        )
    environment = Path(source) / "environment.json"
    same_data = environment.is_file() and read_entry(environment, "data", str) == data
    channels, downsampling = autoencoder.network.image_channels, autoencoder.network.downsampling
    if channels != config.channels:
        raise CheckpointError(
            f"the autoencoder {source} takes {channels} channels, not data.channels {config.channels}"
        )
    if any(side % factor for side, factor in zip(config.sides, downsampling, strict=True)):
        raise CheckpointError(
            f"the autoencoder {source} downsamples by {downsampling[0]}, which does not divide data.size"
            f" {format_size(config.sides)}"
        )
    return autoencoder, same_data
