"""A trained latent diffusion model: from noise, condition and seed to images."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import safetensors
import torch
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.batch import ClassLabels, Condition, ConditionSchema
from ldm.component.weights_file import load_weights, save_weights
from ldm.config.plain import from_plain
from ldm.config.reader import to_dict
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.diffusion.config import DENOISER_NETWORKS, SAMPLERS, DenoiserConfig, SamplingConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.diffusers_format import (
    config_of_diffusers,
    our_config_in,
    our_weights,
    their_weights,
    with_our_config,
)
from ldm.diffusion.gaussian import LatentGaussian, rank_of
from ldm.diffusion.guidance import ClassifierFreeGuidance, Guidance, checked_guidance
from ldm.diffusion.network import DenoiserNetwork
from ldm.diffusion.noise import consistency_sigmas, karras_sigmas
from ldm.diffusion.samplers import Denoise, OnStep, StepNoise, starting_noise, step_noise
from ldm.diffusion.samplers.options import check_sampler, checked_options
from ldm.errors import CheckpointError, ConfigError, DivergedError, RequestError
from ldm.shapes import Images, Latents
from ldm.text.prompts import PromptEncoders

OF_GRID = ("gaussian_start", "second_sigma")  # options that the noise levels depend on, and the sampler itself does not
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
    network_class: type[DenoiserNetwork] = DENOISER_NETWORKS[network_config.kind].load()
    text = {"token_channels": config.schema.token_channels} if config.schema.token_channels else {}
    if text and not network_class.takes_tokens:
        raise ConfigError(f"denoiser.network.kind {network_config.kind} has no attention to text: use unet, or no text")
    network = network_class.create(network_config, latent_shape=config.latent_shape, **text)
    embedding = ConditionEmbedding(config.schema, network.vector_channels)
    skip, gaussian = config.denoiser.skip, None
    if skip.kind == "gaussian":
        gaussian = LatentGaussian(config.latent_shape, rank_of(config.latent_shape, skip.rank))
    return Denoiser(
        network,
        embedding,
        parametrization=config.denoiser.parametrization,
        gaussian=gaussian,
        consistency=SAMPLERS[config.sampling.sampler].consistency,
    )


class LatentDiffusion:
    """An autoencoder and a denoiser of its latents."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        config: DiffusionModelConfig,
        prompts: PromptEncoders | None = None,
    ):
        self.autoencoder, self.denoiser, self.config = autoencoder.eval(), denoiser.eval(), config
        self.prompts = prompts or PromptEncoders(config.schema)

    @classmethod
    def load(cls, run: str | Path, device: str | torch.device = "cpu") -> Self:
        """The finished run of train_diffusion.py in a folder. Raises CheckpointError if it is not one."""
        folder = Path(run)
        denoiser, config = load_denoiser(folder / "unet")
        prompts = PromptEncoders(config.schema, folder / "unet")
        return cls(Autoencoder.load(folder), denoiser, config, prompts).to(device)

    def to(self, *target: str | torch.device | torch.dtype) -> Self:
        """Move to a device, to a precision, or to both."""
        for each in target:
            self.autoencoder.to(each)
            self.denoiser.to(each)
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels; empty for an unconditional model."""
        return self.config.schema.choices

    @torch.no_grad()
    def sample(
        self,
        num: int = 16,
        labels: ClassLabels | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | Condition | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        sampler_options: Mapping[str, float] | None = None,
        guidance: float | Mapping[str, float] | Guidance | None = None,
        seed: int = 0,
        batch_size: int = 64,
        on_step: Callable[[int], object] | None = None,
    ) -> Images:
        """`num` images, float B C H W in [-1, 1], on the CPU.

        `labels` are classes by name or index (one, several, a tensor, one-hot rows), a `prompt` one text or several,
        `conditions` values of other attributes by name: of each one, or as many as of the others, repeated as often as
        needed. What is not asked for is left out; of a request for nothing at all the classes come in turn.
        `guidance` is a weight of classifier-free guidance, one for each condition by name, or what `checked_guidance`
        gives; 1 means none; left out it is 2 for a model that saw its conditions and none. `steps` and `sampler` are
        the model's own where left out. `sampler_options` are those of SAMPLER_OPTIONS that the sampler takes.
        Image i depends on (seed, i) alone, whatever the batch. `on_step` is called with 1 after each step of each
        batch. Raises RequestError for impossible requests, DivergedError for images that are not numbers.
        """
        requested, grid = self.prompts.request(labels, conditions, prompt), self.config.sampling
        steps, sampler = grid.steps if steps is None else steps, sampler or grid.sampler
        if not isinstance(guidance, Guidance):
            guidance = checked_guidance(guidance, self.config.schema, self.config.trained_with_condition_dropout)
        check_request(num, steps, sampler, batch_size, seed)
        options = checked_options(sampler, sampler_options or {}, self.config.denoiser, grid)
        images = []
        for numbers in torch.arange(num).split(batch_size):
            latents = self.sample_latents(
                numbers.tolist(),
                requested.repeated(numbers),
                steps=steps,
                sampler=sampler,
                sampler_options=options,
                guidance=guidance,
                seed=seed,
                on_step=on_step,
            )
            images.append(self.decode(latents))
        return torch.cat(images)

    @torch.no_grad()
    def sample_latents(
        self,
        numbers: list[int],
        condition: Condition,
        *,
        steps: int,
        sampler: str,
        sampler_options: Mapping[str, float] | None = None,
        guidance: float | Guidance,
        seed: int,
        on_step: Callable[[int], object] | None = None,
    ) -> Latents:
        """The latents of the images with these numbers, each of which depends on (seed, number) and its condition."""
        options = sampler_options or {}
        device, shape = next(self.denoiser.parameters()).device, self.config.latent_shape

        def step_done(step: int, noisy: Latents) -> None:
            if on_step is not None:
                on_step(1)

        return sample_latents(
            self.guided(guidance, condition.to(device)),
            starting_noise(shape, numbers, seed).to(device),
            noise_levels(self.config.sampling, steps, options),
            sampler=sampler,
            options=options,
            gaussian=self.denoiser.gaussian,
            noise=lambda step: step_noise(shape, numbers, seed, step).to(device),
            on_step=step_done,
        )

    @torch.no_grad()
    def decode(self, latents: Latents) -> Images:
        """The images of latents, in [-1, 1], on the CPU; DivergedError for images that are not numbers."""
        return finite(self.autoencoder.decode(latents).clamp(-1, 1)).cpu()

    def guided(self, guidance: float | Guidance, condition: Condition) -> Denoise:
        """The denoiser as a function of noisy latents and noise level alone, which is what samplers call."""
        if not isinstance(guidance, Guidance):
            guidance = ClassifierFreeGuidance(guidance)
        guided = guidance.around(self.denoiser)
        return lambda noisy, sigma: guided(noisy, sigma, condition)


def noise_levels(grid: SamplingConfig, steps: int, options: Mapping[str, float]) -> Tensor:
    """The grid of noise levels of a model, from where a sampler begins."""
    if SAMPLERS[grid.sampler].consistency:
        return consistency_sigmas(steps, grid.sigma_min, grid.sigma_max, grid.rho, options.get("second_sigma"))
    return karras_sigmas(steps, grid.sigma_min, options.get("gaussian_start", grid.sigma_max), grid.rho)


def sample_latents(
    denoise: Denoise,
    unit_noise: Latents,
    sigmas: Tensor,
    *,
    sampler: str,
    noise: StepNoise,
    options: Mapping[str, float] | None = None,
    gaussian: LatentGaussian | None = None,
    on_step: OnStep | None = None,
) -> Latents:
    """The latents that a sampler of the table makes of unit Gaussian noise along a grid of noise levels.

    `noise` is for the samplers that draw some in every step, and the Gaussian of the latents for those that know it:
    they start at exactly its noisy latents.
    """
    facts, highest = SAMPLERS[sampler], sigmas[0].item()
    more: dict[str, Any] = {name: value for name, value in (options or {}).items() if name not in OF_GRID}
    if facts.stochastic:
        more["noise"] = noise
    start = unit_noise * highest
    if facts.gaussian and gaussian is not None:
        more["gaussian"], start = gaussian, gaussian.noised(unit_noise, highest)
    latents: Latents = facts.load()(denoise, start, sigmas, on_step=on_step, **more)
    return finite(latents)


def finite(samples: Tensor) -> Tensor:
    """The same; DivergedError if they hold NaN or infinity, which no picture can show."""
    if not samples.isfinite().all():
        raise DivergedError(
            "the samples are not finite numbers: take a smaller guidance or a wider precision (bfloat16, float32), or"
            " the model itself is broken"
        )
    return samples


def check_request(num: int, steps: int, sampler: str, batch_size: int = 1, seed: int = 0) -> None:
    """Raise RequestError for a request that cannot be met."""
    for name, value in (("num", num), ("steps", steps), ("batch_size", batch_size), ("seed", seed)):
        if not isinstance(value, Integral):
            raise RequestError(name, f"{value!r} is not an integer")
        if value < 1 and name != "seed":
            raise RequestError(name, f"{value} must be at least 1")
    check_sampler(sampler)


def save_denoiser(denoiser: Denoiser, config: DiffusionModelConfig, folder: Path, variant: str | None = None) -> None:
    """Write `config.json` and the weights as safetensors; as diffusers' own class has them, if it has one for it."""
    folder.mkdir(parents=True, exist_ok=True)
    saved, weights = to_dict(config), denoiser.state_dict()
    theirs = config_of_diffusers(denoiser, config.denoiser, config.schema)
    if theirs is not None:
        saved, weights = with_our_config(theirs, saved), their_weights(weights)
    (folder / "config.json").write_text(json.dumps(saved, indent=2))
    save_weights(folder, weights, variant, of_diffusers=theirs is not None)


def load_denoiser(folder: Path, variant: str | None = None) -> tuple[Denoiser, DiffusionModelConfig]:
    """What `save_denoiser` wrote."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder.parent} is not a finished run of train_diffusion.py: it has no unet/config.json"
        )
    try:
        entries = json.loads((folder / "config.json").read_text())
        saved = our_config_in(entries)
        check_format(saved, folder.parent)
        config: DiffusionModelConfig = from_plain(DiffusionModelConfig, saved)
        denoiser, weights = create_denoiser(config), load_weights(folder, variant)
        if saved is not entries:
            weights = our_weights(weights, config.schema)
        denoiser.load_state_dict(weights)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError, ConfigError) as error:
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
