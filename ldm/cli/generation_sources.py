"""Inputs of `ldm evaluate` for generated images: a model or a folder of samples, and the real images beside them."""

import argparse
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.options import images_as_in_run, size_of
from ldm.cli.sampling_options import requested_guidance, requested_interval, requested_options
from ldm.data.config import DataConfig, DataSourceConfig, FolderConfig
from ldm.errors import CheckpointError, ConfigError, DataError, RequestError

if TYPE_CHECKING:
    from ldm.autoencoder.model import Autoencoder
    from ldm.data.datasets import Dataset
    from ldm.evaluation.feature_networks import FeatureExtractor
    from ldm.evaluation.generation import RealData
    from ldm.evaluation.image_sets import SamplingSettings
    from ldm.latents import LatentCache
    from ldm.pipeline import LatentDiffusion
    from ldm.training.processes import Processes


@dataclass(frozen=True)
class Sources:
    """What is evaluated, and beside what."""

    real: "RealData"
    model: "LatentDiffusion | None"
    autoencoder: "Autoencoder | None"
    extractor: "FeatureExtractor | None"  # None: a classifier's features
    samples: "Dataset | None"  # None: the model draws them
    sampling: "SamplingSettings | None"
    cache: "LatentCache | None"  # of the latents of the real images


def open_sources(options: argparse.Namespace, run_data: DataSourceConfig | None, processes: "Processes") -> Sources:
    """Open everything that the options name; an error where something is missing or does not fit."""
    from ldm.autoencoder.model import Autoencoder
    from ldm.data.datasets import open_dataset
    from ldm.evaluation.feature_networks import open_extractor
    from ldm.evaluation.generation import MAX_IMAGES, RealData
    from ldm.evaluation.sample_sheet import check_savable
    from ldm.evaluation.sweep import Sweep, check_resumable
    from ldm.pipeline import LatentDiffusion

    model, autoencoder, sampling = None, None, None
    if options.run is not None and (options.generate is not None or is_diffusion_model(options.run)):
        model = LatentDiffusion.load(options.run, processes.device)
        autoencoder = model.autoencoder
    elif options.run is not None:
        autoencoder = Autoencoder.load(options.run).requires_grad_(False).eval().to(processes.device)
    if model is not None and options.generate is not None:
        sampling = sampling_settings(options, model)
    config = data_config(options, run_data, model)
    extractor = open_extractor(options.fid or "none", options.fid_weights, config.channels, processes.device)
    dataset = open_dataset(config, progress=processes.is_main)
    cache = None
    if options.data is None:
        check_same_images(options.run, dataset, model)
        cache = None if model is None else latent_cache(Path(options.run), dataset, model)
    if options.save_images:
        check_savable(config.channels)
    if options.sweep:
        check_resumable(Sweep(options.sweep, options.values, options.out))
    real = RealData.of(*dataset.split(), options.images or MAX_IMAGES)
    samples = None
    if options.samples:
        changes = {"path": options.samples, "held_out": 0.0, "split": "none", "exclude": ()}
        shared = {each.name: getattr(config, each.name) for each in fields(DataConfig)}
        samples = open_dataset(FolderConfig(**{**shared, **changes}), progress=processes.is_main)
        if len(samples) < 2:
            raise DataError(f"--samples {options.samples} has {len(samples)} image: at least 2 are compared")
    return Sources(real, None if options.samples else model, autoencoder, extractor, samples, sampling, cache)


def is_diffusion_model(run: str) -> bool:
    """Whether it is a finished run of train_diffusion.py, or an exported one."""
    return (Path(run) / "unet" / "config.json").is_file()


def sampling_settings(options: argparse.Namespace, model: "LatentDiffusion") -> "SamplingSettings":
    """How the samples are drawn, or RequestError in the words of the command line."""
    from ldm.diffusion.guidance import checked_guidance
    from ldm.diffusion.samplers.options import checked_options
    from ldm.diffusion.sampling import check_request
    from ldm.evaluation.image_sets import SamplingSettings
    from ldm.training.snapshots import check_length, load_average, usable_steps

    grid = model.config.sampling
    options.sampler, options.steps = options.sampler or grid.sampler, options.steps or grid.steps
    try:
        check_request(options.generate, options.steps, options.sampler, options.batch_size, options.seed)
        guidance, given = requested_guidance(options, model), requested_options(options)
        if guidance.kind == "per-condition":
            raise RequestError("guidance", "takes one weight here; one for each condition is for sample.py")
        guide = guidance.guide if guidance.kind == "autoguidance" else None
        for value in options.values if options.sweep == "guidance" else ():
            dropout = model.config.trained_with_condition_dropout
            checked_guidance(value, model.config.schema, dropout, guide=guide)
        for sampler in options.values if options.sweep == "sampler" else (options.sampler,):
            given = checked_options(sampler, given, model.config.denoiser.skip.kind, model.config.sampling)
        for value in options.values if options.sweep == "ema" else ():
            check_length(options.run, usable_steps(Path(options.run)), value)
        if options.ema is not None:
            load_average(model.denoiser, options.run, options.ema)
    except RequestError as error:
        raise error.as_flag() from None
    return SamplingSettings(
        options.sampler,
        options.steps,
        guidance.weight,
        options.seed,
        requested_interval(options),
        guidance.rescale,
        options.guide,
        tuple(given.items()),
        guide,
        options.ema,
    )


def data_config(
    options: argparse.Namespace, run_data: DataSourceConfig | None, model: "LatentDiffusion | None"
) -> DataSourceConfig:
    """The config of the real images, or ConfigError."""
    if options.data is None:
        if run_data is None:
            raise ConfigError(f"{options.run} is not a run, with data of its own: name real images with --data PATH")
        return run_data
    size, channels = size_of(options.size), 3
    if model is not None:
        factors, network = model.autoencoder.network.downsampling, model.autoencoder.network
        height, width = (side * factor for side, factor in zip(model.config.latent_shape[1:], factors, strict=True))
        size, channels = (height, width), network.image_channels
    elif run_data is not None:
        size, channels = run_data.size, run_data.channels
    return images_as_in_run(options.data, run=options.run, run_data=run_data, size=size, channels=channels)


def latent_cache(run: Path, dataset: "Dataset", model: "LatentDiffusion") -> "LatentCache | None":
    """The latents that the run was trained on, where it kept them and they are those of its autoencoder as it is."""
    from ldm.latents import fingerprint, open_cache

    expected = fingerprint(model.autoencoder, dataset.fingerprint, 2 if dataset.config.flip else 1)
    try:
        return open_cache(run / "latents", expected, model.autoencoder.latent_channels)
    except CheckpointError:  # stale, as the latents were standardized anew, or damaged: they are encoded again
        return None


def check_same_images(run: str, dataset: "Dataset", model: "LatentDiffusion | None") -> None:
    """Raise DataError if the run's own images are not those any more that it was trained on."""
    from ldm.checkpoint import read_entry
    from ldm.latents import fingerprint

    environment, found = Path(run) / "environment.json", dataset.fingerprint
    begun_with = read_entry(environment, "data", str)
    if model is not None:  # of a run of train_diffusion.py that is the fingerprint of its latents
        recorded = json.loads(environment.read_text()).get("images")
        if recorded is None:  # as earlier runs did not
            found = fingerprint(model.autoencoder, found, 2 if dataset.config.flip else 1)
        begun_with = recorded or begun_with
    if found != begun_with:
        raise DataError(f"the data changed since the run in {run} began: restore them, or name others with --data PATH")
