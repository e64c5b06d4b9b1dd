"""The pipeline is called, moved, saved and offloaded as diffusers' own are: what applies of its common tests."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UNet2DModel,
)
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor

from ldm.autoencoder.saving import load
from ldm.errors import CheckpointError, ConfigError, DivergedError
from ldm.export.diffusers_pipeline import (
    AutoencoderModel,
    DenoiserModel,
    LatentDiffusionPipeline,
    save_pipeline,
    scheduler_of,
)
from ldm.pipeline import LatentDiffusion
from tests.support.diffusion_models import diffusion_model

STEPS = 3
OF_DIFFUSERS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return diffusion_model("kl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines with an autoencoder that diffusers knows, and with one that it does not."""
    found = {kind: tmp_path_factory.mktemp(kind) for kind in ("kl", "tiny")}
    for kind, folder in found.items():
        model = diffusion_model(kind)
        save_pipeline(folder, model.autoencoder, model.denoiser, model.config)
    return found


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["kl"]


@pytest.fixture(scope="module")
def shared(folder: Path) -> LatentDiffusionPipeline:
    """A pipeline that no test changes."""
    return opened(folder)


def opened(folder: Path, **options: Any) -> LatentDiffusionPipeline:
    """The pipeline of a folder, of the classes of this package."""
    own = "AutoencoderModel" in (folder / "model_index.json").read_text()
    vae = (AutoencoderModel if own else AutoencoderKL).from_pretrained(folder / "vae", **options)
    unet = DenoiserModel.from_pretrained(folder / "unet", **options)
    pipe = LatentDiffusionPipeline(vae=vae, unet=unet, scheduler=scheduler_of(unet.model_config.sampling))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(folder: Path) -> LatentDiffusionPipeline:
    return opened(folder)


def drawn(pipe: LatentDiffusionPipeline, *arguments: Any, **options: Any) -> Tensor:
    """Images as a tensor in [-1, 1]."""
    options = {"num_inference_steps": STEPS, "output_type": "pt", **options}
    images: Tensor = pipe(*arguments, **options).images
    return images * 2 - 1


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as refused:
        action()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---- calls


def test_images_are_those_of_the_library(shared: LatentDiffusionPipeline, model: LatentDiffusion) -> None:
    assert torch.allclose(drawn(shared, 4, seed=3), model.sample(4, steps=STEPS, seed=3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "labels",
    [
        *("square", 1, [1], (1,), ["square"], ["1"], torch.tensor(1), torch.tensor([1]), np.int64(1), np.array([1])),
        *([torch.tensor(1)], [np.int64(1)], np.array("square"), torch.tensor([[0, 1]]), np.array([[0.0, 1.0]])),
    ],
    ids=lambda labels: f"{type(labels).__name__} {labels}",
)
def test_a_label_of_any_kind_is_one_class(shared: LatentDiffusionPipeline, model: LatentDiffusion, labels: Any) -> None:
    """`labels="cat"` was read as c, a, t; a number, a tensor and an array ended in errors of Python."""
    assert model.config.schema.names(labels) == ["square"]
    assert shared(class_labels=labels, num_inference_steps=1, output_type="latent").images.shape == (1, 2, 8, 8)


def test_the_names_of_diffusers_for_labels_and_numbers_are_understood(shared: LatentDiffusionPipeline) -> None:
    images = drawn(shared, 2, ["square", "disc"])
    for options in ({"class_labels": [1, 0]}, {"class_labels": torch.tensor([1, 0]), "batch_size": 2}):
        assert drawn(shared, **options).equal(images)
    message = refusal(lambda: shared(2, labels=[0], class_labels=[0]))
    assert message == "labels and class_labels are two names for the same: give one of them"


def test_several_images_of_each_label_come_one_after_the_other(shared: LatentDiffusionPipeline) -> None:
    images = drawn(shared, class_labels=["square", "disc"], num_images_per_prompt=2)
    assert images.equal(drawn(shared, class_labels=[1, 1, 0, 0])) and len(images) == 4


def test_a_batch_is_consistent_with_single_images(shared: LatentDiffusionPipeline) -> None:
    images = drawn(shared, 3, class_labels="disc")
    assert torch.allclose(drawn(shared, 1, class_labels="disc"), images[:1], rtol=0, atol=1e-4)


def test_generators_latents_and_seeds_give_the_noise_that_they_say(shared: LatentDiffusionPipeline) -> None:
    one = drawn(shared, 2, generator=torch.Generator().manual_seed(5))
    assert drawn(shared, 2, generator=torch.Generator().manual_seed(5)).equal(one)
    noise = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    assert drawn(shared, 2, latents=noise).equal(one) and drawn(shared, latents=noise).equal(one)
    several = drawn(shared, 2, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)])
    second = drawn(shared, 1, class_labels=[1], generator=torch.Generator().manual_seed(2))
    assert torch.allclose(several[1:], second, rtol=0, atol=1e-4) and not several.equal(one)
    stochastic = {"sampler": "euler_ancestral"}
    first, again = (drawn(shared, 2, generator=torch.Generator().manual_seed(5), **stochastic) for _ in range(2))
    assert first.equal(again) and not first.equal(drawn(shared, 2, latents=noise, **stochastic))


def test_outputs_of_every_type_are_the_same_images(shared: LatentDiffusionPipeline) -> None:
    pil = shared(2, num_inference_steps=STEPS).images
    pt, array, latents = (
        shared(2, num_inference_steps=STEPS, output_type=kind).images for kind in ("pt", "np", "latent")
    )
    assert all(isinstance(image, Image.Image) for image in pil) and latents.shape == (2, 2, 8, 8)
    assert pt.min() >= 0 and pt.max() <= 1 and np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert np.abs(np.stack([np.asarray(image) for image in pil]) - 255 * array).max() <= 0.51
    (in_tuple,) = shared(2, num_inference_steps=STEPS, output_type="pt", return_dict=False)
    assert in_tuple.equal(pt)


def test_a_callback_sees_every_step_and_may_replace_the_latents(shared: LatentDiffusionPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def callback(given: Any, step: int, sigma: Tensor, values: dict[str, Any]) -> dict[str, Any]:
        assert given is shared and list(values) == ["latents"]
        seen.append((step, float(sigma)))
        return {"latents": torch.zeros_like(values["latents"])} if step == STEPS - 1 else values

    latents = shared(
        2,
        num_inference_steps=STEPS,
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents"],
    ).images
    assert latents.eq(0).all()
    assert [step for step, _ in seen] == [0, 1, 2] and seen[0][1] == 20.0


def test_a_request_that_cannot_be_met_is_refused_in_the_words_of_diffusers(shared: LatentDiffusionPipeline) -> None:
    """Messages spoke of --labels and --sampler to somebody who writes Python."""
    for options, words in (
        ({"class_labels": "circle"}, "class_labels circle is not a class of this model: disc, square"),
        ({"class_labels": 1.5}, "class_labels 1.5 is not a class"),
        ({"class_labels": torch.zeros(2, 3)}, "class_labels of shape [2, 3] are not one-hot rows of 2"),
        ({"num_images": 0}, "num_images 0 must be at least 1"),
        (
            {"num_images": ["cat"]},
            "num_images ['cat'] is no number of images; classes are given as class_labels, texts as prompt",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps 0 must be at least 1"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan must be a finite number"),
        ({"sampler": "dpm"}, "sampler dpm is not one of euler"),
        ({"output_type": "jpeg"}, "output_type jpeg is not one of pil, np, pt, latent"),
        ({"latents": torch.zeros(2, 3, 8, 8)}, "latents of shape [2, 3, 8, 8] should be of [2, 2, 8, 8]"),
        ({"num_images": 3, "generator": [torch.Generator()]}, "generator is a list of 1 for 3 images"),
        ({"generator": 42}, "generator 42 is no torch.Generator; a number is given as seed"),
        ({"guidance_scale": "2"}, "guidance_scale '2' is not a number"),
        ({"num_inference_steps": 2.5}, "num_inference_steps 2.5 is not an integer"),
        ({"seed": None}, "seed None is not an integer"),
        ({"callback_on_step_end_tensor_inputs": ["prompt"]}, "callback_on_step_end_tensor_inputs prompt"),
    ):
        assert refusal(lambda options=options: shared(**options)).startswith(words)


def test_samples_that_are_not_numbers_are_no_black_pictures(
    pipe: LatentDiffusionPipeline, model: LatentDiffusion
) -> None:
    for sample in (lambda: pipe(2, guidance_scale=1e30), lambda: model.sample(2, guidance=1e30)):
        with pytest.raises(DivergedError, match="not finite numbers") as refused:
            sample()
        assert refused.value.exit_code == 5
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias[0] = torch.nan
    with pytest.raises(DivergedError):
        pipe(1, num_inference_steps=1)


# ---- schedulers


def karras(kind: Any, **options: Any) -> Any:
    """A scheduler of diffusers along the grid of the model."""
    return kind(sigma_min=0.01, sigma_max=20.0, **options)


@OF_DIFFUSERS
def test_a_scheduler_put_into_the_place_of_ours_does_the_sampling(pipe: LatentDiffusionPipeline) -> None:
    """It was decoration: four schedulers drew the same pictures. Ours and diffusers' of one method agree."""
    expected = {sampler: drawn(pipe, 3, sampler=sampler, num_inference_steps=12) for sampler in ("euler", "heun")}
    discrete = {"use_karras_sigmas": True}
    for kind, options, sampler in (
        (EDMEulerScheduler, {"sigma_data": 1.0}, "euler"),
        (EDMEulerScheduler, {"sigma_data": 0.5, "prediction_type": "v_prediction"}, "euler"),
        (EulerDiscreteScheduler, {**discrete}, "euler"),
        (EulerDiscreteScheduler, {**discrete, "prediction_type": "sample"}, "euler"),
        (EulerDiscreteScheduler, {**discrete, "prediction_type": "v_prediction"}, "euler"),
    ):
        pipe.scheduler = karras(kind, **options)
        assert torch.allclose(drawn(pipe, 3, num_inference_steps=12), expected[sampler], rtol=0, atol=2e-3), options
        assert drawn(pipe, 3, sampler="heun", num_inference_steps=12).equal(expected["heun"])
    for scheduler in (
        HeunDiscreteScheduler(use_karras_sigmas=True),
        EDMDPMSolverMultistepScheduler.from_config(scheduler_of(pipe.unet.model_config.sampling).config),
    ):
        pipe.scheduler = scheduler
        images = drawn(pipe, 3, num_inference_steps=12)
        assert images.isfinite().all() and not images.equal(expected["heun"])


@OF_DIFFUSERS
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_scheduler_without_noise_levels_is_refused_in_words(pipe: LatentDiffusionPipeline, kind: Any) -> None:
    pipe.scheduler = kind()
    message = refusal(lambda: pipe(1, num_inference_steps=2))
    assert kind.__name__ in message and "EulerDiscreteScheduler" in message and "choose a sampler" in message


def test_no_scheduler_is_refused_in_words(pipe: LatentDiffusionPipeline) -> None:
    """It ended in an AttributeError of NoneType."""
    pipe.scheduler = None
    assert "choose a sampler" in refusal(lambda: pipe(1, num_inference_steps=2))


def test_a_timestep_in_place_of_a_noise_level_is_refused(pipe: LatentDiffusionPipeline) -> None:
    """`pipe.unet(scheduler.scale_model_input(x, t), t, labels)` returned NaN without an error."""
    scheduler, x = pipe.scheduler, torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(4)
    for sigma in (scheduler.timesteps[-1], 0, -1.5, torch.tensor([1.0, 0.0]), torch.tensor(torch.nan)):
        assert "is a noise level" in refusal(lambda sigma=sigma: pipe.unet(x, sigma, [0, 1]))
    with torch.no_grad():
        expected = pipe.unet(x, torch.tensor([2.0, 2.0]), torch.tensor([1, 1]))
        for sigma, labels in ((2, "square"), (2.0, 1), (torch.tensor(2.0), ["square", 1]), (torch.tensor([2.0]), [1])):
            assert pipe.unet(x, sigma, labels).equal(expected)
        assert pipe.unet(x, 2.0, torch.tensor([-1, -1])).equal(pipe.unet(x, 2.0))
    assert "3 noise levels for 2 samples" in refusal(lambda: pipe.unet(x, torch.ones(3)))
    assert "3 class_labels for 2 samples" in refusal(lambda: pipe.unet(x, 1.0, [0, 1, 0]))


@pytest.mark.parametrize("label", [2, 3, -2])
def test_a_class_that_there_is_not_was_taken_for_another(pipe: LatentDiffusionPipeline, label: int) -> None:
    """Of two classes 2 was none at all, 3 the first, and -2 the last."""
    x = torch.zeros(2, 2, 8, 8)
    assert "are not all of this model" in refusal(lambda: pipe.unet(x, 1.0, torch.tensor([label, 0])))


# ---- precision


@pytest.mark.parametrize("kind", ["kl", "tiny"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_pipeline_in_another_precision_draws_nearly_the_same(
    kind: str, dtype: torch.dtype, folders: dict[str, Path]
) -> None:
    """It loaded, and died in the first convolution."""
    loaded, moved = opened(folders[kind], torch_dtype=dtype), opened(folders[kind])
    expected = drawn(moved, 2)
    images = drawn(loaded, 2)
    assert loaded.unet.dtype == loaded.vae.dtype == dtype
    assert drawn(moved.to(dtype, silence_dtype_warnings=True), 2).equal(images)
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.15, torch.float64: 1e-3}[dtype]
    assert images.isfinite().all() and (images - expected).abs().max() < tolerance
    assert (diffusion_model(kind).to(dtype).sample(2, steps=STEPS) - expected).abs().max() < tolerance


def test_a_precision_given_to_from_pretrained_is_not_warned_about(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """diffusers said to give the precision to from_pretrained, which was just what had been done."""
    with caplog.at_level("WARNING", logger="diffusers"):
        logging.getLogger("diffusers").addHandler(caplog.handler)
        opened(folders["tiny"], torch_dtype=torch.bfloat16)
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert "from_pretrained" not in caplog.text


# ---- files


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_saved_in_half_precision_as_a_variant_it_opens_as_that_variant(kind: str, tmp_path: Path) -> None:
    model = diffusion_model(kind)
    save_pipeline(tmp_path, model.autoencoder, model.denoiser, model.config, dtype=torch.float16, variant="fp16")
    names = {file.name for file in tmp_path.rglob("*.safetensors")}
    stock = {"diffusion_pytorch_model.fp16.safetensors"} if kind == "kl" else set()
    assert names == {"model.fp16.safetensors"} | stock
    half = opened(tmp_path, variant="fp16")
    images = drawn(half, 2)
    assert (images - model.sample(2, steps=STEPS)).abs().max() < 0.02
    half.save_pretrained(tmp_path / "again", variant="fp16")
    assert {file.name for file in (tmp_path / "again").rglob("*.safetensors")} == names
    assert drawn(opened(tmp_path / "again", variant="fp16"), 2).equal(images)
    unet = tmp_path / "again" / "unet"
    assert DenoiserModel.from_pretrained(unet).dtype == torch.float32, "the only variant that there is"
    with pytest.raises(CheckpointError, match=r"has no model\.bf16\.safetensors; weights there: model\.fp16"):
        DenoiserModel.from_pretrained(unet, variant="bf16")


def test_diffusers_arguments_of_saving_are_taken_or_refused(pipe: LatentDiffusionPipeline, tmp_path: Path) -> None:
    """All were a TypeError, so that push_to_hub, which gives them, could not be called."""
    pipe.save_pretrained(tmp_path / "run", safe_serialization=True, variant=None, push_to_hub=False)
    assert drawn(opened(tmp_path / "run"), 2).equal(drawn(pipe, 2))
    for option in ({"safe_serialization": False}, {"max_shard_size": "1MB"}):
        assert "is not possible" in refusal(lambda option=option: pipe.save_pretrained(tmp_path / "no", **option))
    assert not (tmp_path / "no").exists()
    assert "quantization_config" in refusal(
        lambda: DenoiserModel.from_pretrained(tmp_path / "run" / "unet", quantization_config={})
    )


def test_what_a_push_to_the_hub_uploads_opens_again(
    pipe: LatentDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline: the upload itself is replaced by a look at the folder that would be sent."""
    sent: list[Tensor] = []

    def upload(_: Any, folder: str, *__: Any, **___: Any) -> None:
        sent.append(drawn(opened(Path(folder)), 2))

    hub = "diffusers.utils.hub_utils"
    monkeypatch.setattr(f"{hub}.create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(f"{hub}.load_or_create_model_card", lambda *_, **__: ModelCard("---\n{}\n---\n"))
    monkeypatch.setattr(type(pipe), "_upload_folder", upload)
    pipe.push_to_hub("somebody/something")
    assert len(sent) == 1 and sent[0].equal(drawn(pipe, 2))


@OF_DIFFUSERS
def test_a_swapped_scheduler_is_saved_and_used_again(pipe: LatentDiffusionPipeline, tmp_path: Path) -> None:
    pipe.scheduler = EulerDiscreteScheduler(use_karras_sigmas=True)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    scheduler = EulerDiscreteScheduler.from_pretrained(tmp_path / "scheduler")
    again = LatentDiffusionPipeline(**{**opened(tmp_path).components, "scheduler": scheduler})
    again.set_progress_bar_config(disable=True)
    assert drawn(again, 2).equal(drawn(pipe, 2))


def test_saving_again_leaves_one_file_of_code_and_nothing_of_a_person_is_touched(
    pipe: LatentDiffusionPipeline, tmp_path: Path
) -> None:
    (tmp_path / "pipeline_00000000.py").write_text("# Written out from latent-diffusion-trainer 0.0.1")
    (tmp_path / "pipeline.py").write_text("from ldm.export.diffusers_pipeline import LatentDiffusionPipeline\n")
    (tmp_path / "pipeline_mine____.py").write_text("mine = True\n")
    pipe.save_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path)
    names = sorted(file.name for file in tmp_path.glob("*.py"))
    assert len(names) == 2 and "pipeline_mine____.py" in names and "pipeline_00000000.py" not in names


@pytest.mark.parametrize("kind", [AutoencoderKL, UNet2DModel])
def test_a_stock_class_does_not_fill_our_folders_with_random_weights(kind: Any, folders: dict[str, Path]) -> None:
    """Both succeeded, with a warning."""
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        kind.from_pretrained(folders["tiny"] / ("vae" if kind is AutoencoderKL else "unet"))


def test_folders_whose_weights_have_the_former_name_are_still_read(tmp_path: Path) -> None:
    model = diffusion_model("tiny")
    save_pipeline(tmp_path, model.autoencoder, model.denoiser, model.config)
    for part in ("vae", "unet"):
        (tmp_path / part / "model.safetensors").rename(tmp_path / part / "diffusion_pytorch_model.safetensors")
    assert LatentDiffusion.load(tmp_path).sample(2, steps=1).equal(model.sample(2, steps=1))
    assert load(tmp_path / "vae").latent_std.equal(model.autoencoder.latent_std)


def test_the_config_of_the_vae_says_the_size_of_its_images(folder: Path) -> None:
    """diffusers cuts its tiles by it, and it was 32 whatever the size."""
    assert json.loads((folder / "vae" / "config.json").read_text())["sample_size"] == 16


# ---- memory


def test_the_vae_decodes_as_its_user_set_it(pipe: LatentDiffusionPipeline) -> None:
    """The pipeline went around vae.decode, so that tiling, slicing and hooks did nothing."""
    calls: list[int] = []
    pipe.vae.decoder.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    images = drawn(pipe, 3)
    assert calls == [3]
    pipe.vae.enable_slicing()
    assert torch.allclose(drawn(pipe, 3), images, rtol=0, atol=1e-5) and calls == [3, 1, 1, 1]
    pipe.vae.disable_slicing()
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 8, 4
    assert not torch.allclose(drawn(pipe, 3), images, rtol=0, atol=1e-5) and len(calls) > 5


def test_a_foreign_vae_is_given_latents_at_its_own_scale(pipe: LatentDiffusionPipeline) -> None:
    images = drawn(pipe, 2)
    with torch.no_grad():
        pipe.vae.post_quant_conv.weight *= 0.5
    pipe.vae.register_to_config(scaling_factor=0.5)
    assert torch.allclose(drawn(pipe, 2), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_moves_the_components_and_changes_no_image(
    kind: str, offload: str, folders: dict[str, Path]
) -> None:
    """Whole models also from the CPU to the CPU, where the same hooks fire."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    if device.type == "cpu" and offload == "enable_sequential_cpu_offload":
        pytest.skip("accelerate offloads layer by layer only to an accelerator: to the CPU, a plain Linear fails too")
    pipe = opened(folders[kind])
    images = drawn(pipe, 2)
    getattr(pipe, offload)(device=device)
    for _ in range(2):
        assert torch.allclose(drawn(pipe, 2), images, rtol=0, atol=1e-5)


def test_a_pipeline_of_the_same_components_draws_the_same(pipe: LatentDiffusionPipeline) -> None:
    again = LatentDiffusionPipeline(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert drawn(again, 2).equal(drawn(pipe, 2))
