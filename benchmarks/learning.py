"""Benchmark of stage one: held-out PSNR of autoencoders per CPU second of training, each budget a run of its own.

    python benchmarks/learning.py runs/learning
    python benchmarks/learning.py runs/learning --rows residual kl --budgets 60 --seeds 0
    python benchmarks/learning.py runs/learning --data mnist5k

Rows: `residual` is configs/vae/folder.yaml without the noise that its decoder expects in samples, and of digits
configs/vae/mnist5k.yaml; `sample noise` is folder.yaml as it is, and `kl` is configs/vae/kl-f4.yaml, trained by this
project's Run and objective; `encoder trained` is `residual` with an encoder that has a block and learns as the decoder
does; `kl before` is what folder.yaml was until `kl` was tuned, started as diffusers starts an AutoencoderKL;
`diffusers` is that network in a plain tuned loop: fused AdamW, half a cosine, bf16 where the hardware has it, averaged
weights; `kl, noise` is `kl` with the noise of `residual`; `patch PCA` is the floor. Everything on one thread.

A run is as long as its budget: the seconds of a step are measured first, and the schedule ends with the last step. What
a network fits to the data before its first step counts, as everything does but decoding the images and the imports. The
seconds that it took are in the table. PSNR is decoded from the mean of the posterior, from a sample, and from a sample
with noise of at least .05 of each channel's standard deviation: a code without noise is worth nothing to a denoiser, so
that is the figure to compare. A row that is in OUT/learning.jsonl already is not run again.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from runs import SHARED, from_root, print_table
from torch.nn import functional as F

from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.config import reader
from ldm.data.batches import BatchSampler, ImageBatches
from ldm.data.datasets import Dataset, Subset, open_dataset
from ldm.evaluation.held_out import for_pca
from ldm.evaluation.metrics import patch_pca_psnr, psnr
from ldm.randomness import generator, seed_weights
from ldm.script_configs import TrainVAEConfig
from ldm.shapes import rounded
from ldm.training.devices import cpu_has_bf16
from ldm.training.run import Run
from ldm.training.step import TrainingStep

Row = dict[str, Any]
EMOJI = SHARED / "noto-emoji-64"
NOISE = 0.05  # of a channel's standard deviation
MEASURED = 15  # steps
BEFORE: dict[str, Any] = {
    "autoencoder.network.widths": [16, 32, 64],
    "autoencoder.network.norm_groups": 16,
    "autoencoder.network.mid_attention": "true",
    "optim.kind": "adamw",
    "optim.lr": 2e-3,
    "optim.schedule": "cosine",
    "run.batch_size": 32,
}
CLEAN: dict[str, Any] = {"objective.latent_corruption": "null"}
ENCODER_TRAINED = {"blocks": 1, "decoder_blocks": 2, "encoder_lr_factor": 1}
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "residual": ("folder", CLEAN),
    "sample noise": ("folder", {}),
    "encoder trained": (
        "folder",
        CLEAN | {f"autoencoder.network.{name}": value for name, value in ENCODER_TRAINED.items()},
    ),
    "kl": ("kl-f4", {}),
    "kl before": ("kl-f4", BEFORE),
    "diffusers": ("kl-f4", BEFORE),
    "kl, noise": ("kl-f4", {"autoencoder.bottleneck.noise": NOISE}),
}
PCA = "patch PCA"
COLUMNS = {"mean": "{:.2f}", "sample": "{:.2f}", "with noise": "{:.2f}", "noise": "{:.3f}", "steps": "{:.0f}"}


def config_of(row: str, data: str, seed: int, steps: int) -> TrainVAEConfig:
    """The config of a run of so many steps; warm-up takes a tenth of them at most."""
    name, flags = TRAINED[row]
    images: dict[str, Any] = {"data.path": data}
    if data == "mnist5k":
        images = {"data.kind": data, "data.size": 32, "data.channels": 1, "data.flip": "false"}
        name = data if name == "folder" else name
    file = Path("configs/vae") / f"{name}.yaml"
    texts = {key: str(value) for key, value in (flags | images).items()}
    warmup = min(reader.load(TrainVAEConfig, file, texts).optim.warmup, max(steps // 10, 1))
    run = {"run.steps": steps, "run.seed": seed, "optim.warmup": warmup, "run.checkpoint_every": steps}
    return reader.load(TrainVAEConfig, file, texts | {key: str(value) for key, value in run.items()})


def as_diffusers_starts_it(autoencoder: Autoencoder) -> AutoencoderKL:
    """A new AutoencoderKL of the same sizes."""
    kl: AutoencoderKL = type(autoencoder.network.to_diffusers()).from_config(autoencoder.network.kl_config)
    return kl


class Ours:
    """The loop of train_vae.py, without panels and export. `fresh` starts the network as diffusers does."""

    def __init__(self, config: TrainVAEConfig, dataset: Dataset, training: Subset, *, fresh: bool, dry: bool):
        self.config = config
        self.run = run = Run(config, Path(tempfile.mkdtemp()) / "run", dry=dry)
        seed_weights(config.run.seed)
        self.autoencoder = create_trainable(config.autoencoder, image=config.data.shape)
        if fresh:
            self.autoencoder.network.load_state_dict(as_diffusers_starts_it(self.autoencoder).state_dict())
        began = time.process_time()
        if not fresh:
            start = self.autoencoder.initialize
            run.initialize(self.autoencoder, lambda: start(lambda count: training.evenly_spaced(count).images()))
        self.fit_seconds = time.process_time() - began
        objective = ReconstructionObjective(self.autoencoder, config.objective, steps=config.run.steps)
        self.objective = run.prepare(objective, trains=self.autoencoder, schedule=objective.schedule)
        run.resume(dataset.fingerprint)
        self.batches = ImageBatches(dataset, run.batch_sampler(training))

    def steps(self) -> Iterator[None]:
        for _ in self.run.steps(self.batches, self.learn):
            yield

    def learn(self, step: TrainingStep) -> None:
        losses = self.objective(step.batch, step)
        step.update(losses.total)
        self.autoencoder.bottleneck.update_usage(losses.outputs["code"], step.now, is_last=step.is_last)
        step.log(losses.terms)

    def averaged(self) -> Autoencoder:
        model: Autoencoder = self.run.ema_model()
        return model


class Theirs:
    """diffusers' AutoencoderKL in a plain loop."""

    fit_seconds = 0.0

    def __init__(self, config: TrainVAEConfig, dataset: Dataset, training: Subset):
        seed_weights(config.run.seed)
        self.config = config
        self.kl = as_diffusers_starts_it(create_trainable(config.autoencoder, image=config.data.shape))
        sampler = BatchSampler(tuple(training.indices), config.run.seed, config.run.batch_size)
        self.batches = ImageBatches(dataset, sampler)
        self.optimizer = torch.optim.AdamW(
            self.kl.parameters(), lr=config.optim.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        self.ema = EMAModel(self.kl.parameters(), use_ema_warmup=True, foreach=True)

    def steps(self) -> Iterator[None]:
        config, kl = self.config, self.kl
        schedule = get_cosine_schedule_with_warmup(self.optimizer, config.optim.warmup, config.run.steps)
        half = torch.autocast("cpu", torch.bfloat16) if cpu_has_bf16() else nullcontext()
        for number in range(config.run.steps):
            images = self.batches.batch(number).images
            with half:
                posterior = kl.encode(images).latent_dist
                reconstruction = kl.decode(posterior.sample()).sample
            loss = F.l1_loss(reconstruction.float(), images)
            (loss + config.objective.kl * posterior.kl().mean() / images[0].numel()).backward()
            torch.nn.utils.clip_grad_norm_(kl.parameters(), 1.0)
            self.optimizer.step()
            schedule.step()
            self.optimizer.zero_grad()
            self.ema.step(kl.parameters())
            yield

    def averaged(self) -> Autoencoder:
        self.ema.copy_to(self.kl.parameters())
        return Autoencoder.from_diffusers(self.kl).eval()


def open_row(row: str, config: TrainVAEConfig, dataset: Dataset, training: Subset, *, dry: bool) -> Ours | Theirs:
    if row == "diffusers":
        return Theirs(config, dataset, training)
    return Ours(config, dataset, training, fresh=row == "kl before", dry=dry)


def seconds_per_step(loop: Ours | Theirs) -> float:
    """CPU seconds of a step: the median, for the first ones take longer."""
    times = [time.process_time()]
    for _, _ in zip(range(MEASURED), loop.steps(), strict=False):
        times.append(time.process_time())
    return statistics.median(later - earlier for earlier, later in pairwise(times))


def trained(row: str, data: str, seed: int, budget: float, dataset: Dataset) -> tuple[Ours | Theirs, Row]:
    """A run that takes about `budget` CPU seconds, with its steps and seconds."""
    training, _ = dataset.split()
    first = open_row(row, config_of(row, data, seed, 1000), dataset, training, dry=True)
    per_step = seconds_per_step(first)
    steps = max(int((budget - first.fit_seconds) / per_step), 1)
    loop = open_row(row, config_of(row, data, seed, steps), dataset, training, dry=False)
    began = time.process_time()
    for _ in loop.steps():
        pass
    seconds = time.process_time() - began + loop.fit_seconds
    return loop, {"steps": steps, "seconds": seconds}


def measured_row(row: str, data: str, seed: int, budget: float, dataset: Dataset) -> Row:
    """A run of its own, measured."""
    loop, figures = trained(row, data, seed, budget, dataset)
    return figures | measured(loop.averaged(), dataset.split()[1])


@torch.no_grad()
def measured(autoencoder: Autoencoder, held_out: Subset) -> Row:
    """Held-out PSNR in dB from the mean, from a sample, and with noise of at least NOISE; it is the same each time."""
    images = held_out.images()
    posteriors = [autoencoder.encode(part) for part in images.split(64)]
    mean, variance = (torch.cat([getattr(each, name) for each in posteriors]) for name in ("mean", "variance"))
    spread, own = mean.std((0, 2, 3), keepdim=True), variance.sqrt()
    noise = torch.randn(mean.shape, generator=generator(0, "benchmark"))

    def decoded(latents: torch.Tensor) -> float:
        reconstruction = torch.cat([autoencoder.decode(part) for part in latents.split(64)])
        return float(psnr(rounded(images), rounded(reconstruction)).mean())

    return {
        "mean": decoded(mean),
        "sample": decoded(mean + own * noise),
        "with noise": decoded(mean + own.maximum(NOISE * spread) * noise),
        "noise": float((own / spread).mean()),
    }


def pca(dataset: Dataset) -> Row:
    """PCA per 4 x 4 patch with 4 numbers."""
    training, held_out = (for_pca(subset).images() for subset in dataset.split())
    began = time.process_time()
    mean = patch_pca_psnr(training, held_out, 4, 4)
    return {"mean": mean, "steps": 0, "seconds": time.process_time() - began}


class Kept:
    """Rows in a file, one a line, found again by what they are rows of."""

    def __init__(self, file: Path):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def has(self, **key: Any) -> bool:
        """Whether there is a row of this."""
        return any(row["key"] == key for row in self.rows)

    def row(self, make: Callable[[], Row], **key: Any) -> Row:
        for row in self.rows:
            if row["key"] == key:
                return row
        row = {"key": key, **make()}
        self.rows.append(row)
        with self.file.open("a") as file:
            print(json.dumps(row), file=file, flush=True)
        print(json.dumps(row), flush=True)
        return row


def over_seeds(rows: list[Row], name: str, form: str) -> str:
    """The mean over the seeds, and how far from it the farthest is."""
    values = [row[name] for row in rows if name in row]
    if not values:
        return ""
    mean = statistics.mean(values)
    apart = max(abs(value - mean) for value in values)
    return form.format(mean) + (f" ± {form.format(apart)}" if apart else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", nargs="+", default=[PCA, *TRAINED], choices=[PCA, *TRAINED])
    parser.add_argument("--budgets", nargs="+", type=int, default=[30, 60, 120, 420], help="CPU seconds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--data", default=str(EMOJI), help="a folder of images, or mnist5k; else the emoji of ../shared"
    )
    options = parser.parse_args()
    data = options.data if options.data == "mnist5k" else str(Path(options.data).absolute())
    if data != "mnist5k" and not Path(data).exists():
        print(f"nothing measured: {data} is not there")
        return
    out = from_root(options.out)
    torch.set_num_threads(1)
    dataset = open_dataset(config_of("kl", data, 0, 1).data)
    kept, table = Kept(out / "learning.jsonl"), []
    for row in options.rows:
        for budget in [0] if row == PCA else options.budgets:
            if row == PCA:
                found = [kept.row(lambda: pca(dataset), row=row, data=data)]
            else:
                found = [
                    kept.row(
                        functools.partial(measured_row, row, data, seed, budget, dataset),
                        **{"row": row, "data": data, "budget": budget, "seed": seed},
                    )
                    for seed in options.seeds
                ]
            cells = [over_seeds(found, name, form) for name, form in COLUMNS.items()]
            table.append([row, str(budget or ""), over_seeds(found, "seconds", "{:.0f}"), *cells])
    print_table(["autoencoder", "budget", "CPU s", *COLUMNS], table)


if __name__ == "__main__":
    main()
