"""A trained latent diffusion model: from noise, condition and seed to images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import torch

from ldm.autoencoder.model import Autoencoder
from ldm.batch import ClassLabels, Condition
from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.editing import levels_of_strength
from ldm.diffusion.graphed_denoiser import GraphedDenoiser
from ldm.diffusion.guidance import ClassifierFreeGuidance, ConditionalDenoise, Guidance, checked_guidance
from ldm.diffusion.model import DiffusionModelConfig, check_latent_shape, load_denoiser
from ldm.diffusion.samplers import Denoise, OnStep, starting_noise, step_noise
from ldm.diffusion.samplers.options import checked_options
from ldm.diffusion.sampling import (
    PlanArguments,
    SamplingPlan,
    check_request,
    counted,
    denoise_latents,
    finite,
    noise_levels,
    noisy_start,
)
from ldm.errors import ConfigError, RequestError
from ldm.shapes import Images, Latents, format_size
from ldm.text.prompts import PromptEncoders


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
        self.called: ConditionalDenoise = self.denoiser  # or a graph of it

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
            for name, part in self.denoiser.named_children():
                if name != "gaussian" or not isinstance(each, torch.dtype) or each.itemsize >= 4:
                    part.to(each)  # a skip of 16 bits would round what no network repairs
        return self

    def with_graph(self) -> Self:
        """The same, with the denoiser as a CUDA graph from now on; RequestError where there is no CUDA GPU."""
        self.called = GraphedDenoiser(self.denoiser)
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels; empty for an unconditional model."""
        return self.config.schema.choices

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that it was trained on."""
        factors, (_, height, width) = self.autoencoder.network.downsampling, self.config.latent_shape
        return self.autoencoder.network.image_channels, height * factors[0], width * factors[1]

    @torch.no_grad()
    def sample(
        self,
        num: int = 16,
        labels: ClassLabels | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | Condition | None = None,
        numbers: Sequence[int] | None = None,
        batch_size: int = 64,
        on_step: Callable[[int], object] | None = None,
        **how: Unpack[PlanArguments],
    ) -> Images:
        """`num` images, or those with these `numbers`; float B C H W in [-1, 1], on the CPU.

        `labels` are classes by name or index (one, several, a tensor, one-hot rows), a `prompt` one text or several,
        `conditions` values of other attributes by name: of each one, or as many as of the others, repeated as often as
        needed. What is not asked for is left out; of a request for nothing at all the classes come in turn.
        How they are drawn are the arguments of `plan`: steps, sampler, guidance, seed, ...
        Image i depends on (seed, i) alone, whatever the batch. `on_step` is called with 1 after each step of each
        batch. Raises RequestError for impossible requests, DivergedError for images that are not numbers.

        It goes start -> denoise -> decode, and whoever wants to enter elsewhere does the same by hand.
        """
        requested = self.prompts.request(labels, conditions, prompt)
        check_request(num, 1, "heun", batch_size)
        if numbers is not None and not len(numbers):
            raise RequestError("numbers", "names no image; leave it out")
        plan, images = self.plan(**how), []
        for batch in torch.as_tensor(range(num) if numbers is None else numbers).split(batch_size):
            start = self.start(batch.tolist(), plan)
            latents = self.denoise(
                start, requested.repeated(batch), plan, numbers=batch.tolist(), on_step=counted(on_step)
            )
            images.append(self.decode(latents))
        return torch.cat(images)

    def plan(
        self,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        sampler_options: Mapping[str, float] | None = None,
        guidance: float | Mapping[str, float] | Guidance | None = None,
        seed: int = 0,
        strength: float = 1.0,
        size: tuple[int, int] | None = None,
    ) -> SamplingPlan:
        """How latents are drawn, checked: RequestError for what the model cannot do.

        `steps` and `sampler` are the model's own where left out. `guidance` is a weight of classifier-free guidance,
        one for each condition by name, or what `checked_guidance` gives; 1 means none; left out it is 2 for a model
        that saw its conditions and none. `sampler_options` are those of SAMPLER_OPTIONS that the sampler takes.
        `strength` is that of img2img, the share of the steps that is left. `size` is the height and width of images of
        another size than trained, where the networks allow it.
        """
        grid = self.config.sampling
        steps, sampler = grid.steps if steps is None else steps, sampler or grid.sampler
        check_request(1, steps, sampler, seed=seed)
        if not isinstance(guidance, Guidance):
            guidance = checked_guidance(guidance, self.config.schema, self.config.trained_with_condition_dropout)
        if guidance.weight != 1 and SAMPLERS[grid.sampler].consistency:
            raise RequestError(
                "guidance", "of a model tuned for few steps is baked in (objective.guidance): leave it out"
            )
        options = checked_options(sampler, sampler_options or {}, self.config.denoiser.skip.kind, grid)
        sigmas = levels_of_strength(noise_levels(grid, steps, options), strength)
        return SamplingPlan(sampler, options, guidance, seed, sigmas, self.latent_shape(size), strength)

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """The shape of the latents of images of this height and width; RequestError if they do not fit the networks."""
        trained, factors = self.config.latent_shape, self.autoencoder.network.downsampling
        if size is None or size == self.image_shape[1:]:
            return trained
        asked, shape = format_size(size), self.autoencoder.latent_shape(size)
        if any(side < 1 or side % factor for side, factor in zip(size, factors, strict=True)):
            raise RequestError("size", f"{asked} is not divisible by {factors[0]}, the downsampling of the autoencoder")
        if self.denoiser.gaussian is not None or self.autoencoder.network.fixed_size is not None:
            part = "autoencoder" if self.denoiser.gaussian is None else "denoiser (its skip.kind gaussian)"
            raise RequestError("size", f"{asked} is not that of this {part}, {format_size(self.image_shape[1:])}")
        try:
            check_latent_shape(self.config.denoiser, shape)
        except ConfigError:
            latents = f"latents of {shape[1]} x {shape[2]}, which a {self.config.denoiser.network.kind} like this"
            raise RequestError("size", f"{asked} makes {latents} cannot take") from None
        return shape

    def noise(self, numbers: Sequence[int], plan: SamplingPlan) -> Latents:
        """The unit Gaussian noise of the images with these numbers, each of which depends on (seed, number) alone."""
        return starting_noise(plan.shape, numbers, plan.seed).to(self.device)

    def start(self, numbers: Sequence[int], plan: SamplingPlan, latents: Latents | None = None) -> Latents:
        """Noisy latents at the first level of the plan: noise alone, or latents of images and noise."""
        noise, first = self.noise(numbers, plan), plan.sigmas[0].item()
        if latents is None:
            return noisy_start(noise, first, sampler=plan.sampler, gaussian=self.denoiser.gaussian)
        return latents + first * noise

    @torch.no_grad()
    def denoise(
        self,
        noisy: Latents,
        condition: Condition,
        plan: SamplingPlan,
        *,
        numbers: Sequence[int] | None = None,
        on_step: OnStep | None = None,
    ) -> Latents:
        """The latents that noisy ones at the first level of the plan become.

        `numbers` (0, 1, ...) are those of the images, for samplers that draw noise on the way.
        """
        numbers = range(len(noisy)) if numbers is None else numbers
        return denoise_latents(
            self.guided(plan.guidance, condition.to(self.device)),
            noisy,
            noise=lambda step: step_noise(noisy.shape[1:], numbers, plan.seed, step).to(noisy.device),
            on_step=on_step,
            **self.sampler_arguments(plan),
        )

    def sampler_arguments(self, plan: SamplingPlan) -> dict[str, Any]:
        """What `denoise_latents` takes of a plan."""
        grid = {"sigmas": plan.sigmas, "sampler": plan.sampler, "options": plan.options}
        return {**grid, "gaussian": self.denoiser.gaussian}

    @torch.no_grad()
    def sample_latents(
        self,
        numbers: Sequence[int],
        condition: Condition,
        *,
        on_step: Callable[[int], object] | None = None,
        **how: Unpack[PlanArguments],
    ) -> Latents:
        """The latents of the images with these numbers, each of which depends on (seed, number) and its condition."""
        plan = self.plan(**how)
        return self.denoise(self.start(numbers, plan), condition, plan, numbers=numbers, on_step=counted(on_step))

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        """The latents of images, the modes of their posteriors; RequestError for another number of channels."""
        if images.ndim != 4 or images.shape[1] != self.image_shape[0]:
            raise RequestError(
                "image", f"of shape {list(images.shape)} is not a batch of {self.image_shape[0]} channels, B C H W"
            )
        return finite(self.autoencoder.encode(images.to(self.device)).mode()).float()

    @torch.no_grad()
    def decode(self, latents: Latents) -> Images:
        """The images of latents, in [-1, 1], on the CPU; DivergedError for images that are not numbers."""
        return finite(self.autoencoder.decode(latents).clamp(-1, 1)).cpu()

    def guided(self, guidance: float | Guidance, condition: Condition) -> Denoise:
        """The denoiser as a function of noisy latents and noise level alone, which is what samplers call."""
        if not isinstance(guidance, Guidance):
            guidance = ClassifierFreeGuidance(guidance)
        guided = guidance.around(self.called)
        return lambda noisy, sigma: guided(noisy, sigma, condition)
