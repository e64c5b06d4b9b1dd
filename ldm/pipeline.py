"""A trained latent diffusion model: from noise, condition and seed to images."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch

from ldm.autoencoder.model import Autoencoder
from ldm.batch import Condition, ConditionSchema
from ldm.config import reader
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.diffusion.config import DENOISER_NETWORKS, SAMPLERS, DenoiserConfig, SamplingConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.network import DenoiserNetwork
from ldm.diffusion.noise import karras_sigmas
from ldm.diffusion.samplers import Denoise, starting_noise, step_noise
from ldm.errors import CheckpointError, ConfigError
from ldm.shapes import Images

FORMAT = 2  # of the folder of a denoiser; 1 was that of version 0.1


@dataclass(frozen=True)
class DiffusionModelConfig:
    """All that is needed to create a denoiser and to sample from it; saved as its config.json."""

    latent_shape: tuple[int, int, int]  # channels, height, width
    schema: ConditionSchema  # what it is conditioned on
    denoiser: DenoiserConfig
    sampling: SamplingConfig
    trained_with_condition_dropout: bool = True  # without it there is nothing for classifier-free guidance
    format: int = FORMAT


def check_latent_shape(config: DenoiserConfig, latent_shape: tuple[int, int, int]) -> None:
    """Raise ConfigError, before any image is encoded, if the network cannot take latents of this shape."""
    DENOISER_NETWORKS[config.network.kind].load().check(config.network, latent_shape)


def create_denoiser(config: DiffusionModelConfig) -> Denoiser:
    """An untrained denoiser."""
    network_config = config.denoiser.network
    network: DenoiserNetwork = (
        DENOISER_NETWORKS[network_config.kind].load().create(network_config, latent_shape=config.latent_shape)
    )
    embedding = ConditionEmbedding(config.schema, network.vector_channels)
    return Denoiser(network, embedding, parametrization=config.denoiser.parametrization)


class LatentDiffusion:
    """An autoencoder and a denoiser of its latents."""

    def __init__(self, autoencoder: Autoencoder, denoiser: Denoiser, config: DiffusionModelConfig):
        self.autoencoder, self.denoiser, self.config = autoencoder.eval(), denoiser.eval(), config

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> Self:
        """The finished run of train_diffusion.py in a folder. Raises CheckpointError if it is not one."""
        folder = Path(run)
        denoiser, config = load_denoiser(folder / "unet")
        return cls(Autoencoder.load(folder), denoiser, config).to(device)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device."""
        self.autoencoder.to(device)
        self.denoiser.to(device)
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels; empty for an unconditional model."""
        return self.config.schema.choices

    @torch.no_grad()
    def sample(
        self,
        num: int = 16,
        labels: Sequence[int | str] | None = None,
        *,
        steps: int = 18,
        sampler: str = "heun",
        guidance: float | None = None,
        seed: int = 0,
        batch_size: int = 64,
        on_step: Callable[[int], object] | None = None,
    ) -> Images:
        """`num` images, float B C H W in [-1, 1], on the CPU.

        `labels` are classes by name or index, repeated as often as needed; None takes all classes in turn. `guidance` 1
        means none; left out it is 2 for a model that saw its classes and none. Image i depends on (seed, i) alone,
        whatever the batch. `on_step` is called with 1 after each step of each batch. Raises ConfigError for impossible
        requests.
        """
        requested = self.config.schema.request(labels)
        if guidance is None:
            guidance = 2.0 if self.classes and self.config.trained_with_condition_dropout else 1.0
        self.check_request(num, steps, sampler, guidance, batch_size)
        facts, grid = SAMPLERS[sampler], self.config.sampling
        method, sigmas = facts.load(), karras_sigmas(steps, grid.sigma_min, grid.sigma_max, grid.rho)
        device, shape = next(self.denoiser.parameters()).device, self.config.latent_shape
        images = []
        for numbers in torch.arange(num).split(batch_size):
            indices, options = numbers.tolist(), dict[str, Any]()
            start = starting_noise(shape, indices, seed).to(device) * sigmas[0].item()
            if facts.stochastic:
                options["noise"] = lambda step, indices=indices: step_noise(shape, indices, seed, step).to(device)
            if on_step is not None:
                options["on_step"] = lambda _: on_step(1)
            denoise = self.guided(guidance, requested.repeated(numbers).to(device))
            images.append(self.autoencoder.decode(method(denoise, start, sigmas, **options)).clamp(-1, 1).cpu())
        return torch.cat(images)

    def guided(self, guidance: float, condition: Condition) -> Denoise:
        """The denoiser as a function of noisy latents and noise level alone."""
        guided = classifier_free(self.denoiser, guidance=guidance)
        return lambda noisy, sigma: guided(noisy, sigma, condition)

    def check_request(self, num: int, steps: int, sampler: str, guidance: float, batch_size: int) -> None:
        """Raise ConfigError for a request that cannot be met."""
        for name, value in (("num", num), ("steps", steps), ("batch-size", batch_size)):
            if value < 1:
                raise ConfigError(f"--{name} {value} must be at least 1")
        if sampler not in SAMPLERS:
            raise ConfigError(f"--sampler {sampler} is not one of {', '.join(SAMPLERS)}")
        if not math.isfinite(guidance):
            raise ConfigError(f"--guidance {guidance} must be a finite number")
        if guidance != 1 and not self.classes:
            raise ConfigError("--guidance needs a model with classes, and this one has none")
        if guidance != 1 and not self.config.trained_with_condition_dropout:
            raise ConfigError(
                "--guidance needs a model trained with objective.condition_dropout, and this one had none"
            )


def save_denoiser(denoiser: Denoiser, config: DiffusionModelConfig, folder: Path) -> None:
    """Write `config.json` and the weights as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(reader.to_dict(config), indent=2))
    weights = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def load_denoiser(folder: Path) -> tuple[Denoiser, DiffusionModelConfig]:
    """What `save_denoiser` wrote."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder.parent} is not a finished run of train_diffusion.py: it has no unet/config.json"
        )
    try:
        saved = json.loads((folder / "config.json").read_text())
        check_format(saved, folder.parent)
        config = reader.from_dict(DiffusionModelConfig, saved)
        denoiser = create_denoiser(config)
        denoiser.load_state_dict(safetensors.torch.load_file(folder / "diffusion_pytorch_model.safetensors"))
    except (OSError, ValueError, RuntimeError, ConfigError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the denoiser in {folder} cannot be read: {error}") from error
    return denoiser.eval(), config


def check_format(saved: Any, run: Path) -> None:
    """Raise CheckpointError for the denoiser of a run of another version."""
    version = saved.get("format", 1) if isinstance(saved, dict) else FORMAT
    if version != FORMAT:
        older = "an earlier" if version == 1 else "another"
        raise CheckpointError(
            f"{run} is a diffusion model of {older} version of ldm: sample from it with that version, or train again on"
            f" {run / 'vae'}, which is still read"
        )
