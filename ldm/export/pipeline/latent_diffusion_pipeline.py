"""The pipeline class: class labels to images, called as diffusers' DDPMPipeline and DiTPipeline are."""

import json
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
    __version__,
)
from torch import Tensor

from ldm.autoencoder.formats.diffusers import statistics
from ldm.batch import ClassLabels, Condition
from ldm.component.code_file import own_code
from ldm.diffusion.guidance import Guidance, checked_guidance
from ldm.diffusion.samplers import Denoise, OnStep
from ldm.diffusion.samplers.options import checked_options
from ldm.diffusion.sampling import check_request, finite, noise_levels, sample_latents
from ldm.errors import ConfigError, RequestError
from ldm.export.pipeline.noise_source import Generators, NoiseSource
from ldm.export.pipeline.scheduler_sampling import is_own, sample_by_scheduler, timesteps_of
from ldm.pictures import picture
from ldm.shapes import Images, Latents, to_uint8

StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]  # diffusers' callback_on_step_end

AT_A_TIME = 64  # images
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
SCHEDULER = "scheduler"  # the name, among the samplers, of whatever pipe.scheduler does
OUR_NAMES = {
    "num": "num_images",
    "labels": "class_labels",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
}


class LatentDiffusionPipeline(DiffusionPipeline):
    """Class labels to images; image i of a seed depends on (seed, i) alone.

    As it comes, `scheduler` describes the noise levels, and a sampler of ours samples along them. Another scheduler in
    its place does the sampling itself.

    Args of a call:
        num_images: how many; DDPMPipeline's `batch_size` is the same. If neither is given, as many as there are
            labels, or latents, or 16.
        labels: classes by name or index: one, several, an array or a tensor, one-hot rows; repeated as often as
            needed; None takes all classes in turn. DiTPipeline's `class_labels` are the same.
        num_images_per_prompt: images of each of these, one after the other.
        guidance_scale: of classifier-free guidance; 1 means none, None 2 where the model knows classes.
        sampler: one of ours, or "scheduler" for what pipe.scheduler does; None takes heun, unless another scheduler
            than the model's own was put into its place.
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
        batch_size: int | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 18,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        seed: int = 0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images, by default the same as LatentDiffusion.sample gives for a seed. The class explains the arguments."""
        config = self.unet.model_config
        if sampler is None:
            sampler = "heun" if self.scheduler is self.own_scheduler else SCHEDULER
        try:
            num_images = either("num_images", num_images, "batch_size", batch_size)
            labels = either("labels", labels, "class_labels", class_labels)
            requested, classes = config.schema.request(labels), len(config.schema.choices)
            named = None if labels is None else len(config.schema.indices(labels))
            count = number_of_images(num_images, named, latents, num_images_per_prompt)
            check_request(count, num_inference_steps, "heun" if sampler == SCHEDULER else sampler, seed=seed)
            check_call(output_type, callback_on_step_end_tensor_inputs)
            if sampler != SCHEDULER:
                checked_options(sampler, {}, config.denoiser, config.sampling)
            guidance = checked_guidance(guidance_scale, classes, config.trained_with_condition_dropout)
            condition = requested.repeated(torch.arange(count) // num_images_per_prompt)
            noise = NoiseSource((count, *config.latent_shape), self._execution_device, seed, generator)
            start, results = noise.start(latents), []
            with self.progress_bar(total=self.total_steps(count, num_inference_steps, sampler)) as bar:
                for numbers in torch.arange(count).split(AT_A_TIME):
                    denoise = self.guided(guidance, condition[numbers])
                    on_step = self.step_reporter(callback_on_step_end, num_inference_steps, sampler, bar.update)
                    noisy = self.sampled(
                        denoise, start[numbers], noise.of(numbers), num_inference_steps, sampler, on_step
                    )
                    results.append(finite(noisy if output_type == "latent" else self.decoded(noisy)).cpu())
        except Exception as error:
            # By its name: the denoiser's file has a RequestError of its own where the package is not installed.
            if type(error).__name__ != RequestError.__name__:
                raise
            refusal: Any = error
            raise RequestError.renamed(refusal, OUR_NAMES) from None
        self.maybe_free_model_hooks()
        images = converted(torch.cat(results), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def guided(self, guidance: Guidance, condition: Condition) -> Denoise:
        """The denoiser as a function of noisy latents and noise level alone."""

        def denoise(noisy: Latents, sigma: Tensor, condition: Condition | None) -> Latents:
            labels = next(iter(condition.values.values()), None) if condition else None
            denoised: Latents = self.unet(noisy, sigma, labels)
            return denoised

        guided = guidance.around(denoise)
        return lambda noisy, sigma: guided(noisy, sigma, condition)

    def sampled(
        self, denoise: Denoise, start: Latents, noise: NoiseSource, steps: int, sampler: str, on_step: OnStep
    ) -> Latents:
        """The latents that a sampler, or pipe.scheduler, makes of unit noise."""
        if sampler == SCHEDULER:
            return sample_by_scheduler(
                denoise, start, self.scheduler, steps, generator=noise.generator, on_step=on_step
            )
        return sample_latents(
            denoise,
            start,
            self.sigmas(steps),
            sampler=sampler,
            gaussian=self.unet.model.gaussian,
            noise=noise.step,
            on_step=on_step,
        )

    def sigmas(self, steps: int) -> Tensor:
        """The noise levels of our samplers."""
        return noise_levels(self.unet.model_config.sampling, steps, {})

    def decoded(self, latents: Latents) -> Images:
        """The images of standardized latents, by `vae.decode`, whatever scaling and shift its config states."""
        config = self.vae.config
        if "scaling_factor" in config:
            mean, std = (each.to(latents).view(-1, 1, 1) for each in statistics(config))
            latents = latents * std + mean
        images: Images = self.vae.decode(latents.to(self.vae.dtype)).sample
        return images.float().clamp(-1, 1)

    def total_steps(self, count: int, steps: int, sampler: str) -> int:
        """How often the progress bar moves."""
        if sampler == SCHEDULER:
            steps = len(timesteps_of(self.scheduler, steps, self._execution_device))
        return steps * -(-count // AT_A_TIME)

    def step_reporter(
        self, callback: StepCallback | None, steps: int, sampler: str, advance: Callable[[int], object]
    ) -> OnStep:
        """What is done after each step: the progress bar moves, and diffusers' callback may replace the latents."""
        levels = self.sigmas(steps)

        def on_step(step: int, noisy: Latents) -> Latents | None:
            advance(1)
            if callback is None:
                return None
            level = self.scheduler.timesteps[step - 1] if sampler == SCHEDULER else levels[step - 1]
            return (callback(self, step - 1, level, {"latents": noisy}) or {}).get("latents")

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


def either(name: str, value: Any, other_name: str, other: Any) -> Any:
    """The one of two arguments that is given: they are two names for the same."""
    if value is not None and other is not None:
        raise ConfigError(f"{name} and {other_name} are two names for the same: give one of them")
    return other if value is None else value


def number_of_images(num_images: int | None, labels: int | None, latents: Tensor | None, each: int) -> int:
    """How many images are asked for, by their number or that of the labels or latents; `each` of them several times."""
    if num_images is not None and not isinstance(num_images, Integral):
        raise RequestError("num", f"{num_images!r} is no number of images; classes are given as class_labels")
    if not isinstance(each, Integral) or each < 1:
        raise RequestError("num_images_per_prompt", f"{each} must be a number, at least 1")
    if num_images is not None:
        return int(num_images) * int(each)
    if labels is not None:
        return labels * int(each)
    return 16 * int(each) if latents is None else len(latents)


def check_call(output_type: str, tensor_inputs: Sequence[str]) -> None:
    """Raise RequestError for what is no kind of output, or no tensor for a callback."""
    if output_type not in OUTPUT_TYPES:
        raise RequestError("output_type", f"{output_type} is not one of {', '.join(OUTPUT_TYPES)}")
    if unknown := set(tensor_inputs) - set(LatentDiffusionPipeline._callback_tensor_inputs):
        raise RequestError("callback_on_step_end_tensor_inputs", f"{', '.join(sorted(unknown))}: there is only latents")


def converted(images: Tensor, output_type: str) -> Any:
    """Images in [-1, 1] as the kind of output that is asked for; latents as they are."""
    if output_type == "latent":
        return images
    if output_type == "pil":
        return [picture(image) for image in to_uint8(images)]
    unit = images / 2 + 0.5
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).numpy()


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
