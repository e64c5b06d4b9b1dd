"""A training step of the autoencoder and of the denoiser against the same networks in diffusers' example loops.

    python benchmarks/step.py

Both loops take turns in one process on one thread, float32, the same batch size. Printed are medians of the ratios,
and how many calls into torch a step makes outside the model. The peer is what diffusers' examples do with their
defaults: AdamW as it comes, clip_grad_norm_, EMAModel, a schedule, the loss read back at every step. Its denoiser is
shown twice: encoding the images at every step, as its latent trainers do, and on latents that are in memory.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import ClassAttribute, ConditionSchema, ImageBatch, LatentBatch
from ldm.data.config import MNIST5kConfig
from ldm.diffusion.config import DenoiserConfig, SamplingConfig, UNetConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.objective import DenoisingObjective
from ldm.randomness import seed_weights
from ldm.script_configs import TrainDiffusionConfig, TrainVAEConfig
from ldm.training.config import RunConfig
from ldm.training.run import Run
from ldm.training.step import TrainingStep

BATCH, ROUNDS = 32, 15
DIGITS = ConditionSchema((ClassAttribute("label", tuple("0123456789")),))
Action = Callable[[], None]


class Calls(TorchDispatchMode):
    """Counts the calls into torch, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function.namespace == "aten" and not function.is_view
        return function(*args, **(kwargs or {}))


def calls(action: Action) -> int:
    with Calls() as counter:
        action()
    return counter.count


class Peer:
    """Optimizer, average and bookkeeping as in diffusers' examples."""

    def __init__(self, model: nn.Module):
        self.accelerator = Accelerator(cpu=True)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.schedule = get_scheduler("cosine", self.optimizer, num_warmup_steps=500, num_training_steps=10000)
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, self.optimizer, self.schedule)
        self.ema = EMAModel(self.model.parameters(), use_ema_warmup=True)

    def update(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        loss.detach().item()


def our_autoencoder() -> Autoencoder:
    return create_trainable(TrainVAEConfig(data=MNIST5kConfig()).autoencoder, image=(1, 32, 32))


def our_denoiser() -> Denoiser:
    config = DenoiserConfig(network=UNetConfig(widths=(64, 128), blocks=1))
    return create_denoiser(DiffusionModelConfig((4, 8, 8), DIGITS, config, SamplingConfig()))


def our_step(run: Run, batch: object, body: Callable[[TrainingStep], None]) -> Action:
    """A step of the run with the body of a training script's loop."""

    def step() -> None:
        run.begin_step(0)
        body(run.step(0, 0, batch))
        run.metrics.rows.clear()
        run.metrics.names.clear()

    return step


def autoencoder_steps() -> tuple[Action, dict[str, Action], Action]:
    """Our step, the peer's, and the model alone."""
    images = torch.rand(BATCH, 1, 32, 32) * 2 - 1
    config = TrainVAEConfig(data=MNIST5kConfig(), run=RunConfig(batch_size=BATCH, precision="fp32"))
    run = Run(config, Path(tempfile.mkdtemp()), dry=True)
    seed_weights(config.run.seed)
    autoencoder = our_autoencoder()
    reconstruction = ReconstructionObjective(autoencoder, config.objective, steps=config.run.steps)
    objective = run.prepare(reconstruction, trains=autoencoder, schedule=reconstruction.schedule)
    run.resume("")
    theirs = our_autoencoder()
    peer = Peer(theirs)

    def body(step: TrainingStep) -> None:
        losses = objective(step.batch, step)
        step.update(losses.total)
        autoencoder.bottleneck.update_usage(losses.outputs["code"], step.number)
        step.log(losses.terms)

    def their_step() -> None:
        posterior = theirs.encode(images)
        reconstruction = theirs.decode(posterior.sample())
        peer.update(F.l1_loss(reconstruction, images) + 1e-6 * posterior.kl().mean() / images[0].numel())

    def model() -> None:
        moments = theirs.network.encode(images)
        theirs.network.decode(moments[:, :4]).backward(images)

    ours = our_step(run, ImageBatch(images, torch.zeros(BATCH, dtype=torch.int64)), body)
    return ours, {"their loop": their_step}, model


def denoiser_steps() -> tuple[Action, dict[str, Action], Action]:
    """Our step, the peer's in two ways, and the model alone."""
    images, latents = torch.rand(BATCH, 1, 32, 32) * 2 - 1, torch.randn(BATCH, 4, 8, 8)
    condition = DIGITS.request([index % 10 for index in range(BATCH)])
    config = TrainDiffusionConfig(run=RunConfig(batch_size=BATCH, precision="fp32"))
    run = Run(config, Path(tempfile.mkdtemp()), dry=True)
    seed_weights(config.run.seed)
    denoiser = our_denoiser()
    objective = run.prepare(DenoisingObjective(denoiser), trains=denoiser)
    run.resume("")
    batch = LatentBatch(latents, torch.randn_like(latents), torch.rand(BATCH) + 0.1, condition)
    theirs, autoencoder, scheduler = our_denoiser(), our_autoencoder(), DDPMScheduler()
    peer = Peer(theirs)

    def body(step: TrainingStep) -> None:
        losses = objective(step.batch, step)
        step.update(losses.total)
        step.log(losses.terms)

    def their_step(clean: Tensor) -> None:
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (BATCH,))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        vector, _ = theirs.embedding(condition, timesteps)
        peer.update(F.mse_loss(theirs.network(noisy, timesteps / 1000, vector), noise))

    def encoding() -> None:
        with torch.no_grad():
            clean = autoencoder.encode(images).sample()
        their_step(clean)

    def model() -> None:
        denoiser(latents, batch.sigma, condition).backward(latents)

    peers = {"their loop, encoding each step": encoding, "their loop, latents in memory": lambda: their_step(latents)}
    return our_step(run, batch, body), peers, model


def seconds(step: Action) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> None:
    torch.set_num_threads(1)
    for name, (ours, peers, model) in (("autoencoder", autoencoder_steps()), ("denoiser", denoiser_steps())):
        inside = calls(model)
        print(f"\n{name}: batch {BATCH}, one thread, float32, median of {ROUNDS} interleaved rounds")
        for step in (ours, *peers.values()):
            step()
        rounds = [[seconds(step) for step in (ours, *peers.values())] for _ in range(ROUNDS)]
        mine = statistics.median(round[0] for round in rounds)
        print(f"  {'ours':32} {1000 * mine:7.1f} ms  {calls(ours) - inside:6d} calls outside the model")
        for place, (label, step) in enumerate(peers.items(), start=1):
            ratio = statistics.median(round[place] / round[0] for round in rounds)
            print(f"  {label:32} {ratio:7.2f} x ours {calls(step) - inside:6d} calls outside the model")


if __name__ == "__main__":
    main()
