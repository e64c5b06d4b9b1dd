"""A finished run as a function from seed, class and sampling options to images."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from ldm.batch import ClassAttribute, Condition, ConditionSchema
from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.model import create_denoiser, load_denoiser, save_denoiser
from ldm.diffusion.noise import karras_sigmas
from ldm.diffusion.samplers import starting_noise, step_noise
from ldm.errors import CheckpointError, ConfigError
from ldm.pipeline import LatentDiffusion
from tests.support.diffusion_models import diffusion_model

LEVEL = 2 / 255  # one level of 255, in units of [-1, 1]

WITHOUT_GAUSSIAN = [name for name, facts in SAMPLERS.items() if not (facts.gaussian or facts.consistency)]


@pytest.fixture(scope="module")
def model(finished_diffusion: Path) -> LatentDiffusion:
    """The miniature run, with two classes, its weights moved: six steps leave the U-Net almost at its start."""
    found = LatentDiffusion.load(finished_diffusion)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    return found


@pytest.fixture(scope="module")
def unconditional(model: LatentDiffusion) -> LatentDiffusion:
    """The same autoencoder with a denoiser that knows no classes."""
    config = replace(model.config, schema=ConditionSchema())
    return LatentDiffusion(model.autoencoder, create_denoiser(config), config)


def labeled(*labels: int) -> Condition:
    return Condition({"label": torch.tensor(labels)})


def refused(action: Callable[[], Any], kind: type[Exception] = ConfigError) -> str:
    """The one line with which a request is refused."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert message
    return message


def test_numbers_in_a_tensor_gave_a_warning_and_none_at_all_a_traceback(model: LatentDiffusion) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = model.sample(numbers=torch.tensor([3]), steps=1)
    assert drawn.equal(model.sample(numbers=[3], steps=1))
    assert "numbers names no image" in refused(lambda: model.sample(numbers=[]))


def test_a_run_remembers_the_names_of_its_classes_and_its_shape(finished_diffusion: Path) -> None:
    found = LatentDiffusion.load(str(finished_diffusion))
    assert found.classes == ("disc", "square")
    assert found.config.latent_shape == (2, 8, 8)
    assert not found.denoiser.training and not found.autoencoder.training


@pytest.mark.parametrize("sampler", WITHOUT_GAUSSIAN)
def test_images_agree_for_any_batch_size_and_any_number_of_them(model: LatentDiffusion, sampler: str) -> None:
    whole = model.sample(8, steps=5, sampler=sampler, batch_size=8)
    for num, batch_size in [(8, 1), (8, 3), (3, 8), (11, 4)]:
        images = model.sample(num, steps=5, sampler=sampler, batch_size=batch_size)
        assert (images[:8] - whole[:num]).abs().max() <= LEVEL


def test_the_same_request_gives_the_same_bits_and_another_seed_other_images(model: LatentDiffusion) -> None:
    done: list[int] = []
    images = model.sample(4, steps=3, batch_size=3, on_step=done.append)
    assert done == [1] * 6, "three steps for each of two batches"
    assert model.sample(4, steps=3, batch_size=3).equal(images)
    assert (model.sample(4, steps=3, seed=1) - images).abs().amax((1, 2, 3)).min() > LEVEL


def test_sampling_is_the_sampler_on_the_grid_from_the_noise_then_the_decoder(model: LatentDiffusion) -> None:
    """The whole pipeline in four lines, by hand; Euler at guidance 3."""
    sampling, condition = model.config.sampling, labeled(1, 0, 1)
    sigmas = karras_sigmas(4, sampling.sigma_min, sampling.sigma_max, sampling.rho)
    x = starting_noise(model.config.latent_shape, range(3), seed=5) * sigmas[0]
    with torch.no_grad():
        for sigma, lower in pairwise(sigmas):
            conditional, unconditional = (model.denoiser(x, sigma.expand(3), which) for which in (condition, None))
            x = x + (lower - sigma) * (x - (3 * conditional - 2 * unconditional)) / sigma
        expected = model.autoencoder.decode(x).clamp(-1, 1)
    images = model.sample(3, [1, 0], steps=4, sampler="euler", guidance=3.0, seed=5)
    assert (images - expected).abs().max() < 1e-4


def test_samplers_of_others_draw_our_samples_with_our_denoiser(model: LatentDiffusion) -> None:
    """Written as k-diffusion's loops and as EDM's Heun are: from what docs/pipeline.md names."""
    sampling = model.config.sampling
    sigmas = karras_sigmas(6, sampling.sigma_min, sampling.sigma_max, sampling.rho)
    start = starting_noise(model.config.latent_shape, range(3), seed=5) * sigmas[0]
    denoiser = model.guided(3.0, model.config.schema.request(["square", "disc", "square"]))

    def to_d(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - denoiser(x, sigma)) / sigma

    with torch.no_grad():
        x = start
        for sigma, following in pairwise(sigmas):
            x = x + (following - sigma) * to_d(x, sigma)
        euler = model.autoencoder.decode(x).clamp(-1, 1)
        x = start.double()
        for sigma, following in pairwise(sigmas.double()):
            d_cur = to_d(x, sigma)
            x_next = x + (following - sigma) * d_cur
            if following > 0:
                x_next = x + (following - sigma) * (d_cur + to_d(x_next, following)) / 2
            x = x_next
        heun = model.autoencoder.decode(x.float()).clamp(-1, 1)
    for sampler, expected in (("euler", euler), ("heun", heun)):
        images = model.sample(3, [1, 0], steps=6, sampler=sampler, guidance=3.0, seed=5)
        assert torch.allclose(images, expected, rtol=0, atol=1e-3), sampler


@pytest.mark.parametrize(
    "sampler", [name for name, facts in SAMPLERS.items() if facts.stochastic and not facts.consistency]
)
def test_step_noise_of_image_i_depends_on_seed_i_and_step_alone(model: LatentDiffusion, sampler: str) -> None:
    """By hand, all images at once; by the pipeline in batches of 2, 1 and 3."""
    sampling, shape, condition = model.config.sampling, model.config.latent_shape, labeled(1, 0, 1)
    sigmas = karras_sigmas(6, sampling.sigma_min, sampling.sigma_max, sampling.rho)
    with torch.no_grad():
        latents = SAMPLERS[sampler].load()(
            model.guided(3.0, condition),
            starting_noise(shape, range(3), seed=5) * sigmas[0],
            sigmas,
            noise=lambda step: step_noise(shape, range(3), 5, step),
        )
        expected = model.autoencoder.decode(latents).clamp(-1, 1)
    for batch_size in (2, 1, 3):
        images = model.sample(3, [1, 0], steps=6, sampler=sampler, guidance=3.0, seed=5, batch_size=batch_size)
        assert (images - expected).abs().max() < 1e-4


def test_labels_by_name_and_by_number_are_the_same(model: LatentDiffusion) -> None:
    by_name = model.sample(4, ["square", "disc"], steps=3)
    for labels in ([1, 0], ["1", "0"], ["square", 0], [1, 0, 1, 0]):
        assert model.sample(4, labels, steps=3).equal(by_name)
    assert not model.sample(4, ["disc", "square"], steps=3).equal(by_name)


def test_without_labels_the_classes_come_in_turn(model: LatentDiffusion) -> None:
    assert model.sample(5, steps=3).equal(model.sample(5, [0, 1], steps=3))


def test_a_class_whose_name_is_a_number_is_meant_by_its_name() -> None:
    schema = ConditionSchema((ClassAttribute("label", ("1", "0")),))
    assert schema.request(["0", "1", 1]).values["label"].tolist() == [1, 0, 1]


def test_guidance_one_is_the_conditional_model_and_zero_the_unconditional_one(model: LatentDiffusion) -> None:
    condition = labeled(0, 1)
    x, sigma = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1)), torch.full((2,), 2.0)
    with torch.no_grad():
        answers = {guidance: model.guided(guidance, condition)(x, sigma) for guidance in (0.0, 1.0, 2.0)}
        assert answers[1.0].equal(model.denoiser(x, sigma, condition))
        assert answers[0.0].equal(model.denoiser(x, sigma, None))
    assert torch.allclose(answers[2.0], 2 * answers[1.0] - answers[0.0], atol=1e-5)
    assert model.sample(2, steps=3).equal(model.sample(2, steps=3, guidance=2.0)), "2 is what a model with classes gets"


@pytest.mark.parametrize("sampler", WITHOUT_GAUSSIAN)
def test_any_number_of_steps_gives_finite_images_in_range(model: LatentDiffusion, sampler: str) -> None:
    """Every number from 1 to 40 is tried with an exact denoiser, in tests/diffusion/test_samplers.py."""
    for steps in (1, 2, 3, 4, 5, 7, 12, 20):
        done: list[int] = []
        images = model.sample(1, steps=steps, sampler=sampler, on_step=done.append)
        assert images.shape == (1, 3, 16, 16) and images.isfinite().all() and images.abs().max() <= 1
        assert done == [1] * steps


def test_an_unconditional_model_samples_without_labels(unconditional: LatentDiffusion) -> None:
    assert unconditional.sample(2, steps=2).equal(unconditional.sample(2, steps=2, guidance=1.0))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"num": 0}, "num 0"),
        ({"num": -3}, "num -3"),
        ({"steps": 0}, "steps 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"sampler": "dpm"}, "sampler dpm"),
        ({"labels": ["circle"]}, "labels circle"),
        ({"labels": [2]}, "labels 2"),
        ({"labels": [-1]}, "labels -1"),
        ({"labels": ["²"]}, "labels ²"),
        ({"labels": []}, "labels"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"guidance": float("inf")}, "guidance inf"),
        ({"guidance": "2"}, "guidance '2' is not a number"),
        ({"num": 2.0}, "num 2.0 is not an integer"),
        ({"seed": None}, "seed None is not an integer"),
        ({"seed": "abc"}, "seed 'abc' is not an integer"),
    ],
)
def test_an_impossible_request_is_refused_with_its_argument(
    model: LatentDiffusion, request_: dict[str, Any], words: str
) -> None:
    assert refused(lambda: model.sample(**{"steps": 2, **request_})).startswith(words)


def test_a_number_of_numpy_is_a_number(model: LatentDiffusion) -> None:
    """`num 2 is no number` was the answer to an element of an array; a seed that was none passed as one."""
    given: dict[str, Any] = {"num": np.int64(2), "steps": np.int32(2), "seed": np.int64(3), "guidance": np.float32(1)}
    assert model.sample(**given).equal(model.sample(2, steps=2, seed=3, guidance=1.0))


@pytest.mark.parametrize(("request_", "words"), [({"guidance": 2.0}, "guidance"), ({"labels": [0]}, "labels")])
def test_a_model_without_classes_refuses_what_needs_them(
    unconditional: LatentDiffusion, request_: dict[str, Any], words: str
) -> None:
    assert refused(lambda: unconditional.sample(2, **request_)).startswith(f"{words} needs a model with classes")


def test_the_possible_classes_and_samplers_are_named(model: LatentDiffusion) -> None:
    assert "disc, square" in refused(lambda: model.sample(2, ["circle"]))
    assert ", ".join(SAMPLERS) in refused(lambda: model.sample(2, sampler="dpm"))


def test_what_is_saved_comes_back_bit_for_bit(model: LatentDiffusion, tmp_path: Path) -> None:
    save_denoiser(model.denoiser, model.config, tmp_path / "unet")
    denoiser, config = load_denoiser(tmp_path / "unet")
    assert config == model.config
    weights = denoiser.state_dict()
    assert all(value.equal(weights[name]) for name, value in model.denoiser.state_dict().items())
    assert not denoiser.training


# Folders that are not what they should be.


def with_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(run: Path) -> object:
        file = run / "unet" / "config.json"
        config = json.loads(file.read_text())
        change(config)
        return file.write_text(json.dumps(config))

    return damage


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def damage(run: Path) -> object:
        file = run / "unet" / UNET_WEIGHTS
        weights = safetensors.torch.load_file(file)
        change(weights)
        return safetensors.torch.save_file(weights, file)

    return damage


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:size])


WEIGHTS, UNET_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty config": cut("unet/config.json", 0),
    "half a config": cut("unet/config.json", 100),
    "not an object": lambda run: (run / "unet" / "config.json").write_text("[1, 2]"),
    "not text": lambda run: (run / "unet" / "config.json").write_bytes(b"\xff\xfe\x00"),
    "unknown key": with_config(lambda config: config.update(color=3)),
    "missing key": with_config(lambda config: config.pop("schema")),
    "wrong type": with_config(lambda config: config.update(latent_shape="large")),
    "too few sides": with_config(lambda config: config.update(latent_shape=[2, 8])),
    "another width": with_config(lambda config: config["denoiser"]["network"].update(widths=[8, 24])),
    "another class": with_config(lambda config: config["schema"]["attributes"][0]["classes"].append("triangle")),
    "impossible levels": with_config(lambda config: config["denoiser"]["network"].update(attention=[7])),
    "unknown attribute": with_config(lambda config: config["schema"]["attributes"][0].update(kind="text")),
    "no attributes": with_config(lambda config: config["schema"].update(attributes=[])),
    "unknown network": with_config(lambda config: config["denoiser"]["network"].update(kind="transformer")),
    "no weights": lambda run: (run / "unet" / UNET_WEIGHTS).unlink(),
    "empty weights": cut(f"unet/{UNET_WEIGHTS}", 0),
    "half the weights": cut(f"unet/{UNET_WEIGHTS}", 5000),
    "a tensor less": with_weights(lambda weights: weights.pop("network.first.bias")),
    "a tensor more": with_weights(lambda weights: weights.update(more=torch.zeros(1))),
    "no unet": lambda run: shutil.rmtree(run / "unet"),
    "no vae": lambda run: shutil.rmtree(run / "vae"),
    "no vae config": lambda run: (run / "vae" / "config.json").unlink(),
    "half a vae config": cut("vae/config.json", 60),
    "half the vae": cut(f"vae/{WEIGHTS}", 5000),
    "no vae weights": lambda run: (run / "vae" / WEIGHTS).unlink(),
    "nothing at all": lambda run: [shutil.rmtree(run), run.mkdir()],
    "not even a folder": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_and_its_place_named(finished_diffusion: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    for part in ("unet", "vae"):
        shutil.copytree(finished_diffusion / part, run / part)
    DAMAGES[damage](run)
    assert str(run) in refused(lambda: LatentDiffusion.load(run), CheckpointError)


def test_a_denoiser_of_an_earlier_version_is_refused_with_what_to_do(finished_diffusion: Path, tmp_path: Path) -> None:
    """Its config.json had the names of the classes and no format."""
    run = tmp_path / "run"
    for part in ("unet", "vae"):
        shutil.copytree(finished_diffusion / part, run / part)

    def older(config: dict[str, Any]) -> None:
        del config["format"], config["schema"]
        config["classes"] = ["disc", "square"]

    with_config(older)(run)
    message = refused(lambda: LatentDiffusion.load(run), CheckpointError)
    assert message.startswith(f"{run} is a diffusion model of an earlier version of ldm: ") and "\n" not in message
    assert f"train again on {run / 'vae'}" in message
    with_config(lambda config: config.update(format=3))(run)
    assert "of another version of ldm" in refused(lambda: LatentDiffusion.load(run), CheckpointError)


def test_a_denoiser_whose_words_had_learned_positions_listed_every_weight_that_is_missing(
    finished_diffusion: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for part in ("unet", "vae"):
        shutil.copytree(finished_diffusion / part, run / part)
    (file,) = (run / "unet").glob("*.safetensors")
    weights = safetensors.torch.load_file(file) | {"embedding.texts.text.positions": torch.zeros(8, 32)}
    safetensors.torch.save_file(weights, file)
    message = refused(lambda: LatentDiffusion.load(run), CheckpointError)
    assert message.endswith("is of an earlier version, whose texts had other positions: train it again")


def test_a_run_without_its_autoencoder_does_not_ask_the_hub_for_one(
    finished_diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from its parent folder, `run/vae` would also be the name of a repository."""
    shutil.copytree(finished_diffusion / "unet", tmp_path / "run" / "unet")
    monkeypatch.chdir(tmp_path)
    assert "no config.json" in refused(lambda: LatentDiffusion.load("run"), CheckpointError)


def test_a_model_without_condition_dropout_is_not_guided(stage_two, tmp_path) -> None:
    assert stage_two.run(tmp_path / "run", "--objective.condition-dropout", 0, "--run.steps", 2).code == 0
    model = LatentDiffusion.load(tmp_path / "run")
    assert model.sample(2, steps=2).equal(model.sample(2, steps=2, guidance=1))
    with pytest.raises(ConfigError, match=r"objective\.condition_dropout"):
        model.sample(2, steps=2, guidance=2)


def test_a_gaussian_step_for_a_model_without_a_gaussian_skip_is_refused() -> None:
    model = diffusion_model("tiny")
    with pytest.raises(ConfigError, match="sampler gaussian needs a model with denoiser"):
        model.sample(2, sampler="gaussian")
