"""Arguments of a call of the pipeline: two names for one thing, numbers of images, kinds of output."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from torch import Tensor

from ldm.errors import ConfigError, RequestError
from ldm.pictures import picture
from ldm.shapes import to_uint8

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
OUR_NAMES = {
    "num": "num_images",
    "labels": "class_labels",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "mask": "mask_image",
}


@contextmanager
def names_of_diffusers() -> Iterator[None]:
    """A request that cannot be met is refused in the words of diffusers."""
    try:
        yield
    except Exception as error:
        # By its name: the denoiser's file has a RequestError of its own where the package is not installed.
        if type(error).__name__ != RequestError.__name__:
            raise
        refusal: Any = error
        raise RequestError.renamed(refusal, OUR_NAMES) from None


def either(name: str, value: Any, other_name: str, other: Any) -> Any:
    """The one of two arguments that is given: they are two names for the same."""
    if value is not None and other is not None:
        raise ConfigError(f"{name} and {other_name} are two names for the same: give one of them")
    return other if value is None else value


def is_asked(asked: Mapping[str, Any]) -> bool:
    """Whether labels, prompt or conditions are given."""
    return any(each is not None for each in asked.values())


def number_of_images(num_images: int | None, labels: int | None, latents: Tensor | None, each: int) -> int:
    """How many images are asked for, by their number or that of the labels or latents; `each` of them several times."""
    if num_images is not None and not isinstance(num_images, Integral):
        raise RequestError(
            "num", f"{num_images!r} is no number of images; classes are given as class_labels, texts as prompt"
        )
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
    if unknown := set(tensor_inputs) - {"latents"}:
        raise RequestError("callback_on_step_end_tensor_inputs", f"{', '.join(sorted(unknown))}: there is only latents")


def converted(images: Tensor, output_type: str) -> Any:
    """Images in [-1, 1] as the kind of output that is asked for; latents as they are."""
    if output_type == "latent":
        return images
    if output_type == "pil":
        return [picture(image) for image in to_uint8(images)]
    unit = images / 2 + 0.5
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).numpy()
