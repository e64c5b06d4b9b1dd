"""The pipeline starts from images and masks as diffusers' img2img and inpainting pipelines do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.editing.image_to_image import image_to_image, inpaint
from ldm.errors import ConfigError
from ldm.export.diffusers_pipeline import AutoencoderModel, DenoiserModel, LatentDiffusionPipeline, scheduler_of
from ldm.pipeline import LatentDiffusion
from ldm.shapes import to_float
from tests.support.diffusion_models import diffusion_model

STEPS = 4


@pytest.fixture(scope="module", params=["kl", "tiny"])
def model(request: pytest.FixtureRequest) -> LatentDiffusion:
    return diffusion_model(request.param)


@pytest.fixture(scope="module")
def pipe(model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusionPipeline:
    folder = tmp_path_factory.mktemp("vae") / "vae"
    model.autoencoder.save(folder)
    kind = AutoencoderKL if model.autoencoder.is_autoencoder_kl else AutoencoderModel
    unet = DenoiserModel.around(model.denoiser, model.config)
    found = LatentDiffusionPipeline(kind.from_pretrained(folder), unet, scheduler_of(model.config.sampling))
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def hole() -> np.ndarray:
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:12, 6:14] = 255
    return mask


def drawn(pipe: LatentDiffusionPipeline, **options: Any) -> Tensor:
    images: Tensor = pipe(num_inference_steps=STEPS, output_type="pt", **options).images
    return images * 2 - 1


def test_images_started_from_a_picture_an_array_or_a_tensor_are_those_of_the_library(
    pipe: LatentDiffusionPipeline, model: LatentDiffusion, photo: np.ndarray
) -> None:
    tensor = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    plan = model.plan(steps=STEPS, strength=0.5, guidance=3.0)
    images = to_float(torch.from_numpy(photo).permute(2, 0, 1)[None]).expand(2, -1, -1, -1)
    expected = image_to_image(model, images, model.config.schema.request(["square"] * 2), plan)
    for given in (Image.fromarray(photo), photo / 255, tensor, [Image.fromarray(photo)] * 2):
        options = {"image": given, "strength": 0.5, "guidance_scale": 3.0, "class_labels": ["square"] * 2}
        torch.testing.assert_close(drawn(pipe, **options), expected, rtol=0, atol=1e-4)
    plain = image_to_image(
        model, images[:1], model.config.schema.request([0]).null(), model.plan(steps=STEPS, strength=0.5, guidance=1)
    )
    torch.testing.assert_close(drawn(pipe, image=Image.fromarray(photo), strength=0.5), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "each", "rows", "columns"),
    [
        (["disc", "square", "disc", "disc"], 1, [0, 1, 0, 1], [0, 1, 0, 0]),  # indices of images, and of classes
        ("square", 1, [0, 1], [1, 1]),
        (["disc", "square"], 2, [0, 0, 1, 1], [0, 0, 1, 1]),
    ],
    ids=["several labels of each image", "one label of all images", "several images of each label"],
)
def test_several_labels_or_copies_of_an_image_were_refused(
    pipe: LatentDiffusionPipeline,
    model: LatentDiffusion,
    labels: Any,
    each: int,
    rows: list[int],
    columns: list[int],
) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plan = model.plan(steps=STEPS, strength=0.5, guidance=3.0)
    expected = image_to_image(model, images[rows] * 2 - 1, model.config.schema.request(columns), plan)
    options: dict[str, Any] = {"class_labels": labels, "num_images_per_prompt": each, "guidance_scale": 3.0}
    found = drawn(pipe, image=images, strength=0.5, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_mask_keeps_the_pixels_of_a_picture_and_draws_what_the_library_draws(
    pipe: LatentDiffusionPipeline, model: LatentDiffusion, photo: np.ndarray
) -> None:
    pictures = pipe(
        1, image=Image.fromarray(photo), mask_image=Image.fromarray(hole()), num_inference_steps=STEPS
    ).images
    difference = np.abs(np.asarray(pictures[0]).astype(int) - photo).max(2)
    assert difference[hole() == 0].max() == 0 and difference[hole() > 0].mean() > 3
    hidden = torch.from_numpy(hole() > 0)[None, None]
    images = to_float(torch.from_numpy(photo).permute(2, 0, 1)[None]).expand(3, -1, -1, -1)
    options = {"sampler": "ddim", "sampler_options": {"eta": 0.7}}
    plan = model.plan(steps=STEPS, strength=0.75, guidance=1, **options)
    expected = inpaint(model, images, hidden, model.config.schema.request([1] * 3), plan, resamplings=2)
    given = {"image": Image.fromarray(photo), "mask_image": hidden.float(), "strength": 0.75, "resamplings": 2}
    found = drawn(pipe, class_labels=[1] * 3, guidance_scale=1.0, **options, **given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_guidance_interval_rescale_and_sampler_options_were_not_to_be_had(
    pipe: LatentDiffusionPipeline, model: LatentDiffusion
) -> None:
    guidance = ClassifierFreeGuidance(3.0, interval=(0.3, 5.0), rescale=0.5)
    options: dict[str, Any] = {"sampler": "heun_churn", "sampler_options": {"churn": 2.0}}
    expected = model.sample(2, steps=STEPS, guidance=guidance, **options)
    found = drawn(pipe, num_images=2, guidance_scale=3.0, guidance_interval=(0.3, 5.0), guidance_rescale=0.5, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 0.5}, "strength is of an image, and there is none"),
        ({"mask_image": torch.ones(1, 1, 16, 16)}, "mask_image is of an image, and there is none"),
        ({"image": torch.zeros(1, 1, 16, 16)}, "image of shape [1, 1, 16, 16] should be of ['batch', 3, 16, 16]"),
        ({"image": np.full((16, 16, 3), 255, dtype=np.uint8)}, "image holds numbers outside [0, 1]"),
        (
            {"image": torch.zeros(3, 3, 16, 16), "num_images": 2},
            "image has 3 images for 2: give 1, a divisor of that, or one for each",
        ),
        ({"image": torch.zeros(3, 3, 16, 16), "labels": [0, 1]}, "image has 3 images for 2 labels or prompts"),
        ({"image": torch.zeros(1, 3, 16, 16), "strength": 2}, "strength 2 must be above 0 and at most 1"),
        (
            {"image": torch.zeros(1, 3, 16, 16), "mask_image": torch.ones(1, 1, 8, 8)},
            "mask_image of shape [1, 1, 8, 8]",
        ),
        ({"image": torch.zeros(1, 3, 16, 16), "mask_image": torch.zeros(1, 1, 16, 16)}, "mask_image hides nothing"),
        ({"image": torch.zeros(1, 3, 16, 16), "sampler": "scheduler"}, "image needs a sampler of ours"),
        ({"sampler_options": {"eta": 1.0}}, "eta is an option of ddim, dpm++2m_sde, and not of heun"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_that_edits_nothing_is_refused_in_one_line(
    pipe: LatentDiffusionPipeline, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        drawn(pipe, **options)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_another_scheduler_still_samples_and_tells_its_timesteps(model: LatentDiffusion, pipe: Any) -> None:
    seen: list[float] = []

    def callback(given: Any, step: int, timestep: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(float(timestep))
        return {}

    before: Callable[..., Any] = pipe.scheduler
    pipe.scheduler = EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.01, sigma_max=20.0)
    try:
        images = drawn(pipe, num_images=1, callback_on_step_end=callback)
    finally:
        pipe.scheduler = before
    assert len(seen) == STEPS and seen == sorted(seen, reverse=True) and images.isfinite().all()
