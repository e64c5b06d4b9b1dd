"""A step of the autoencoder with all losses against the step of diffusers' research autoencoder trainer.

    python benchmarks/stage_one.py                        two cores: 64 x 64, batch 8, AlexNet
    python benchmarks/stage_one.py --perceptual vgg       what both train with when nothing else is asked for
    python benchmarks/stage_one.py --size 256 --batch 16 --widths 128 256 512 512 --perceptual vgg --precision bf16

L1 + perceptual + KL + discriminator with adaptive weight, on the same autoencoder, perceptual network and
discriminator, on the GPU if there is one, else on one thread. The peer is huggingface/diffusers,
examples/research_projects/autoencoderkl, as it is meant: the perceptual distance has a gradient, the autoencoder runs
inside the forward that is distributed, the discriminator has no batch norm, takes no gradient in the autoencoder's step
and gives none in its own, and losses count per image value. The rest stays: AutoencoderKL, AdamW as it comes,
clip_grad_norm_, EMAModel, schedules, the adaptive weight by two gradients through a graph that is kept, every loss read
back at every step. It is shown three times: with both updates on every batch, as ours; with autoencoder and
discriminator taking turns over batches, as in the script (one update of each, on two batches, is compared with one step
of ours); and tuned by us, without what a better loop would not do.

First the losses and all gradients of the first step are compared. Then the steps take turns in one process, and the
ratios are of medians; peak memory is that of a process of its own, on CPUs the growth of its resident set after the
imports. AlexNet and VGG have random weights unless --weights names a file: speed does not depend on them.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import copy
import gc
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder.config import AutoencoderConfig, KLNetworkConfig, ReconstructionObjectiveConfig
from ldm.autoencoder.losses.config import DiscriminatorConfig, PerceptualConfig
from ldm.autoencoder.losses.discriminator import DiscriminatorObjective, create_discriminator
from ldm.autoencoder.model import create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import ImageBatch
from ldm.data.config import FolderConfig
from ldm.randomness import seed_weights
from ldm.script_configs import TrainVAEConfig
from ldm.training.config import RunConfig
from ldm.training.devices import MIXED
from ldm.training.run import Run
from ldm.training.step import TrainingStep

KL, PERCEPTUAL, ADVERSARIAL = 1e-6, 0.5, 0.5  # weights
Action = Callable[[], None]


class Ours:
    """The loop of train_vae.py, long after the discriminator has started."""

    def __init__(self, options: argparse.Namespace):
        config = config_of(options)
        self.run = run = Run(config, Path(tempfile.mkdtemp()), dry=True)
        seed_weights(config.run.seed)
        self.autoencoder = create_trainable(config.autoencoder, image=(3, options.size, options.size))
        discriminator = create_discriminator(config.objective.discriminator, image_channels=3, steps=config.run.steps)
        assert discriminator is not None
        self.discriminator = discriminator
        self.reconstruction = ReconstructionObjective(
            self.autoencoder, config.objective, discriminator, steps=config.run.steps
        )
        self.objective = run.prepare(
            self.reconstruction, trains=self.autoencoder, schedule=self.reconstruction.schedule
        )
        self.discriminator_objective = run.prepare(
            DiscriminatorObjective(discriminator),
            trains=discriminator,
            optim=discriminator.optim,
            name="discriminator",
            schedule=discriminator,
        )
        run.resume("")
        images = torch.rand(options.batch, 3, options.size, options.size) * 2 - 1
        self.batch = ImageBatch(images.to(run.device), torch.zeros(options.batch, dtype=torch.int64))

    def training_step(self) -> TrainingStep:
        """One in the middle of the run, always the same."""
        number = self.run.run_config.steps // 2
        self.run.begin_step(number)
        return self.run.step(number, 0, self.batch)

    def step(self) -> None:
        step = self.training_step()
        losses = self.objective(step.batch, step)
        step.update(losses.total)
        self.autoencoder.bottleneck.update_usage(losses.outputs["code"], step.number)
        of_discriminator = self.discriminator_objective(losses.outputs["images"], losses.outputs["reconstruction"])
        step.update(of_discriminator.total, of="discriminator")
        self.discriminator.update_logit_means(of_discriminator.outputs)
        step.log(losses.terms | of_discriminator.terms)
        self.run.metrics.rows.clear()
        self.run.metrics.names.clear()


class DistributedAutoencoder(nn.Module):
    """AutoencoderKL with encoding and decoding inside one forward."""

    def __init__(self, kl: nn.Module):
        super().__init__()
        self.kl = kl

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction and the KL of each image."""
        posterior = self.kl.encode(images).latent_dist
        return self.kl.decode(posterior.mean + posterior.std * noise).sample, posterior.kl()


class Theirs:
    """The loop of the research trainer, corrected; `tuned` by us, or `alternating` over batches as it is."""

    def __init__(self, ours: Ours, *, tuned: bool = False, alternating: bool = False):
        self.tuned, self.alternating, self.images = tuned, alternating, ours.batch.images
        mixed = MIXED[ours.run.run_config.precision]
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=mixed)
        kl = ours.autoencoder.network.to_diffusers().train()
        self.output_layer = kl.decoder.conv_out.weight
        self.perceptual = copy.deepcopy(ours.reconstruction.perceptual)
        prepare = self.accelerator.prepare
        self.autoencoder, self.discriminator = prepare(DistributedAutoencoder(kl), copy.deepcopy(ours.discriminator))
        self.optimizer, self.schedule = self.optimizer_of(self.autoencoder)
        self.discriminator_optimizer, self.discriminator_schedule = self.optimizer_of(self.discriminator)
        self.ema = EMAModel(self.autoencoder.parameters(), foreach=tuned)
        with torch.no_grad():
            self.latent_shape = kl.encode(self.images).latent_dist.mean.shape

    def optimizer_of(self, module: nn.Module) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(module.parameters(), lr=4.5e-6, **({"fused": True} if self.tuned else {}))
        schedule = get_scheduler("constant", optimizer, num_warmup_steps=500, num_training_steps=10000)
        return self.accelerator.prepare(optimizer, schedule)

    def reconstruct(self) -> tuple[Tensor, Tensor]:
        return self.autoencoder(self.images, torch.randn(self.latent_shape, device=self.images.device))

    def autoencoder_loss(self, reconstruction: Tensor, kl: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)
        with self.accelerator.autocast():
            rec = F.l1_loss(reconstruction.float(), self.images, reduction="none").mean((1, 2, 3))
            perceptual = self.perceptual(self.images, reconstruction)
            nll = (rec + PERCEPTUAL * perceptual).mean()
            kl_loss = kl.mean() / self.images[0].numel()
            adversarial = -self.discriminator(reconstruction).mean()
        norms = [
            torch.autograd.grad(part, self.output_layer, retain_graph=True)[0].norm() for part in (nll, adversarial)
        ]
        weight = ADVERSARIAL * (norms[0] / (norms[1] + 1e-8)).clamp(0, 1e4).detach()
        loss = nll + KL * kl_loss + weight * adversarial
        self.discriminator.requires_grad_(True)
        terms = {"nll": nll, "rec": rec, "perceptual": perceptual, "kl": kl_loss, "weight": weight}
        return {"loss": loss, **terms, "adversarial": adversarial}

    def discriminator_loss(self, reconstruction: Tensor) -> dict[str, Tensor]:
        real, fake = self.discriminator(self.images), self.discriminator(reconstruction.detach())
        return {"loss": 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()), "real": real, "fake": fake}

    def update(self, logs: dict[str, Tensor], module: nn.Module, optimizer: Any, schedule: Any) -> None:
        if not self.tuned:
            _ = {name: value.detach().mean().item() for name, value in logs.items()}
        self.accelerator.backward(logs["loss"])
        self.accelerator.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=self.tuned)

    def step(self) -> None:
        reconstruction, kl = self.reconstruct()
        losses = self.autoencoder_loss(reconstruction, kl)
        self.update(losses, self.autoencoder, self.optimizer, self.schedule)
        if self.alternating:
            self.ema.step(self.autoencoder.parameters())
            reconstruction, _ = self.reconstruct()
        losses = self.discriminator_loss(reconstruction)
        self.update(losses, self.discriminator, self.discriminator_optimizer, self.discriminator_schedule)
        self.ema.step(self.autoencoder.parameters())


SIDES: dict[str, Callable[[Ours], Ours | Theirs]] = {
    "ours": lambda ours: ours,
    "theirs, corrected": Theirs,
    "theirs, corrected, alternating": partial(Theirs, alternating=True),
    "theirs, tuned by us": partial(Theirs, tuned=True),
}


def config_of(options: argparse.Namespace) -> TrainVAEConfig:
    weights_file = options.weights
    if options.perceptual in ("vgg", "alex", "squeeze") and not weights_file:
        weights_file = random_weights(options.perceptual)
    perceptual = PerceptualConfig(PERCEPTUAL, options.perceptual, weights_file, size=options.perceptual_size)
    network = KLNetworkConfig(widths=tuple(options.widths), blocks=options.blocks)
    return TrainVAEConfig(
        data=FolderConfig(path="none", size=options.size),
        autoencoder=AutoencoderConfig(network=network),
        objective=ReconstructionObjectiveConfig(
            kl=KL,
            perceptual=perceptual,
            discriminator=DiscriminatorConfig(weight=ADVERSARIAL, start=0.0, warmup=0.0),
        ),
        run=RunConfig(batch_size=options.batch, precision=options.precision),
    )


def random_weights(net: str) -> str:
    """A file of weights in torchvision's names."""
    from torchvision import models

    torch.manual_seed(0)
    file = Path(tempfile.mkdtemp()) / f"{net}.pth"
    network = {"vgg": models.vgg16, "alex": models.alexnet, "squeeze": models.squeezenet1_1}[net](weights=None)
    torch.save(network.state_dict(), file)
    return str(file)


def compare(ours: Ours, theirs: Theirs) -> str:
    """How far apart the losses and the gradients of both sides are, relative to their norms."""
    step = ours.training_step()
    noise = step.rng.normal("posterior", *theirs.latent_shape[1:], device=ours.run.device)
    losses = ours.objective(step.batch, step)
    reconstruction, kl = theirs.autoencoder(theirs.images, noise)
    peers = theirs.autoencoder_loss(reconstruction, kl)
    of_discriminator = ours.discriminator_objective(losses.outputs["images"], losses.outputs["reconstruction"])
    peers_of_discriminator = theirs.discriminator_loss(reconstruction)
    pairs = {
        "autoencoder": (losses.total, peers["loss"], ours.autoencoder.network, theirs.autoencoder),
        "discriminator": (
            of_discriminator.total,
            peers_of_discriminator["loss"],
            ours.discriminator,
            theirs.discriminator,
        ),
    }
    found = []
    # In bf16 each side's gradient is as far from that of float32 as from the other's.
    of_loss, of_gradient = (1e-4, 1e-3) if ours.run.run_config.precision == "fp32" else (0.01, 0.5)
    for name, (loss, peer_loss, module, peer_module) in pairs.items():
        gradients = []
        for side, total in ((module, loss), (peer_module, peer_loss)):
            total.backward()
            values = {key.removeprefix("kl."): p.grad.flatten() for key, p in side.named_parameters()}
            gradients.append(torch.cat([values[key] for key in sorted(values)]))
            side.zero_grad()
        apart = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
        found.append(f"{name} loss {loss.item():.6f} and {peer_loss.item():.6f}, gradients {apart:.0e} apart")
        assert apart < of_gradient and abs(loss.item() / peer_loss.item() - 1) < of_loss, found
    return "; ".join(found)


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_memory(side: str, options: argparse.Namespace) -> int:
    """Bytes that three steps of one side need at most: weights, optimizer, averages, activations."""
    torch.set_num_threads(1)
    before = resident()
    ours = Ours(options)
    measured = SIDES[side](ours)
    del ours
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        measured.step()
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident() - before


def seconds(step: Action) -> float:
    """By the clock on a GPU; of one CPU core's work otherwise, which others on the machine disturb less."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


def profile(ours: Ours) -> None:
    """Where our step spends its time."""
    from torch.profiler import profile

    with profile() as profiler:
        for _ in range(3):
            ours.step()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--perceptual", default="alex", help="vgg, alex, squeeze, or features with --weights")
    parser.add_argument("--weights", default="", help="a folder, as lite.py makes one")
    parser.add_argument("--perceptual-size", type=int, default=64, help="what smaller images are enlarged to")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--profile", action="store_true", help="only profile our step")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    if options.profile:
        ours = Ours(options)
        ours.step()
        return profile(ours)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = list(pool.map(peak_memory, SIDES, repeat(options)))
    ours = Ours(options)
    sides = {name: make(ours) for name, make in SIDES.items()}
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "one thread"
    print(f"\n{options.size} pixels, batch {options.batch}, widths {options.widths}, {options.perceptual}, {place}")
    print(f"first step: {compare(ours, sides['theirs, corrected'])}")
    for side in sides.values():
        seconds(side.step)
    rounds = [{name: seconds(side.step) for name, side in sides.items()} for _ in range(options.rounds)]
    for name, peak in zip(sides, peaks, strict=True):
        median = statistics.median(times[name] for times in rounds)
        ratio = median / statistics.median(times["ours"] for times in rounds)
        low, _, high = statistics.quantiles([times[name] / times["ours"] for times in rounds])
        rate = options.batch / median
        print(
            f"  {name:32} {1000 * median:7.1f} ms {rate:7.2f} images/s  {ratio:5.2f} x ours"
            f" (quartiles {low:.2f} to {high:.2f})  {peak / 2**20:7.0f} MiB"
        )


if __name__ == "__main__":
    main()
