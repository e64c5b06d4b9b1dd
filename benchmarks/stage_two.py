"""Denoisers of the same latents after equal CPU seconds: held-out loss by noise level, beside that of a Gaussian.

    python benchmarks/stage_two.py runs/mine/vae runs/stage_two [--seconds 60 180] [--only earlier AdamW]
    python benchmarks/stage_two.py runs/mine/vae runs/stage_two --features FOLDER      samples too: benchmarks/lite.py

The first argument is a run of train_vae.py, whose training and held-out images are taken. Every row is trained by the
product's own loop on one thread, its learning rate over as many steps as fit into the seconds, which are those of the
steps alone. Losses have EDM's weight, so that a network of zeros without a Gaussian has 1; the second table divides
them by those of the Gaussian of all principal components, cross-validated, which is a linear denoiser and no network.
With --features 400 samples without guidance, of the held-out images' classes, are compared with the training images.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.autoencoder.model import Autoencoder
from ldm.config import reader
from ldm.config.yaml_file import read_yaml
from ldm.data.datasets import Dataset, Subset, open_dataset
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.latent_batches import LatentBatches
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.objective import DenoisingObjective, losses_by_sigma
from ldm.evaluation.feature_networks import open_extractor
from ldm.evaluation.metrics import frechet_distance, kernel_distance
from ldm.evaluation.panels import HeldOutLatents
from ldm.latents import (
    LatentCache,
    gaussian_of,
    initialize_skip,
    open_autoencoder,
    open_latents,
    possible_skip,
)
from ldm.pipeline import LatentDiffusion
from ldm.randomness import seed_weights
from ldm.script_configs import TrainDiffusionConfig, vae_config_of
from ldm.training.kernels import training_kernels
from ldm.training.run import Run
from ldm.training.step import TrainingStep

# isort: off
from runs import ROOT, print_table

CONFIG = ROOT / "configs" / "diffusion" / "folder.yaml"
SCALAR = {"denoiser.skip": {"kind": "scalar"}}
EARLIER = {  # what configs/diffusion/folder.yaml was before there was a Gaussian skip
    **SCALAR,
    "denoiser.network": {"kind": "unet", "widths": [64, 128], "blocks": 1, "attention": [1], "dropout": 0.1},
    "objective.noise_distribution": {"kind": "log-normal", "mean": -0.4, "std": 1.2},
    "optim": {"kind": "adamw", "lr": 1e-3, "schedule": "cosine"},
    "run.batch_size": 64,
}
ROWS: dict[str, dict[str, Any]] = {
    "the config": {},
    "the config, less noise": {"objective.noise_distribution": {"kind": "log-normal", "mean": -0.6, "std": 1.5}},
    "the config, more noise": {"objective.noise_distribution": {"kind": "log-normal", "mean": 0.3, "std": 1.5}},
    "the config, dropout": {"denoiser.network.dropout": 0.1},
    "the config, scalar skip": SCALAR,
    "the config, AdamW": {"optim": {"kind": "adamw", "lr": 1e-3, "schedule": "linear"}},
    "earlier: scalar skip, AdamW": EARLIER,
}
WARMUP = 0.1  # share of the steps
CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SAMPLES, SAMPLING_STEPS = 400, 18
SAMPLING_BATCH = 64 if DEVICE.type == "cpu" else SAMPLES  # where a batch of any size takes the same time


@dataclass(frozen=True)
class Data:
    """What every row has in common."""

    autoencoder: Autoencoder
    dataset: Dataset
    training: Subset
    held_out: Subset
    latents: LatentCache

    def losses(self, denoiser: Denoiser, device: torch.device = CPU) -> list[float]:
        """The held-out loss at each noise level, of a denoiser on a device."""
        clean, condition = self.latents.posterior(self.held_out.indices).mode(), self.held_out.condition
        sigmas = list(HeldOutLatents.sigmas)
        each = losses_by_sigma(denoiser.eval(), clean, condition, sigmas, seed=0, device=device)
        found = {sigma: losses.mean().item() for sigma, losses in each.items()}
        return list(found.values())


def config_with(changed: dict[str, Any], file: Path) -> TrainDiffusionConfig:
    """The config of a file in which some sections and settings are others."""
    given = read_yaml(file)
    for path, value in changed.items():
        *sections, name = path.split(".")
        inner = given
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    config: TrainDiffusionConfig = reader.from_dict(TrainDiffusionConfig, given)
    return config


class Zero(nn.Module):
    """A network of zeros: what is left of a denoiser is its skip."""

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        return torch.zeros_like(scaled)


class Training:
    """The loop of train_diffusion.py for so many steps; on a GPU as a graph."""

    def __init__(self, config: TrainDiffusionConfig, data: Data, out: Path, steps: int):
        optim = replace(config.optim, warmup=max(round(WARMUP * steps), 1))
        how = {} if DEVICE.type == "cpu" else {"graph": "on"}
        config = replace(config, optim=optim, run=replace(config.run, steps=steps, **how))
        self.run = Run(config, out / "run", dry=True)
        seed_weights(config.run.seed)
        denoiser = possible_skip(config.denoiser, data.latents, data.training, self.run.print)
        self.model = DiffusionModelConfig(data.latents.shape, data.dataset.schema, denoiser, config.sampling)
        self.denoiser = create_denoiser(self.model)
        initialize_skip(self.run, self.denoiser, data.latents, data.training)
        self.objective = self.run.prepare(DenoisingObjective(self.denoiser), trains=self.denoiser)
        self.run.resume("")
        sampler = self.run.batch_sampler(data.training)
        device = self.run.device
        self.batches = LatentBatches(data.latents, data.dataset, config.objective, sampler, device, config.run)
        self.do = self.run.graphed(self.learn)

    def seconds(self, steps: int) -> float:
        """Of the first so many steps: of CPU or, on a GPU, those that pass."""
        began = self.clock()
        with training_kernels(self.run.run_config, self.run.device):
            for number in range(steps):
                self.run.begin_step(number)
                self.do(self.run.step(number, 0, self.batches.batch(number, self.run.device)))
        return self.clock() - began

    def learn(self, step: TrainingStep) -> None:
        """What is done with a step."""
        losses = self.objective(step.batch, step)
        step.update(losses.total)
        step.log(losses.terms)

    def clock(self) -> float:
        """The seconds until now."""
        if self.run.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def trained(config: TrainDiffusionConfig, data: Data, out: Path, seconds: float) -> tuple[Training, int, float]:
    """A training of about so many seconds, with its steps and the seconds they took."""
    warm, timed = (20, 100) if torch.cuda.is_available() else (2, 4)  # the first are slower
    probe = Training(config, data, out, steps=warm + timed)
    probe.seconds(warm)
    steps = max(round(seconds / (probe.seconds(timed) / timed)), 2)
    training = Training(config, data, out, steps)
    return training, steps, training.seconds(steps)


class SampleMetrics:
    """Fréchet and kernel distance of samples, of the held-out images' classes, to features of training images."""

    def __init__(self, folder: str, training: Subset):
        self.extractor = open_extractor("features", folder, training.shape[0], DEVICE)
        chosen = training.evenly_spaced(2 * SAMPLES)
        self.real = torch.cat([self.features(part.images()) for part in chosen.chunks(50)])

    def features(self, images: Tensor) -> Tensor:
        """Of images on the CPU, there too."""
        return self.extractor.features(images.to(DEVICE)).float().cpu()

    def of(self, training: Training, data: Data) -> list[float]:
        """The two distances of what has been trained on these latents."""
        labels = None
        if data.dataset.classes:
            labels = data.held_out.labels.repeat(-(-SAMPLES // len(data.held_out)))[:SAMPLES]
        model = LatentDiffusion(data.autoencoder, training.run.ema_model(), training.model)
        images = model.sample(SAMPLES, labels, steps=SAMPLING_STEPS, guidance=1.0, batch_size=SAMPLING_BATCH)
        drawn = torch.cat([self.features(part) for part in images.split(50)])
        return [frechet_distance(self.real, drawn), kernel_distance(self.real, drawn)]


def rows(
    data: Data, options: argparse.Namespace, metrics: SampleMetrics | None
) -> Iterator[tuple[list[str], list[float]]]:
    """Each row's first cells and last cells, and its losses."""
    for seconds in options.seconds:
        for name, changed in ROWS.items():
            if any(word in name for word in options.only or [name]):
                config = config_with(changed, options.config)
                training, steps, took = trained(config, data, options.out, seconds)
                with torch.no_grad():
                    losses = data.losses(training.run.ema_model(), training.run.device)
                    samples = () if metrics is None else metrics.of(training, data)
                cells = [f"{distance:.{digits}f}" for distance, digits in zip(samples, (1, 3), strict=False)]
                yield [name, f"{took:.0f}", str(steps), *cells], losses
                print(name, f"{took:.0f} s", steps, *(f"{loss:.4f}" for loss in losses), *cells, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("autoencoder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0])
    parser.add_argument("--only", nargs="+", help="rows whose names have one of these words")
    parser.add_argument("--features", help="a folder that benchmarks/lite.py has written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = opened(options.autoencoder, options.config, options.out)
    metrics = SampleMetrics(options.features, data.training) if options.features else None
    reference = data.losses(Denoiser(Zero(), gaussian=gaussian_of(data.latents, data.training)))
    table = [
        (["Gaussian, no network", "", "", *[""] * (2 if metrics else 0)], reference),
        *rows(data, options, metrics),
    ]
    levels = [f"σ {sigma:g}" for sigma in HeldOutLatents.sigmas]
    heads = ["denoiser", "CPU s", "steps", *(["Fréchet", "kernel"] if metrics else [])]
    for divisors in ([1.0] * len(levels), reference):
        cells = [[f"{loss / by:.3f}" for loss, by in zip(losses, divisors, strict=True)] for _, losses in table]
        means = [f"{sum(losses) / sum(divisors):.3f}" for _, losses in table]
        print_table(
            [*heads, *levels, "mean"],
            ([*first, *each, mean] for (first, _), each, mean in zip(table, cells, means, strict=True)),
        )


def opened(source: str, file: Path, out: Path) -> Data:
    """The images of a run of train_vae.py, and their latents, standardized, cached in `out`."""
    vae = vae_config_of(source)
    if vae is None:
        raise SystemExit(f"{source} is not a run of train_vae.py")
    run = Run(reader.load(TrainDiffusionConfig, file, {}), out / "run", dry=True)
    dataset = open_dataset(vae.data)
    autoencoder, standardized = open_autoencoder(source, vae.data, dataset.fingerprint)
    latents = open_latents(run, out / "latents", autoencoder.to(run.device), dataset)
    training, held_out = dataset.split()
    if not standardized:
        latents = latents.standardize(autoencoder, training.indices)
    return Data(autoencoder, dataset, training, held_out, latents)


if __name__ == "__main__":
    main()
