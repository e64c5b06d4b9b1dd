"""A trained latent diffusion model: from noise, class and seed to images."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import nn

from ldm.autoencoder.model import Autoencoder
from ldm.config import reader
from ldm.diffusion.config import DenoiserConfig, SamplingConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.networks.unet import UNet
from ldm.diffusion.noise import karras_sigmas
from ldm.diffusion.samplers import SAMPLERS, starting_noise
from ldm.errors import CheckpointError, ConfigError
from ldm.shapes import Images


@dataclass(frozen=True)
class DiffusionModelConfig:
    """What has to be known to build a denoiser and sample from it."""

    latent_shape: tuple[int, int, int]  # channels, height, width
    classes: tuple[str, ...]  # empty: unconditional
    denoiser: DenoiserConfig
    sampling: SamplingConfig
    knows_no_label: bool = True  # whether labels were dropped in training, without which there is nothing to guide by


def check_latent_shape(denoiser: DenoiserConfig, latent_shape: tuple[int, int, int]) -> None:
    """Raise ConfigError, before any image is encoded, if the network cannot halve latents of this shape."""
    levels, (_, height, width) = len(denoiser.network.widths), latent_shape
    if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
        raise ConfigError(
            f"latents of {height} x {width} cannot be halved {levels - 1} times: give denoiser.network.widths fewer"
            " levels, and denoiser.network.attention none that are not there"
        )


def create_denoiser(description: DiffusionModelConfig) -> Denoiser:
    """An untrained denoiser."""
    config, channels = description.denoiser, description.latent_shape[0]
    network = UNet(config.network, channels=channels, classes=len(description.classes))
    return Denoiser(network, parametrization=config.parametrization)


class LatentDiffusion:
    """An autoencoder and a denoiser of its latents."""

    def __init__(self, autoencoder: Autoencoder, denoiser: nn.Module, description: DiffusionModelConfig):
        self.autoencoder, self.denoiser, self.description = autoencoder.eval(), denoiser.eval(), description

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> Self:
        """The finished stage-two run in a folder. Raises CheckpointError if it is not one."""
        folder = Path(run)
        denoiser, description = load_denoiser(folder / "unet")
        return cls(Autoencoder.load(folder), denoiser, description).to(device)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device."""
        self.autoencoder.to(device)
        self.denoiser.to(device)
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels; empty for an unconditional model."""
        return self.description.classes

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

        `labels` are repeated as often as needed; None takes the classes in turn. `guidance` 1 means none; left out it
        is 2 for a model that saw its classes and none. Image i depends on (seed, i) alone, whatever the batch.
        `on_step` is called with 1 after each step of each batch. Raises ConfigError for impossible requests.
        """
        indices = self.label_indices(labels)
        guidance = (2.0 if indices and self.description.knows_no_label else 1.0) if guidance is None else guidance
        method, sigmas = self.method(num, steps, sampler, guidance, batch_size)
        device = next(self.denoiser.parameters()).device
        images = []
        for numbers in torch.arange(num).split(batch_size):
            start = starting_noise(self.description.latent_shape, numbers.tolist(), seed).to(device) * sigmas[0].item()
            wanted = [indices[number % len(indices)] for number in numbers.tolist()] if indices else None
            denoise = self.guided(guidance, None if wanted is None else torch.tensor(wanted, device=device))
            latents = method(denoise, start, sigmas, on_step=(lambda _: on_step(1)) if on_step else None)
            images.append(self.autoencoder.decode(latents).clamp(-1, 1).cpu())
        return torch.cat(images)

    def guided(self, guidance: float, labels: torch.Tensor | None) -> Callable[..., torch.Tensor]:
        """The denoiser as a function of noisy latents and noise level alone."""
        if labels is None:
            return self.denoiser
        guided = classifier_free(self.denoiser, guidance=guidance, no_label=len(self.classes))
        return lambda noisy, sigma: guided(noisy, sigma, labels)

    def method(self, num: int, steps: int, sampler: str, guidance: float, batch_size: int) -> tuple[Any, torch.Tensor]:
        """The sampler and its noise levels, or ConfigError for a request that cannot be met."""
        for name, value in (("num", num), ("steps", steps), ("batch-size", batch_size)):
            if value < 1:
                raise ConfigError(f"--{name} {value} must be at least 1")
        if sampler not in SAMPLERS:
            raise ConfigError(f"--sampler {sampler} is not one of {', '.join(SAMPLERS)}")
        if not math.isfinite(guidance):
            raise ConfigError(f"--guidance {guidance} must be a finite number")
        if guidance != 1 and not self.classes:
            raise ConfigError("--guidance needs a model with classes, and this one has none")
        if guidance != 1 and not self.description.knows_no_label:
            raise ConfigError(
                "--guidance needs a model trained with objective.condition_dropout, and this one had none"
            )
        grid = self.description.sampling
        return SAMPLERS[sampler], karras_sigmas(steps, grid.sigma_min, grid.sigma_max, grid.rho)

    def label_indices(self, labels: Sequence[int | str] | None) -> list[int]:
        """Class indices of names or indices; all classes in turn for None; empty for an unconditional model."""
        if labels is None:
            return list(range(len(self.classes)))
        if not self.classes:
            raise ConfigError("--labels needs a model with classes, and this one has none")
        if not labels:
            raise ConfigError("--labels names no class; leave it out for all classes in turn")
        return [self.label_index(label) for label in labels]

    def label_index(self, label: int | str) -> int:
        """The index of one class; a name that is also a number is read as a name."""
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if str(label).isdecimal() and int(label) < len(self.classes):
            return int(label)
        shown = ", ".join(self.classes[:20]) + (" ..." if len(self.classes) > 20 else "")
        raise ConfigError(f"--labels {label} is not a class of this model: {shown}")


def save_denoiser(denoiser: Denoiser, description: DiffusionModelConfig, folder: Path) -> None:
    """Write `config.json` and the weights as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(description), indent=2))
    weights = {name: value.detach().cpu().contiguous() for name, value in denoiser.network.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def load_denoiser(folder: Path) -> tuple[Denoiser, DiffusionModelConfig]:
    """What `save_denoiser` wrote."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder.parent} is not a finished stage-two run: it has no unet/config.json")
    try:
        description = reader.from_dict(DiffusionModelConfig, json.loads((folder / "config.json").read_text()))
        denoiser = create_denoiser(description)
        denoiser.network.load_state_dict(safetensors.torch.load_file(folder / "diffusion_pytorch_model.safetensors"))
    except (OSError, ValueError, RuntimeError, ConfigError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the denoiser in {folder} cannot be read: {error}") from error
    return denoiser.eval(), description
