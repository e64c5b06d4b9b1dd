"""The pipeline class: class labels, prompts and more to images, called as diffusers' DDPM and DiT pipelines are."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin, __version__
from torch import Tensor

from ldm.batch import ClassLabels, Condition
from ldm.component.code_file import own_code
from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.editing import levels_of_strength
from ldm.diffusion.guidance import Guidance, GuidanceInterval, checked_guidance
from ldm.diffusion.samplers import Denoise, OnStep
from ldm.diffusion.samplers.options import checked_options
from ldm.diffusion.sampling import check_request, finite, noise_levels
from ldm.editing.config import RESAMPLINGS
from ldm.errors import ConfigError, RequestError
from ldm.export.pipeline.call_arguments import (
    check_call,
    converted,
    either,
    is_asked,
    names_of_diffusers,
    number_of_images,
)
from ldm.export.pipeline.image_input import images_given
from ldm.export.pipeline.noise_source import Generators, NoiseSource
from ldm.export.pipeline.sampling_request import SCHEDULER, LevelsReporter, PipelineRequest, started_from, strength_of
from ldm.export.pipeline.scheduler_sampling import is_own, sample_by_scheduler, timesteps_of
from ldm.export.pipeline.vae_latents import decoded_by, encoded_by, image_shape_of
from ldm.shapes import Images, Latents

StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]  # diffusers' callback_on_step_end

AT_A_TIME = 64  # images


class LatentDiffusionPipeline(DiffusionPipeline):
    """Class labels, prompts and other conditions to images; image i of a seed depends on (seed, i) alone.

    As it comes, `scheduler` describes the noise levels, and a sampler of ours samples along them. Another scheduler in
    its place does the sampling itself.

    Args of a call:
        num_images: how many; DDPMPipeline's `batch_size` is the same. If neither is given, as many as there are
            labels, or latents, or 16.
        labels: classes by name or index: one, several, an array or a tensor, one-hot rows; repeated as often as
            needed; None takes all classes in turn. DiTPipeline's `class_labels` are the same.
        prompt: a text or several, for a model that was trained on captions.
        conditions: values of other conditions by name, of each one or as many as of the others.
        num_images_per_prompt: images of each of these, one after the other.
        num_inference_steps: noise levels; None takes as many as the model wants, 18 or, tuned for few steps, 2.
        guidance_scale: of classifier-free guidance; 1 means none, None 2 where the model knows conditions; or one for
            each condition by name.
        sampler: one of ours, or "scheduler" for what pipe.scheduler does; None takes that of the model, heun or, tuned
            for few steps, consistency, unless another scheduler than the model's own was put into its place.
        sampler_options: what the sampler takes, as {"eta": 0.5}.
        guidance_interval: the lowest and the highest noise level that are guided; None: all.
        guidance_rescale: share, 0 to 1, in which answers get back the standard deviation they have without guidance.
        image: start from these, pictures, arrays or tensors in [0, 1] (img2img): one, one for each label or prompt, or
            several that these take in turn; a single label or prompt is that of all. If no condition is asked for, all
            are left out, where the model can do without.
        strength: the share of the steps that is left to them, above 0 and at most 1; None 0.3, and 1 with a mask.
        mask_image: draw anew what is white in it, and keep the rest (inpainting).
        resamplings: how often every few steps are gone with a mask (RePaint).
        generator: one, or one per image, to draw the noise from instead of `seed`.
        latents: unit Gaussian noise to start from instead.
        output_type: pil; np or pt, which are in [0, 1]; or latent.
        callback_on_step_end: called as callback(pipe, step, sigma or timestep, {"latents": ...}) in each batch of
            64 images; the latents in what it returns take their place.
    """

    model_cpu_offload_seq = "unet->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(self, vae: ModelMixin, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.own_scheduler = scheduler if is_own(scheduler, unet.model_config.sampling) else None

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        labels: ClassLabels | None = None,
        *,
        class_labels: ClassLabels | None = None,
        prompt: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        guidance_interval: GuidanceInterval | None = None,
        guidance_rescale: float | None = None,
        sampler: str | None = None,
        sampler_options: Mapping[str, float] | None = None,
        image: Any = None,
        strength: float | None = None,
        mask_image: Any = None,
        resamplings: int = RESAMPLINGS,
        seed: int = 0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images, by default the same as LatentDiffusion.sample gives for a seed. The class explains the arguments."""
        with names_of_diffusers():
            labels = either("labels", labels, "class_labels", class_labels)
            asked = {"labels": labels, "conditions": conditions or None, "prompt": prompt}
            num_images = either("num_images", num_images, "batch_size", batch_size)
            check_call(output_type, callback_on_step_end_tensor_inputs)
            share = strength_of(strength, image, mask_image)
            config = self.unet.model_config
            steps = config.sampling.steps if num_inference_steps is None else num_inference_steps
            request = self.request(steps, sampler, sampler_options or {}, share)
            if image is not None:
                request = started_from(
                    request,
                    images_given(image, image_shape_of(self.vae, config.latent_shape)),
                    mask_image,
                    lambda images: encoded_by(self.vae, images, self._execution_device),
                    strength=share,
                    resamplings=resamplings,
                )
            condition, named = self.requested(asked, request)
            weight = 1.0 if guidance_scale is None and image is not None and not is_asked(asked) else guidance_scale
            guidance = self.checked(weight, guidance_interval, guidance_rescale)
            count = number_of_images(num_images, named, latents, num_images_per_prompt)
            check_request(count, 1, "heun", seed=seed)
            request = request.for_images(count, num_images_per_prompt)
            condition = condition.repeated(torch.arange(count) // num_images_per_prompt)
            noise = NoiseSource((count, *config.latent_shape), self._execution_device, seed, generator)
            on_step = partial(self.step_reporter, callback_on_step_end)
            drawn = self.drawn(request, guidance, condition, noise, latents, steps, output_type, on_step)
        self.maybe_free_model_hooks()
        images = converted(drawn, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def drawn(
        self,
        request: PipelineRequest,
        guidance: Guidance,
        condition: Condition,
        noise: NoiseSource,
        latents: Tensor | None,
        steps: int,
        output_type: str,
        on_step: Callable[..., OnStep],
    ) -> Tensor:
        """The images in [-1, 1], or their latents, 64 at a time."""
        start, results = noise.start(latents), []
        with self.progress_bar(total=self.total_steps(len(start), steps, request)) as bar:
            for rows in torch.arange(len(start)).split(AT_A_TIME):
                denoise, of_rows = self.guided(guidance, condition[rows]), request.of(rows)
                report = partial(on_step, bar.update)
                found = self.sampled(denoise, start[rows], noise.of(rows), of_rows, steps, report)
                results.append(finite(found if output_type == "latent" else self.finished(found, of_rows)).cpu())
        return torch.cat(results)

    def guided(self, guidance: Guidance, condition: Condition) -> Denoise:
        """The denoiser as a function of noisy latents and noise level alone."""

        def denoise(noisy: Latents, sigma: Tensor, condition: Condition | None) -> Latents:
            denoised: Latents = self.unet(noisy, sigma, condition=condition)
            return denoised

        guided = guidance.around(denoise)
        return lambda noisy, sigma: guided(noisy, sigma, condition)

    def sampled(
        self,
        denoise: Denoise,
        unit_noise: Latents,
        noise: NoiseSource,
        request: PipelineRequest,
        steps: int,
        report: LevelsReporter,
    ) -> Latents:
        """The latents that a sampler, or pipe.scheduler, makes of unit noise, and of images where there are some."""
        if request.sampler == SCHEDULER:
            timesteps, generator = timesteps_of(self.scheduler, steps, unit_noise.device), noise.generator
            on_step = report(timesteps)
            return sample_by_scheduler(denoise, unit_noise, self.scheduler, steps, generator=generator, on_step=on_step)
        return request.drawn(denoise, unit_noise, noise.step, self.unet.model.gaussian, report)

    def request(
        self, steps: int, sampler: str | None, options: Mapping[str, float], strength: float
    ) -> PipelineRequest:
        """The sampler that is asked for, checked, and its noise levels."""
        config, grid = self.unet.model_config, self.unet.model_config.sampling
        sampler = sampler or (grid.sampler if self.scheduler is self.own_scheduler else SCHEDULER)
        check_request(1, steps, grid.sampler if sampler == SCHEDULER else sampler)
        if sampler != SCHEDULER:
            options = checked_options(sampler, options, config.denoiser.skip.kind, grid)
        elif SAMPLERS[grid.sampler].consistency:
            raise RequestError(
                "scheduler",
                f"{type(self.scheduler).__name__} needs a denoiser, and this model was tuned for few steps: leave it as"
                f" it was, or give sampler {grid.sampler}",
            )
        elif options:
            raise RequestError("sampler_options", "are those of our samplers, and pipe.scheduler has its own config")
        sigmas = noise_levels(grid, steps, options)
        return PipelineRequest(sampler, options, levels_of_strength(sigmas, strength))

    def requested(self, asked: Mapping[str, Any], request: PipelineRequest) -> tuple[Condition, int | None]:
        """The conditions to repeat, and the number of images that they or images to start from ask for."""
        config = self.unet.model_config
        condition: Condition = self.unet.prompts.request(**asked)
        started = 0 if request.latents is None else len(request.latents)
        if is_asked(asked):
            return condition, request.images_for(condition.count)
        if not started:
            return condition, None
        if config.schema.attributes and config.trained_with_condition_dropout:
            condition = condition[[0]].null()
        return condition, started

    def checked(
        self, weight: float | Mapping[str, float] | None, interval: GuidanceInterval | None, rescale: float | None
    ) -> Guidance:
        """The guidance that is asked for."""
        config = self.unet.model_config
        dropout = config.trained_with_condition_dropout
        return checked_guidance(weight, config.schema, dropout, interval=interval, rescale=rescale)

    def decoded(self, latents: Latents) -> Images:
        """The images of latents, in [-1, 1]."""
        return decoded_by(self.vae, latents)

    def finished(self, latents: Latents, request: PipelineRequest) -> Images:
        """The images of latents, with what a mask keeps."""
        images = self.decoded(latents).cpu()
        return images if request.inpainting is None else request.inpainting.finished(images)

    def total_steps(self, count: int, steps: int, request: PipelineRequest) -> int:
        """How often the progress bar moves."""
        if request.sampler == SCHEDULER:
            steps = len(timesteps_of(self.scheduler, steps, self._execution_device))
        else:
            steps = (len(request.sigmas) - 1) * request.resamplings
        return steps * -(-count // AT_A_TIME)

    def step_reporter(self, callback: StepCallback | None, advance: Callable[[int], object], levels: Tensor) -> OnStep:
        """What is done after each step: the progress bar moves, and diffusers' callback may replace the latents."""

        def on_step(step: int, noisy: Latents) -> Latents | None:
            advance(1)
            if callback is None:
                return None
            return (callback(self, step - 1, levels[step - 1], {"latents": noisy}) or {}).get("latents")

        return on_step

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write a folder like that of a run, which opens again; with diffusers' options."""
        if not safe_serialization:
            raise ConfigError("safe_serialization False is not possible: weights are safetensors, and never pickles")
        if max_shard_size is not None:
            raise ConfigError("max_shard_size is not possible: the weights of a component are one file")
        super().save_pretrained(str(save_directory), variant=variant, push_to_hub=push_to_hub, **options)

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **_: Any) -> None:
        """Write `model_index.json` and the code of the pipeline, which diffusers by itself leaves out."""
        write_index(Path(save_directory), {name: class_of(part) for name, part in self.components.items()})


def class_of(component: Any) -> list[str]:
    """Where diffusers finds the class of a component: in itself, or in a file of the component's folder."""
    kind = type(getattr(component, "_orig_mod", component))  # of a compiled module, the module
    home = kind.__module__.partition(".")[0]
    return [home if home == "diffusers" else component.code().module, kind.__name__]


def write_index(folder: Path, classes: Mapping[str, list[str]]) -> None:
    """Write `model_index.json`, which names the class of each component, and the code of the pipeline."""
    place = "ldm.export.pipeline.latent_diffusion_pipeline:LatentDiffusionPipeline"
    code = own_code(place, "pipeline", {})
    index = {"_class_name": [code.module, LatentDiffusionPipeline.__name__], "_diffusers_version": __version__}
    folder.mkdir(parents=True, exist_ok=True)
    code.write(folder)
    (folder / "model_index.json").write_text(json.dumps({**index, **classes}, indent=2))
