"""`ldm evaluate` of generated images: those that a diffusion model draws, or anybody's, beside real ones."""

import argparse
import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.generation_sources import Sources, open_sources
from ldm.cli.sampling_options import GUIDANCE
from ldm.diffusion.config import SAMPLER_OPTIONS, SAMPLERS
from ldm.errors import CheckpointError, ConfigError, StopRequested
from ldm.script_configs import data_of_run

if TYPE_CHECKING:
    from ldm.evaluation.generation import RealImages
    from ldm.evaluation.image_sets import ImageSetReader

OF_DRAWING = ("sampler", "steps", *GUIDANCE, *SAMPLER_OPTIONS, "ema", "seed", "sweep")


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their defaults, or ConfigError."""
    if options.generate is not None and options.samples:
        raise ConfigError("--generate draws images, and --samples names some: give one of them")
    if options.generate is not None and options.generate < 2:
        raise ConfigError(f"--generate {options.generate} must be at least 2, to be compared with real images")
    if options.images == 1:
        raise ConfigError("--images 1 must be at least 2, to be compared with samples")
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
    for name in () if options.generate is not None else OF_DRAWING:
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for --generate, and not for --samples: leave it out")
    for flag in ("save_images", "memorization_sheet") if options.sweep else ():
        if getattr(options, flag):
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} is for one set of samples, and not for a --sweep: leave it out")
    options.values = sweep_values(options)
    options.batch_size = options.batch_size or 64
    options.seed = options.seed or 0
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
    read: dict[str, Any] = {"guidance": float, "steps": int, "sampler": str, "ema": float}
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
    read = [] if opened.samples is not None else opened.real.readable
    settings = {"num": num, "seed": options.seed, "cache": opened.cache, "read": read}
    real = read_real_images(opened.real, images, opened.autoencoder, opened.extractor, **settings)
    (evaluate_sweep if options.sweep else evaluate_once)(options, opened, real, images)
    processes.end()


def evaluate_once(options: argparse.Namespace, opened: Sources, real: "RealImages", reader: "ImageSetReader") -> None:
    """One set of samples."""
    from ldm.checkpoint import write_atomically, write_folder_atomically
    from ldm.evaluation.copies import draw_pairs, find_copies
    from ldm.evaluation.generation_report import generation_table, header, report
    from ldm.evaluation.sample_sheet import draw_sheet, save_image_sets
    from ldm.evaluation.samples import draw_samples, held_out_denoising, measure, read_samples

    if opened.samples is None:
        assert opened.model is not None and opened.sampling is not None
        samples = draw_samples(opened.model, real, opened.sampling, options.generate, reader)
    else:
        samples = read_samples(opened.samples, real, opened.autoencoder, reader)
    metrics = measure(real, samples, reader)
    if opened.model is not None and opened.samples is None:
        denoising = held_out_denoising(real, opened.model, reader)
        metrics |= {} if denoising is None else {"denoising": denoising}
    head = header(real, len(samples), opened.model, opened.sampling, options.samples or options.run)
    copies = find_copies(real, samples, opened.autoencoder, opened.cache, reader)
    result = report(head, samples, metrics) | {"memorization": copies.report()}

    def write() -> None:
        if options.out:
            write_atomically(options.out, json.dumps(result, indent=2).encode())
        if options.panel:
            with naming(options.panel):
                draw_sheet(real, samples, options.panel)
        if options.memorization_sheet:
            with naming(options.memorization_sheet):
                draw_pairs(copies, real, samples, options.memorization_sheet)
        if options.save_images:
            write_folder_atomically(options.save_images, lambda folder: save_image_sets(real, samples, folder))
        print(generation_table(result))

    reader.processes.on_main(write)


def evaluate_sweep(options: argparse.Namespace, opened: Sources, real: "RealImages", reader: "ImageSetReader") -> None:
    """The same samples with several values of one setting."""
    from ldm.evaluation.sweep import Sweep, draw_sweep, run_sweep, sweep_table

    assert opened.model is not None and opened.sampling is not None
    sweep = Sweep(options.sweep, options.values, options.out)
    try:
        found = run_sweep(sweep, opened.model, real, opened.sampling, options.generate, options.run, reader)
    except KeyboardInterrupt:
        if options.out is None:
            raise
        raise StopRequested(
            f"stopped; run the same command again to measure what {options.out} does not hold"
        ) from None

    def write() -> None:
        if options.panel:
            with naming(options.panel):
                draw_sweep(found, options.panel)
        print(sweep_table(found))

    reader.processes.on_main(write)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error in writing names the file; a full disk stays one."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(f"could not write {path}: {error.strerror or error}") from error
