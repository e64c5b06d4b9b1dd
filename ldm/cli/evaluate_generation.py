"""`ldm evaluate` of generated images: those that a diffusion model draws, or anybody's, beside real ones."""

import argparse
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.options import images_as_in_run, size_of
from ldm.config import reader
from ldm.config.yaml_file import read_yaml
from ldm.data.config import DataConfig, DataSourceConfig, FolderConfig
from ldm.diffusion.config import SAMPLERS
from ldm.errors import ConfigError, DataError, RequestError
from ldm.script_configs import TrainDiffusionConfig, vae_config_of
from ldm.training.config import check_run_format

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.autoencoder.model import Autoencoder
    from ldm.data.datasets import Dataset
    from ldm.evaluation.feature_networks import FeatureExtractor
    from ldm.evaluation.generation import RealData, RealImages
    from ldm.evaluation.image_sets import ImageSet, ImageSetReader, SamplingSettings
    from ldm.pipeline import LatentDiffusion
    from ldm.training.processes import Processes


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their defaults, or ConfigError."""
    if options.generate is not None and options.samples:
        raise ConfigError("--generate draws images, and --samples names some: give one of them")
    if options.generate is not None and options.generate < 2:
        raise ConfigError(f"--generate {options.generate} must be at least 2, to be compared with real images")
    if options.generate is not None and options.run is None:
        raise ConfigError("--generate needs a RUN of train_diffusion.py to draw from")
    if options.samples and options.run is None and not (options.data and options.size):
        raise ConfigError("--samples without a RUN needs --data PATH, the real images, and their --size")
    if options.run is not None and options.size:
        raise ConfigError(f"--size is that of the images of {options.run}: leave it out")
    if options.fid == "none":
        raise ConfigError("--fid none leaves nothing to compare images by: leave it out for a classifier's features")
    if options.fid_weights and options.fid is None:
        raise ConfigError("--fid-weights is for a network that has weights: name it with --fid")
    for name in () if options.generate is not None else ("sampler", "steps", "guidance", "seed", "sweep"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name} is for --generate, and not for --samples: leave it out")
    options.values = sweep_values(options)
    options.batch_size = options.batch_size or 64
    options.sampler, options.steps, options.seed = options.sampler or "heun", options.steps or 18, options.seed or 0
    return options


def sweep_values(options: argparse.Namespace) -> list[Any]:
    """What is swept over: numbers or names; empty without a sweep."""
    if options.sweep is None:
        if options.values is not None:
            raise ConfigError("--values are those of a --sweep: name what is swept over")
        return []
    if options.values is None:
        raise ConfigError(f"--sweep {options.sweep} needs --values, separated by commas")
    if getattr(options, options.sweep) is not None:
        raise ConfigError(f"--{options.sweep} is what is swept over: leave it out, or out of --sweep")
    read: dict[str, Any] = {"guidance": float, "steps": int, "sampler": str}
    values = []
    for text in options.values.split(","):
        try:
            value = read[options.sweep](text.strip())
        except ValueError:
            raise ConfigError(f"--values {options.values}: {text.strip()!r} is not a number") from None
        if options.sweep == "sampler" and value not in SAMPLERS:
            raise ConfigError(f"--values {options.values}: {value!r} is not one of {', '.join(SAMPLERS)}")
        if options.sweep == "steps" and value < 1:
            raise ConfigError(f"--values {options.values}: {value} must be at least 1")
        if value in values:
            raise ConfigError(f"--values {options.values}: {value} is there twice")
        values.append(value)
    return values


def run(options: argparse.Namespace) -> None:
    """Draw or read the samples, measure them, write the files that were asked for, and print the table."""
    run_data = None if options.run is None else data_of_run(options.run)

    from tqdm import tqdm

    from ldm.evaluation.generation import read_real_images
    from ldm.evaluation.image_sets import ImageSetReader
    from ldm.training.processes import Processes

    processes = Processes(options.device)
    opened = processes.main_first(lambda: open_sources(options, run_data, processes))

    def progress(name: str, total: int, unit: str) -> Any:
        return tqdm(total=total, desc=name, unit=unit, delay=1, disable=not processes.is_main, leave=False)

    images = ImageSetReader(processes, options.batch_size, progress)
    num = options.generate or len(opened.samples or ())
    real = read_real_images(opened.real, images, opened.autoencoder, opened.extractor, num=num, seed=options.seed)
    result = evaluated(options, opened, real, images)
    for _ in processes.map(1, lambda _: write_results(options, result)):
        pass
    processes.end()


def evaluated(
    options: argparse.Namespace, opened: "Sources", real: "RealImages", reader: "ImageSetReader"
) -> dict[str, Any]:
    """The report on one set of samples."""
    from ldm.evaluation.generation import draw_samples, measure, read_samples
    from ldm.evaluation.generation_report import report

    if opened.samples is None:
        assert opened.model is not None
        samples = draw_samples(opened.model, real, opened.sampling, options.generate, reader)
    else:
        samples = read_samples(opened.samples, real, opened.autoencoder, reader)
    metrics = measure(real, samples, opened.model, reader)
    result = report(real, samples, metrics, opened.model, opened.sampling, options.run or options.samples)
    result["memorization"] = memorization(options, opened, real, samples, reader)
    return result


def memorization(
    options: argparse.Namespace, opened: "Sources", real: "RealImages", samples: "ImageSet", reader: "ImageSetReader"
) -> dict[str, Any]:
    """The report on copies of training images; the pairs that are most alike are drawn, if that was asked for."""
    from ldm.evaluation.copies import find_copies
    from ldm.pictures import save_png
    from ldm.shapes import to_float, to_uint8

    found, images = find_copies(real, samples, opened.autoencoder, reader), real.data.trained_on

    def training_image(place: int) -> "Tensor":
        return to_uint8(to_float(images.dataset.eval_view(images.indices[place])))

    def draw(_: int) -> None:
        if options.memorization_sheet:
            save_png(found.sheet(samples.pixels, training_image), options.memorization_sheet)

    for _ in reader.processes.map(1, draw):
        pass
    return found.report()


@dataclass(frozen=True)
class Sources:
    """What is evaluated, and beside what."""

    real: "RealData"
    model: "LatentDiffusion | None"
    autoencoder: "Autoencoder | None"
    extractor: "FeatureExtractor | None"  # None: a classifier's features
    samples: "Dataset | None"  # None: the model draws them
    sampling: "SamplingSettings | None"


def open_sources(options: argparse.Namespace, run_data: DataSourceConfig | None, processes: "Processes") -> Sources:
    """Open everything that the options name; an error where something is missing or does not fit."""
    from ldm.autoencoder.model import Autoencoder
    from ldm.data.datasets import open_dataset
    from ldm.evaluation.feature_networks import open_extractor
    from ldm.evaluation.generation import MAX_IMAGES, RealData
    from ldm.pipeline import LatentDiffusion

    model, autoencoder = None, None
    if options.run is not None and (options.generate is not None or is_diffusion_model(options.run)):
        model = LatentDiffusion.load(options.run, processes.device)
        autoencoder = model.autoencoder
    elif options.run is not None:
        autoencoder = Autoencoder.load(options.run).requires_grad_(False).eval().to(processes.device)
    sampling = None if options.samples or model is None else sampling_settings(options, model)
    config = data_config(options, run_data, model)
    extractor = open_extractor(options.fid or "none", options.fid_weights, config.channels, processes.device)
    dataset = open_dataset(config, progress=processes.is_main)
    if options.data is None:
        check_same_images(options.run, dataset, model)
    real = RealData.of(*dataset.split(), options.images or MAX_IMAGES)
    samples = None
    if options.samples:
        changes = {"path": options.samples, "held_out": 0.0, "split": "none", "exclude": ()}
        shared = {each.name: getattr(config, each.name) for each in fields(DataConfig)}
        samples = open_dataset(FolderConfig(**{**shared, **changes}), progress=processes.is_main)
        if len(samples) < 2:
            raise DataError(f"--samples {options.samples} has {len(samples)} image: at least 2 are compared")
    return Sources(real, model, autoencoder, extractor, samples, sampling)


def is_diffusion_model(run: str) -> bool:
    """Whether it is a finished run of train_diffusion.py, or an exported one."""
    return (Path(run) / "unet" / "config.json").is_file()


def sampling_settings(options: argparse.Namespace, model: "LatentDiffusion") -> "SamplingSettings":
    """How the samples are drawn, or RequestError in the words of the command line."""
    from ldm.evaluation.image_sets import SamplingSettings
    from ldm.pipeline import check_request, checked_guidance

    try:
        check_request(options.generate, options.steps, options.sampler, options.batch_size, options.seed)
        dropout = model.config.trained_with_condition_dropout
        guidance = checked_guidance(options.guidance, len(model.classes), dropout)
        for value in options.values if options.sweep == "guidance" else ():
            checked_guidance(value, len(model.classes), dropout)
    except RequestError as error:
        raise error.as_flag() from None
    return SamplingSettings(options.sampler, options.steps, guidance, options.seed)


def data_of_run(run: str) -> DataSourceConfig | None:
    """The config of the images that a run was trained on; None if it is no run, but for instance an export."""
    file = Path(run) / "config.yaml"
    given = read_yaml(file) if file.is_file() else None
    if isinstance(given, dict) and "denoiser" in given:
        check_run_format(file.parent, "train again to evaluate what it generates")
        return reader.load(TrainDiffusionConfig, file, {}).data
    config = vae_config_of(run)
    return None if config is None else config.data


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


def write_results(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the files that were asked for, and print the table."""
    from ldm.checkpoint import write_atomically
    from ldm.evaluation.generation_report import generation_table

    if options.out:
        write_atomically(options.out, json.dumps(result, indent=2).encode())
    print(generation_table(result))
