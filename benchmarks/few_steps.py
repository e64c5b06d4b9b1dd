"""Samples in one, two and four steps: a finished run of train_diffusion.py, tuned, beside itself with many steps.

    python benchmarks/few_steps.py RUN OUT --features FOLDER                    FOLDER is what benchmarks/lite.py writes
    python benchmarks/few_steps.py RUN OUT --features FOLDER --seeds 0 --guidance 1.5 --set optim.lr=5e-4

Each seed is a run of configs/diffusion/few_steps.yaml --from RUN, with RUN's batches and so many steps that it takes
the --share of RUN's own training, where a backward pass counts as two forward passes: a step of training has three,
and one of tuning four along paths of data, five along those of the denoiser, and six with guidance baked in. Runs in
OUT that are finished are not trained again.

Samples of the training images' classes are compared with training images: the Fréchet distance in the space of
features. `Heun` is RUN itself, without guidance and with some; the best of these is what the tuned rows are divided by.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from runs import print_table, ran
from torch import Tensor

from ldm.config import reader
from ldm.data.datasets import Subset, open_dataset
from ldm.evaluation.feature_networks import FeatureExtractor, open_extractor
from ldm.evaluation.metrics import frechet_distance
from ldm.pipeline import LatentDiffusion
from ldm.script_configs import TrainDiffusionConfig
from ldm.training.devices import choose_device

FEW_STEPS = Path(__file__).parent.parent / "configs" / "diffusion" / "few_steps.yaml"
UNTUNED = [("heun", 18), ("heun", 9), ("dpm++2m", 4), ("dpm++2m", 2), ("heun", 1)]
TUNED = [1, 2, 4, 18]  # steps


@dataclass(frozen=True)
class Protocol:
    """What samples are compared with, and how many there are."""

    extractor: FeatureExtractor
    real: Tensor  # features of training images
    labels: Tensor | None  # of the samples
    count: int
    device: torch.device

    @classmethod
    def of(cls, training: Subset, features: str, count: int, device: torch.device) -> "Protocol":
        """The features of at most 5,000 training images, and labels as frequent as theirs."""
        extractor = open_extractor("features", features, training.shape[0], device)
        assert extractor is not None
        real = [extractor.features(part.images().to(device)).cpu() for part in training.evenly_spaced(5000).chunks(100)]
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0)).repeat(count)[:count]
        labels = training.labels[order] if training.dataset.classes else None
        return cls(extractor, torch.cat(real), labels, count, device)

    def distance(self, run: Path, seed: int, **settings: object) -> tuple[float, float]:
        """The Fréchet distance of samples of a run, and how many of them were drawn in a second."""
        model = LatentDiffusion.load(run, self.device)
        began = time.monotonic()
        images = model.sample(self.count, self.labels, seed=seed, batch_size=250, **settings)  # type: ignore[arg-type]
        rate = self.count / (time.monotonic() - began)
        drawn = [self.extractor.features(part.to(self.device)).cpu() for part in images.split(100)]
        return frechet_distance(self.real, torch.cat(drawn)), rate


@dataclass(frozen=True)
class Row:
    """One way to draw samples, with the distance of each seed."""

    name: str
    guidance: float
    steps: int
    found: list[tuple[float, float]]

    @property
    def distance(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(distance for distance, _ in self.found)

    def cells(self, best: float | None, many: float | None) -> list[str]:
        """The row of the table; `many` is the distance of the same tuned models with 18 steps."""
        each, rates = zip(*self.found, strict=True)
        spread = f"{min(each):.1f} to {max(each):.1f}"
        ratios = ["" if other is None else f"{self.distance / other:.2f}" for other in (best, many)]
        head = [self.name, f"{self.guidance:g}", str(self.steps), f"{self.distance:.1f}", spread]
        return [*head, *ratios, f"{statistics.mean(rates):.0f}"]


def untuned(run: Path, protocol: Protocol, guidances: list[float], seeds: list[int]) -> Iterator[Row]:
    """The run itself: without guidance with ever fewer steps, and guided with 18."""
    for sampler, steps in UNTUNED:
        found = [protocol.distance(run, seed, steps=steps, sampler=sampler, guidance=1.0) for seed in seeds]
        yield Row(f"untuned, {sampler}", 1.0, steps, found)
    for guidance in guidances if protocol.labels is not None else []:
        found = [protocol.distance(run, seed, steps=18, sampler="heun", guidance=guidance) for seed in seeds]
        yield Row("untuned, heun", guidance, 18, found)


def tuned(options: argparse.Namespace, config: TrainDiffusionConfig, protocol: Protocol) -> Iterator[Row]:
    """Tuning, and the samples of what it made."""
    for guidance in options.guidance:
        runs = [tune(options, config, guidance, seed) for seed in options.seeds]
        for steps in TUNED:
            found = [protocol.distance(run, seed, steps=steps) for run, seed in zip(runs, options.seeds, strict=True)]
            yield Row("tuned", guidance, steps, found)
        for second in options.second_sigma:
            more = {"steps": 2, "sampler_options": {"second_sigma": second}}
            found = [protocol.distance(run, seed, **more) for run, seed in zip(runs, options.seeds, strict=True)]
            yield Row(f"tuned, second σ {second:g}", guidance, 2, found)


def tune(options: argparse.Namespace, config: TrainDiffusionConfig, guidance: float, seed: int) -> Path:
    """A run of train_diffusion.py from the given one, unless it is there already."""
    out = options.out / f"guidance-{guidance:g}-seed-{seed}"
    chosen = dict(each.split("=", 1) for each in options.set)
    objective = reader.load(TrainDiffusionConfig, FEW_STEPS, chosen).objective
    assert objective.kind == "consistency"
    passes = 6 if guidance != 1 else 5 if objective.paths == "denoiser" else 4
    steps = max(round(options.share * config.run.steps * 3 / passes), 1)
    settings = {
        "run.steps": steps,
        "run.batch-size": config.run.batch_size,
        "run.seed": seed,
        "objective.guidance": guidance,
        **chosen,
    }
    flags = " ".join(f"--{name} '{value}'" for name, value in settings.items())
    place = f"--from '{options.run}' --out '{out}' --cache '{options.out / 'latents'}'"
    seconds = ran(f"train_diffusion.py {FEW_STEPS} {place} {flags}")
    print(f"{out}: {steps} steps, {seconds:.0f} CPU seconds", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=lambda text: Path(text).resolve(), help="a finished run of train_diffusion.py")
    add("out", type=lambda text: Path(text).resolve(), help="a folder for the tuned runs")
    add("--features", required=True, help="a folder that benchmarks/lite.py has written")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--share", type=float, default=0.5, help="of RUN's training that tuning may take (%(default)s)")
    add("--guidance", type=float, nargs="+", default=[1.0], help="baked in, each of its own runs (%(default)s)")
    add("--untuned-guidance", type=float, nargs="*", default=[1.5, 2.0], help="of RUN's samples (%(default)s)")
    add("--tuned-only", action="store_true", help="leave out the rows of RUN itself")
    add("--second-sigma", type=float, nargs="*", default=[], help="other levels of the second step, to compare")
    add("--samples", type=int, default=2000, help="of each row and seed (%(default)s)")
    add("--device", help="of the samples; training takes a GPU if there is one")
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the tuning")
    options = parser.parse_args()
    config = reader.load(TrainDiffusionConfig, options.run / "config.yaml", {})
    assert config.data is not None
    training, _ = open_dataset(config.data).split()
    protocol = Protocol.of(training, options.features, options.samples, choose_device(options.device))
    rows = [*tuned(options, config, protocol)]
    if not options.tuned_only:
        rows += untuned(options.run, protocol, options.untuned_guidance, options.seeds)
    best = min((row.distance for row in rows if row.name.startswith("untuned")), default=None)
    many = {row.guidance: row.distance for row in rows if row.name == "tuned" and row.steps == 18}
    heads = ["model", "guidance", "steps", "Fréchet", "of the seeds", "/ best untuned", "/ tuned, 18", "images/s"]
    print_table(
        heads, (row.cells(best, many.get(row.guidance) if row.name.startswith("tuned") else None) for row in rows)
    )


if __name__ == "__main__":
    main()
