"""`ldm evaluate` of an autoencoder: metrics of its reconstructions and of its latents."""

import argparse
import errno
import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.options import images_as_in_run, size_of
from ldm.data.config import DataSourceConfig
from ldm.errors import CheckpointError, ConfigError, DataError
from ldm.script_configs import vae_data_of

if TYPE_CHECKING:
    from ldm.autoencoder.model import Autoencoder
    from ldm.evaluation.measurements import EvaluationSet

MAX_FEATURES = 2**14  # of a probe: 10,000 images of so many numbers are 1.3 GB in float64


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their defaults, or ConfigError."""
    for name in ("lpips", "fid", "probe"):
        setattr(options, name, getattr(options, name) or "none")
    options.batch_size = options.batch_size or 32
    for name in ("lpips", "fid"):
        if getattr(options, f"{name}_weights") and (kind := getattr(options, name)) == "none":
            raise ConfigError(f"--{name}-weights is for a network that has weights: --{name} is {kind}")
    if options.probe != "none" and split_of(options) != "held-out":
        raise ConfigError(
            f"--probe {options.probe} is fitted to the training images and measured on others: use --split held-out"
        )
    return options


def split_of(options: argparse.Namespace) -> str:
    """Which of the images are measured."""
    return options.split or ("all" if options.data else "held-out")


def run(options: argparse.Namespace) -> None:
    """Measure, write the files that were asked for, and print the table."""
    run_data, size = vae_data_of(options.run), size_of(options.size)

    from tqdm import tqdm

    from ldm.autoencoder.model import Autoencoder
    from ldm.evaluation.feature_networks import open_extractor, open_perceptual_metric
    from ldm.evaluation.protocol import evaluate
    from ldm.evaluation.saved_images import SavedImages
    from ldm.training.processes import Processes

    processes = Processes(options.device)

    def prepared() -> Any:
        autoencoder = Autoencoder.load(options.run).requires_grad_(False)
        needs_images = options.save_images or (options.lpips, options.fid) != ("none", "none")
        if needs_images and not autoencoder.decodes_images:
            flags = "--lpips, --fid and --save-images"
            raise ConfigError(f"{flags} are for images, and {options.run} decodes to normalized patches")
        channels = autoencoder.network.image_channels
        metric = open_perceptual_metric(options.lpips, options.lpips_weights, processes.device)
        extractor = open_extractor(options.fid, options.fid_weights, channels, processes.device)
        data = data_config(options, run_data, size, channels)
        evaluated = evaluation_set(options, data, run_data, processes.is_main)
        if options.probe != "none":
            check_probe(options.probe, autoencoder, evaluated)
        saved = SavedImages(options.save_images, evaluated.images) if options.save_images else None
        return autoencoder, metric, extractor, evaluated, saved

    autoencoder, metric, extractor, evaluated, saved = processes.main_first(prepared)
    total = len(evaluated.images) + (len(evaluated.for_probes) if options.probe != "none" else 0)
    bar = tqdm(total=total, desc="evaluating", unit="image", delay=1, disable=not processes.is_main)
    with bar, saved.open(processes) if saved else nullcontext():
        result = evaluate(
            autoencoder,
            evaluated,
            processes,
            metric=metric,
            extractor=extractor,
            probe=options.probe,
            saved=saved,
            batch_size=options.batch_size,
            on_images=bar.update,
        )
    for _ in processes.map(1, lambda _: write_results(options, result, autoencoder, evaluated)):
        pass
    processes.end()


def data_config(
    options: argparse.Namespace, run_data: DataSourceConfig | None, size: int | tuple[int, int] | None, channels: int
) -> DataSourceConfig:
    """The config of the images to measure on, or ConfigError."""
    if options.data is None:
        if run_data is None:
            raise ConfigError(f"{options.run} is not a run of train_vae.py: name the images with --data PATH")
        if run_data.channels != channels:
            raise CheckpointError(
                f"the autoencoder {options.run} takes {channels} channels, not data.channels {run_data.channels}"
            )
        return replace(run_data, size=size or run_data.size)
    return images_as_in_run(options.data, run=options.run, run_data=run_data, size=size, channels=channels)


def check_same_data(options: argparse.Namespace, fingerprint: str, same_size: bool, progress: bool) -> None:
    """Raise DataError if the run's own images are not those any more that it was trained on."""
    from ldm.training.run_folder import RunFolder

    if same_size:
        RunFolder(Path(options.run)).check_same_data(fingerprint, "name others with --data PATH")
    elif progress:
        print(f"at another --size the images are not compared with those that {options.run} was trained on")


def evaluation_set(
    options: argparse.Namespace, data: DataSourceConfig, run_data: DataSourceConfig | None, progress: bool
) -> "EvaluationSet":
    """The images to measure on, and those that baselines are fitted to.

    Raises an error where there are none or too few, or where they are no longer those of the run.
    """
    from ldm.data.datasets import Subset, open_dataset
    from ldm.data.summary import what_was_found
    from ldm.evaluation.measurements import EvaluationSet

    split = split_of(options)
    dataset = open_dataset(data, progress=progress)
    if options.data is not None and progress:
        print(what_was_found(dataset))
    if options.data is None and run_data is not None:
        check_same_data(options, dataset.fingerprint, data.sides == run_data.sides, progress)
    training, held_out = dataset.split()
    everything = Subset(dataset, list(range(len(dataset))))
    images = {"held-out": held_out, "training": training, "all": everything}[split]
    if not len(images):
        advice = "choose --split training or all" if options.probe == "none" else "--probe needs some"
        raise DataError(f"none of the {len(dataset):,} images is held out: {advice}")
    if options.images is not None and options.images > len(images):
        raise ConfigError(f"--images {options.images} is more than the {len(images)} {split} images")
    if options.fid != "none" and (options.images or len(images)) < 2:
        raise ConfigError("--fid needs at least 2 images")
    without_training = bool(options.data) and split == "all"
    return EvaluationSet(
        split,
        images.evenly_spaced(options.images or len(images)),
        Subset(dataset, []) if without_training else training,
    )


def check_probe(probe: str, autoencoder: "Autoencoder", evaluated: "EvaluationSet") -> None:
    """Raise an error where there are no classes to tell apart, or too many features to do it with."""
    if len(set(evaluated.for_probes.labels.tolist())) < 2:
        raise DataError(
            f"--probe {probe} needs training images of at least two classes: a folder has one sub-folder for each"
        )
    numbers = math.prod(autoencoder.latent_shape(evaluated.images.shape[1:]))
    if probe == "flat" and numbers > MAX_FEATURES:
        raise ConfigError(
            f"--probe flat takes latents of up to {MAX_FEATURES} numbers, not of {numbers}: use --probe mean"
        )


def write_results(
    options: argparse.Namespace, result: dict[str, Any], autoencoder: "Autoencoder", evaluated: "EvaluationSet"
) -> None:
    """Write the files that were asked for, and print the table."""
    from ldm.checkpoint import write_atomically
    from ldm.evaluation.formatting import report_table
    from ldm.evaluation.panels import ReconstructionPanel
    from ldm.evaluation.report_files import MARK

    result = {"autoencoder": {"source": options.run, **result.pop("autoencoder")}, **result}
    if options.out:
        write_atomically(options.out, json.dumps(result, indent=2).encode())
    if options.panel:
        try:
            ReconstructionPanel(evaluated.images).draw(autoencoder, options.panel, MARK)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CheckpointError(f"could not write {options.panel}: {error.strerror or error}") from error
    print(report_table(result))
