"""Training steps for benchmarks/gpu.py: those of our training scripts, and of the loop in diffusers' examples."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder.losses.config import DiscriminatorConfig
from ldm.autoencoder.losses.discriminator import DiscriminatorObjective, create_discriminator
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import Condition, ConditionSchema, ImageBatch, LatentBatch
from ldm.config import reader
from ldm.config.yaml_file import read_yaml
from ldm.diffusion.config import DenoiserConfig, SamplingConfig, UNetConfig
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.objective import DenoisingObjective
from ldm.randomness import seed_weights
from ldm.script_configs import TrainDiffusionConfig, TrainVAEConfig
from ldm.training.config import RunConfig
from ldm.training.run import Run
from ldm.training.step import TrainingStep

# isort: off
from runs import ROOT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Action = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """A stage-two training: its network, latents and batch."""

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    latent: tuple[int, int, int]
    batch: int

    @property
    def config(self) -> DiffusionModelConfig:
        """Of the unconditional model."""
        network = UNetConfig(widths=self.widths, blocks=self.blocks, attention=self.attention)
        return DiffusionModelConfig(self.latent, ConditionSchema(), DenoiserConfig(network=network), SamplingConfig())

    def random_batch(self) -> LatentBatch:
        """Latents without any meaning, and noise."""
        latents = torch.randn(self.batch, *self.latent, device=DEVICE)
        sigma = torch.rand(self.batch, device=DEVICE) + 0.1
        return LatentBatch(latents, torch.randn_like(latents), sigma, Condition({}))


def created_run(config: TrainDiffusionConfig | TrainVAEConfig) -> Run:
    """A run that writes nothing; Accelerate allows one precision in a process, unless it is told to forget it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with contextlib.redirect_stdout(io.StringIO()):  # the line that every run begins with
        return Run(config, Path(tempfile.gettempdir()) / "ldm-gpu", dry=True)


# Ours


def ours(run: Run, batch: object, body: Callable[[TrainingStep], None], number: int = 0) -> Action:
    """A step of the run, as a training script's loop makes it."""
    learn = run.graphed(body)

    def action() -> None:
        run.begin_step(number)
        learn(run.step(number, 0, batch))
        run.metrics.rows.clear()
        run.metrics.names.clear()

    return action


def our_denoising_step(size: Size, batch: LatentBatch, **run_settings: Any) -> Action:
    """The body of train_diffusion.py's loop."""
    run = created_run(TrainDiffusionConfig(run=RunConfig(batch_size=size.batch, **run_settings)))
    seed_weights(0)
    denoiser = create_denoiser(size.config)
    objective = run.prepare(DenoisingObjective(denoiser), trains=denoiser)
    run.resume("")

    def body(step: TrainingStep) -> None:
        losses = objective(step.batch, step)
        step.update(losses.total)
        step.log(losses.terms)

    return ours(run, batch, body)


def autoencoder_config(file: str, *, adversarial: bool = False, **run_settings: Any) -> TrainVAEConfig:
    """A shipped config; `adversarial`: with a discriminator from the first step on."""
    config: TrainVAEConfig = reader.from_dict(TrainVAEConfig, read_yaml(ROOT / "configs" / "vae" / file))
    objective = replace(config.objective, discriminator=DiscriminatorConfig(start=0) if adversarial else None)
    return replace(config, run=replace(config.run, **run_settings), objective=objective)


def our_autoencoder(config: TrainVAEConfig, side: int) -> Autoencoder:
    """Untrained, for square images."""
    seed_weights(0)
    return create_trainable(config.autoencoder, image=(3, side, side))


def our_autoencoder_step(file: str, images: Tensor, *, adversarial: bool = False, **run_settings: Any) -> Action:
    """The body of train_vae.py's loop, in the last step of the run."""
    config = autoencoder_config(file, adversarial=adversarial, **run_settings)
    run, steps = created_run(config), config.run.steps
    autoencoder = our_autoencoder(config, images.shape[-1])
    discriminator = create_discriminator(config.objective.discriminator, image_channels=3, steps=steps)
    reconstruction = ReconstructionObjective(autoencoder, config.objective, discriminator, steps=steps)
    objective = run.prepare(reconstruction, trains=autoencoder, schedule=reconstruction.schedule)
    if discriminator is not None:
        named: dict[str, Any] = {"optim": discriminator.optim, "name": "discriminator", "schedule": discriminator}
        critic = run.prepare(DiscriminatorObjective(discriminator), trains=discriminator, **named)
    run.resume("")
    batch = ImageBatch(images, torch.zeros(len(images), dtype=torch.int64, device=DEVICE))

    def body(step: TrainingStep) -> None:
        losses = objective(step.batch, step)
        step.update(losses.total)
        if discriminator is not None:
            adversary = critic(losses.outputs["images"], losses.outputs["reconstruction"])
            step.update(adversary.total, of="discriminator")
            losses.terms.update(adversary.terms)
        step.log(losses.terms)

    return ours(run, batch, body, steps - 1)


# Theirs


class Loop:
    """The training loop of diffusers' examples: as it comes, or tuned."""

    def __init__(self, model: nn.Module, *, tuned: bool):
        self.model, self.tuned = model, tuned
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True if tuned else None)
        self.schedule = get_scheduler("cosine", self.optimizer, num_warmup_steps=500, num_training_steps=100_000)
        self.ema = EMAModel(parameters, use_ema_warmup=True, foreach=tuned)
        self.parameters = parameters

    def autocast(self) -> Any:
        """What Accelerate's mixed precision is."""
        return torch.autocast(DEVICE, torch.bfloat16)

    def update(self, loss: Tensor) -> None:
        """Backward, clipping, optimizer, averages, and the log, for which the untuned one waits."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True if self.tuned else None)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)
        if not self.tuned:
            loss.detach().item()


def their_denoising_step(size: Size, batch: LatentBatch, *, tuned: bool) -> Action:
    """The same network and loss in diffusers' loop."""
    seed_weights(0)
    denoiser = create_denoiser(size.config).to(DEVICE)
    objective = DenoisingObjective(denoiser)
    loop = Loop(denoiser, tuned=tuned)

    def action() -> None:
        noise = torch.randn_like(batch.latents)
        with loop.autocast():
            losses = objective(batch._replace(noise=noise))
        loop.update(losses.total)

    return action


def their_autoencoder_step(config: TrainVAEConfig, images: Tensor, *, tuned: bool) -> Action:
    """The same network in diffusers' loop, with a discriminator as their train_autoencoderkl has one."""
    model = our_autoencoder(config, images.shape[-1]).to(DEVICE)
    discriminator = create_discriminator(config.objective.discriminator, image_channels=3, steps=1)
    loop = Loop(model, tuned=tuned)
    critic = None if discriminator is None else Loop(discriminator.to(DEVICE), tuned=tuned)

    def action() -> None:
        with loop.autocast():
            posterior = model.encode(images)
            reconstruction = model.decode(posterior.sample())
        distance = F.l1_loss(reconstruction.float(), images)
        loss = distance + 1e-6 * posterior.kl().mean() / images[0].numel()
        if critic is None:
            return loop.update(loss)
        last = model.network.output_layer.weight
        with loop.autocast():
            adversarial = -critic.model(reconstruction).mean()
        (toward_images,) = torch.autograd.grad(distance, last, retain_graph=True)
        (toward_critic,) = torch.autograd.grad(adversarial, last, retain_graph=True)
        weight = (toward_images.norm() / (toward_critic.norm() + 1e-4)).clamp(0, 1e4).detach()
        loop.update(loss + 0.5 * weight * adversarial)
        critic.optimizer.zero_grad()
        with loop.autocast():
            real, fake = critic.model(images), critic.model(reconstruction.detach())
        critic.update(0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()))

    return action
