"""No guidance, classifier-free and autoguidance of one run beside each other, everywhere and in an interval of levels.

    python benchmarks/guidance.py runs/digits-ldm                 guided by the run's own checkpoints of 1/16 and 1/8
    python benchmarks/guidance.py runs/emoji-ldm --guides runs/small runs/emoji-ldm@625 --features FOLDER

Each row draws as many samples with each seed, of conditions as in the data, and shows mean and range over the
seeds: Fréchet distance to training images, in the features of the small classifier that `ldm evaluate` trains or in
those of a folder of benchmarks/lite.py; recall, how many training images are in the manifold of the samples; and the
share of the samples that the classifier reads as the class they were asked for. Held-out images stand beside them.
"""

import argparse
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm import checkpoint
from ldm.cli import evaluate
from ldm.cli.evaluate_generation import checked
from ldm.cli.generation_sources import Sources, open_sources
from ldm.evaluation.classifier import accuracy
from ldm.evaluation.generation import RealImages, read_real_images
from ldm.evaluation.image_sets import ImageSet, ImageSetReader, SamplingSettings
from ldm.evaluation.metrics import FeatureGaussian
from ldm.evaluation.samples import draw_samples
from ldm.export.load_guide import load_guide
from ldm.script_configs import data_of_run
from ldm.training.processes import Processes

# isort: off
from runs import print_table

KEPT = 2  # the checkpoints that a run keeps for its own guidance


def settings_of(options: argparse.Namespace, opened: Sources) -> Iterator[tuple[str, SamplingSettings]]:
    """Each row's name, and how its samples are drawn."""
    plain, model = opened.sampling, opened.model
    assert plain is not None and model is not None
    plain = replace(plain, guidance=1.0)
    interval = tuple(options.interval)
    where = f"{interval[0]:g} to {interval[1]:g}"
    yield "none", plain
    if model.config.schema.attributes and model.config.trained_with_condition_dropout:
        for weight in options.weights:
            yield f"classifier-free, {weight:g}", replace(plain, guidance=weight)
        for weight in options.weights:
            guided = replace(plain, guidance=weight, guidance_interval=interval)
            yield f"classifier-free, {weight:g}, σ {where}", guided
    for source in options.guides or own_guides(options.run):
        auto = replace(plain, guide=source, guide_denoiser=load_guide(source, model))
        for weight in options.weights:
            yield f"by {source}, {weight:g}", replace(auto, guidance=weight)
        weight = options.weights[len(options.weights) // 2]
        yield f"by {source}, {weight:g}, σ {where}", replace(auto, guidance=weight, guidance_interval=interval)


def own_guides(run: Path) -> list[str]:
    """The early checkpoints of a run."""
    return [f"{run}@{step}" for step in checkpoint.steps(run / "checkpoints")[:KEPT]]


def measured(real: RealImages, images: ImageSet) -> tuple[float, ...]:
    """Fréchet distance, recall and, where there are classes, the percentage that is read as asked for."""
    assert images.features is not None
    reference = real.against_training
    frechet = reference.gaussian.frechet_distance(FeatureGaussian.of(images.features))
    found = [frechet, reference.precision_recall(images.features)[1]]
    if real.task.classes and len(images.labels):
        found.append(100 * accuracy(real.classifiers[0], real.task, images.pixels, images.labels))
    return tuple(found)


def cells(measurements: Iterable[tuple[float, ...]]) -> list[str]:
    """Mean and range of each metric."""
    shown = []
    for values in zip(*measurements, strict=True):
        ends = f" ({min(values):.4g} – {max(values):.4g})" if len(values) > 1 else ""
        shown.append(f"{statistics.mean(values):.4g}{ends}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path)
    add("--guides", nargs="+", help="runs, or RUN@STEP; left out: the run's own early checkpoints")
    add("--weights", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    add("--interval", type=float, nargs=2, default=[0.3, 3.0], help="lowest and highest noise level")
    add("--num", type=int, default=1000, help="samples of each row and seed")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--features", help="a folder that benchmarks/lite.py has written")
    add("--batch-size", type=int, default=250)
    options = parser.parse_args()
    command = [str(options.run), "--generate", str(options.num), "--batch-size", str(options.batch_size)]
    if options.features:
        command += ["--fid", "features", "--fid-weights", options.features]
    given, processes = checked(evaluate.parsed(command)), Processes(None)
    opened = open_sources(given, data_of_run(str(options.run)), processes)

    def progress(name: str, total: int, unit: str) -> Any:
        return tqdm(total=total, desc=name, unit=unit, delay=1, leave=False)

    reader = ImageSetReader(processes, options.batch_size, progress)
    kept = {"num": options.num, "seed": 0, "cache": opened.cache}
    real = read_real_images(opened.real, reader, opened.autoencoder, opened.extractor, **kept)
    assert opened.model is not None
    rows = []
    for name, settings in settings_of(options, opened):
        found = []
        for seed in options.seeds:
            samples = draw_samples(opened.model, real, replace(settings, seed=seed), options.num, reader)
            found.append(measured(real, samples))
            print(name, seed, *(f"{value:.4g}" for value in found[-1]), flush=True)
        rows.append([name, *cells(found)])
    rows.append(["held-out images", *cells([measured(real, real.held_out.evenly_spaced(options.num))])])
    print_table(["guidance", "Fréchet", "recall", *["read as asked, %"] * (len(rows[0]) - 3)], rows)


if __name__ == "__main__":
    main()
