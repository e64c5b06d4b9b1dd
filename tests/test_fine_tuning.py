"""A run that starts from an existing autoencoder: all of it learns, or only its decoder."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from ldm import checkpoint
from ldm.autoencoder.formats import compvis
from ldm.autoencoder.model import Autoencoder
from tests.support.diffusers_process import in_another_process
from tests.support.fine_tuning import fine_tuning, save_foreign_autoencoder
from tests.support.scripts import ROOT, Stage, metrics, ran, weights

ENCODER = ("encoder.", "quant_conv.")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderKL that somebody else made, with a scale and a shift."""
    return save_foreign_autoencoder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module", params=["all", "decoder"])
def run(request: pytest.FixtureRequest, shapes_folder: Path, source: Path, tmp_path_factory) -> tuple[Path, Stage, str]:
    folder = tmp_path_factory.mktemp("fine-tuning")
    stage = fine_tuning(shapes_folder, source, folder, freeze_encoder=request.param == "decoder")
    outcome = stage.run(folder / "run")
    assert outcome.code == 0, outcome.err
    return folder / "run", stage, request.param


def trained(run: Path) -> dict[str, Tensor]:
    """The raw weights of the newest checkpoint, under diffusers' names."""
    found = checkpoint.newest(run / "checkpoints", print)
    assert found is not None
    named = found.tensors["model"].items()
    return {name.removeprefix("network."): value for name, value in named if name.startswith("network.")}


def test_what_trains_moves_and_what_does_not_keeps_every_bit(run, source: Path):
    folder, _, trains = run
    before, after = load_file(source / "diffusion_pytorch_model.safetensors"), trained(folder)
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    encoder = {name for name in before if name.startswith(ENCODER)}
    assert same == (encoder if trains == "decoder" else set())
    exported = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    folded = {name for name in encoder if name.startswith("encoder.") and torch.equal(before[name], exported[name])}
    assert bool(folded) == (trains == "decoder")


def test_latents_of_a_decoder_run_are_those_of_its_source_up_to_their_statistics(run, source: Path, shapes_folder):
    folder, _, trains = run
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        theirs, ours = (
            Autoencoder.load(place).encode(images).mean.transpose(0, 1).flatten(1) for place in (source, folder)
        )
    theirs, ours = (z - z.mean(1, keepdim=True) for z in (theirs, ours))
    residual = ours - (ours * theirs).sum(1, keepdim=True) / theirs.square().sum(1, keepdim=True) * theirs
    assert (residual.abs().max() < 1e-4) == (trains == "decoder")


def test_its_latents_are_measured_anew_at_the_end(run):
    folder, _, _ = run
    report = (folder / "report.json").read_text()
    assert "latent_std" in report
    exported = AutoencoderKL.from_pretrained(folder / "vae")
    assert exported.config.scaling_factor == 1 and exported.config.shift_factor is None


def test_a_resumed_fine_tuning_ends_with_the_same_bytes(run, tmp_path: Path):
    folder, stage, _ = run
    shutil.copytree(folder, tmp_path / "run")
    for name in ("finished.json", "checkpoints/step-00000004", "vae"):
        path = tmp_path / "run" / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    outcome = stage.run(tmp_path / "run")
    assert outcome.code == 0 and "resuming from step 2" in outcome.out, outcome
    assert weights(tmp_path / "run") == weights(folder) and metrics(tmp_path / "run") == metrics(folder)


def test_a_run_begins_from_a_compvis_file_or_from_a_run_of_ours(run, source: Path, shapes_folder: Path, tmp_path: Path):
    folder, stage, trains = run
    kl = AutoencoderKL.from_pretrained(source)
    compvis.write(tmp_path / "sd.safetensors", kl.state_dict(), kl.config)
    for name, path in (("file", tmp_path / "sd.safetensors"), ("run", folder)):
        outcome = stage.run(tmp_path / name, "--autoencoder.network.path", path, "--run.steps", 2)
        assert outcome.code == 0, outcome.err
    found, again = (
        load_file(place / "vae/diffusion_pytorch_model.safetensors") for place in (folder, tmp_path / "run")
    )
    if trains == "decoder":
        assert all(torch.equal(again[name], found[name]) for name in found if name.startswith("encoder."))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--data.channels", 1), 2, ("data.channels is 1", "has 3")),
        (("--autoencoder.bottleneck.channels", 4), 2, ("autoencoder.bottleneck.channels is 4", "has 3")),
        (("--autoencoder.network.path", "/gone"), 4, ("autoencoder.network.path", "/gone does not exist")),
        (("--data.size", 17), 2, ("data.size 17", "autoencoder.network.path", "16 or 18")),
        (
            ("--autoencoder.network.kind", "tiny", "--autoencoder.freeze-encoder", "true"),
            2,
            ("freeze_encoder", "kind pretrained"),
        ),
        (
            ("--autoencoder.freeze-encoder", "true", "--objective.equivariance.probability", 0.5),
            2,
            ("objective.equivariance shapes the encoder", "freeze_encoder keeps", "leave one"),
        ),
    ],
)
def test_a_wrong_beginning_is_one_line(shapes_folder, source, tmp_path, arguments, code, words):
    outcome = fine_tuning(shapes_folder, source, tmp_path, freeze_encoder=False).run(tmp_path / "run", *arguments)
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == code and len(errors) == 1 and "Traceback" not in outcome.err, outcome
    assert all(word in errors[0] for word in words), errors[0]


def test_resuming_without_the_source_says_what_is_missing(run, source: Path, tmp_path: Path):
    _, stage, _ = run
    shutil.copytree(source, tmp_path / "source")
    path = ("--autoencoder.network.path", tmp_path / "source")
    assert stage.run(tmp_path / "run", *path, "--run.steps", 2).code == 0
    shutil.rmtree(tmp_path / "source")
    outcome = stage.run(tmp_path / "run", *path)
    assert outcome.code == 4 and "autoencoder.network.path" in outcome.err and "does not exist" in outcome.err, (
        outcome.err
    )


TINY = ("--autoencoder.network.kind", "tiny", "--autoencoder.network.width", 8, "--autoencoder.network.levels", 1)


USE_PIPELINE = """
import sys
root, run, again = sys.argv[1:]
sys.path.insert(0, root)
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(run, trust_remote_code=True)
pipe.save_pretrained(again)
saved = DiffusionPipeline.from_pretrained(again, trust_remote_code=True)
first, second = (found(1, num_inference_steps=2).images[0].tobytes() for found in (pipe, saved))
assert first == second
"""


def test_both_stages_and_diffusers_work_on_a_tiny_autoencoder_which_diffusers_has_no_class_for(
    stage_one: Stage, stage_two: Stage, tmp_path: Path
):
    outcome = stage_one.run(tmp_path / "one", *TINY, "--autoencoder.network.blocks", 1)
    assert outcome.code == 0, outcome.err
    second = Stage(stage_two.name, (*stage_two.arguments[:-1], tmp_path / "one"))
    outcome = second.run(tmp_path / "two", "--run.steps", 2)
    assert outcome.code == 0, outcome.err
    outcome = ran("sample", tmp_path / "two", "--out", tmp_path / "grid.png", "--num", 4, "--steps", 2)
    assert outcome.code == 0 and (tmp_path / "grid.png").is_file(), outcome.err
    in_another_process(USE_PIPELINE, tmp_path, ROOT, tmp_path / "two", tmp_path / "again")
