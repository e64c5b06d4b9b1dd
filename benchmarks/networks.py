"""The denoiser networks at about equal parameters: what a training step costs, and what equal seconds teach.

    python benchmarks/networks.py [--batch-size 32]                      a step of each, in turns, as ratios
    python benchmarks/networks.py --autoencoder runs/mine/vae --out runs/networks [--seconds 300] [--seeds 0 1 2]
                                  [--features FOLDER]                     samples too: benchmarks/lite.py

A step is the product's own, on latents of 4 x 16 x 16 in memory: on one CPU core or, if there is a GPU, there, replayed
as a graph. With an autoencoder each network is trained for equal seconds on its images by benchmarks/stage_two.py's
loop (CPU seconds; on a GPU those that pass), its learning rate over as many steps as fit. Of the seeds mean and range
are shown: the held-out loss with EDM's weight, and with --features Fréchet and kernel distance of 400 samples to
training images. --only "DiT, patch 2" EDM2 takes some of the networks.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ldm.batch import ConditionSchema, LatentBatch
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.objective import DenoisingObjective
from ldm.evaluation.panels import HeldOutLatents
from ldm.randomness import seed_weights
from ldm.training.kernels import training_kernels
from ldm.training.run import Run
from ldm.training.step import TrainingStep

# isort: off
from runs import print_table
from stage_two import CONFIG, DEVICE, SampleMetrics, config_with, opened, trained

LATENT, BATCH, ROUNDS = (4, 16, 16), 32, 7
# Of about 4.3 M parameters each.
NETWORKS: dict[str, dict[str, Any]] = {
    "U-Net": {"denoiser.network": {"kind": "unet", "preset": "S"}},
    "U-Net, QK norm": {"denoiser.network": {"kind": "unet", "preset": "S", "qk_norm": True}},
    "DiT, patch 2": {"denoiser.network": {"kind": "dit", "width": 192, "depth": 6, "heads": 3}},
    "EDM2": {"denoiser.network": {"kind": "edm2", "preset": "S"}, "optim.lr": 1e-2},
    "UNet2DModel": {"denoiser.network": {"kind": "unet2d", "preset": "S"}},
}


class Step:
    """A training step of one network on latents in memory."""

    def __init__(self, changed: dict[str, Any], batch: int):
        how = {"run.batch_size": batch, "denoiser.skip": {"kind": "scalar"}}
        config = config_with({**changed, **how, "run.graph": "off" if DEVICE.type == "cpu" else "on"}, CONFIG)
        self.run = Run(config, Path(tempfile.mkdtemp()), dry=True)
        seed_weights(0)
        self.denoiser = create_denoiser(
            DiffusionModelConfig(LATENT, ConditionSchema(()), config.denoiser, config.sampling)
        )
        self.objective = self.run.prepare(DenoisingObjective(self.denoiser), trains=self.denoiser)
        self.run.resume("")
        clean, noise = torch.randn(2, batch, *LATENT, device=DEVICE)
        sigma = torch.rand(batch, device=DEVICE) + 0.1
        self.batch = LatentBatch(clean, noise, sigma, ConditionSchema(()).request(None).repeated(torch.arange(batch)))
        self.do = self.run.graphed(self.learn)

    def seconds(self, steps: int) -> float:
        """Of a step, as a mean of several."""
        began = self.clock()
        with training_kernels(self.run.run_config, DEVICE):
            for _ in range(steps):
                self.run.begin_step(0)
                self.do(self.run.step(0, 0, self.batch))
        return (self.clock() - began) / steps

    def learn(self, step: TrainingStep) -> None:
        """What is done with a step."""
        losses = self.objective(step.batch, step)
        step.update(losses.total)
        step.log(losses.terms)

    def clock(self) -> float:
        """CPU seconds or, on a GPU, those that pass."""
        if DEVICE.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    @property
    def parameters(self) -> int:
        """Their number."""
        return sum(parameter.numel() for parameter in self.denoiser.parameters())


def chosen_networks(names: list[str] | None) -> dict[str, dict[str, Any]]:
    """All of them, or those of these names."""
    return {name: changed for name, changed in NETWORKS.items() if names is None or name in names}


def costs(options: argparse.Namespace) -> None:
    """Print milliseconds and ratios of a step of each network; the rounds are interleaved."""
    batch, chosen = options.batch_size, chosen_networks(options.only)
    steps = {name: Step(changed, batch) for name, changed in chosen.items()}
    each = 1 if DEVICE.type == "cpu" else 20
    for step in steps.values():
        step.seconds(2 * each)
    rounds = [{name: step.seconds(each) for name, step in steps.items()} for _ in range(ROUNDS)]
    first = next(iter(steps))
    where = f"{torch.cuda.get_device_name()}, graphs" if DEVICE.type == "cuda" else "one CPU core"
    print(f"{where}, latents {' x '.join(map(str, LATENT))}, batch {batch}, medians of {ROUNDS} interleaved rounds")
    rows = []
    for name, step in steps.items():
        took = statistics.median(found[name] for found in rounds)
        ratio = statistics.median(found[name] / found[first] for found in rounds)
        rows.append([name, f"{step.parameters:,}", f"{took * 1e3:.1f}", f"{ratio:.2f}"])
    print_table(["network", "parameters", "ms per step", "ratio"], rows)


def shown(values: Iterable[float], digits: int) -> str:
    """Mean and range over the seeds."""
    found = list(values)
    mean = f"{statistics.mean(found):.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ({min(found):.{digits}f}–{max(found):.{digits}f})"


def equal_seconds(options: argparse.Namespace) -> None:
    """Print what each network has learned from the latents of an autoencoder."""
    data = opened(options.autoencoder, CONFIG, options.out)
    metrics = SampleMetrics(options.features, data.training) if options.features else None
    rows = []
    for name, changed in chosen_networks(options.only).items():
        results = []
        for seed in options.seeds:
            config = config_with({**changed, "run.seed": seed, "run.batch_size": options.batch_size}, CONFIG)
            training, steps, took = trained(config, data, options.out, options.seconds)
            with torch.no_grad():
                losses = data.losses(training.run.ema_model(), training.run.device)
                samples = [] if metrics is None else metrics.of(training, data)
            results.append((steps, took, losses, samples))
            shown_now = (f"{value:.4f}" for value in [*losses, *samples])
            print(name, seed, steps, f"{took:.0f} s", *shown_now, flush=True)
        counts, seconds, losses, samples = zip(*results, strict=True)
        cells = [name, f"{statistics.mean(seconds):.0f}", f"{statistics.mean(counts):,.0f}"]
        cells += [shown(level, 3) for level in zip(*losses, strict=True)]
        cells.append(shown((statistics.mean(each) for each in losses), 3))
        distances = zip(zip(*samples, strict=True), (1, 3), strict=False)
        rows.append(cells + [shown(each, digits) for each, digits in distances])
    levels = [f"σ {sigma:g}" for sigma in HeldOutLatents.sigmas]
    print_table(["network", "s", "steps", *levels, "mean", *(["Fréchet", "kernel"] if metrics else [])], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", help="a run of train_vae.py; left out: what a step costs")
    parser.add_argument("--out", type=Path, default=Path("runs/networks"), help="where its latents are kept")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--features", help="a folder that benchmarks/lite.py has written")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, help="some of the networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    costs(options) if options.autoencoder is None else equal_seconds(options)


if __name__ == "__main__":
    main()
