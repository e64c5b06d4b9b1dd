"""`ldm export` of a diffusion model: a clean pipeline folder with a card, and refusals of what it cannot be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm.autoencoder.model import Autoencoder
from ldm.export import diffusion_card, diffusion_model
from ldm.pipeline import LatentDiffusion
from tests.autoencoder.formats.test_taesd import tiny
from tests.export.test_autoencoder import exported, refusal
from tests.support.miniatures import STAGE_TWO
from tests.support.scripts import Stage


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    for name, number in (("SAMPLES", 4), ("COMPARED", 2), ("STEPS", 3)):
        monkeypatch.setattr(diffusion_model, name, number)


def test_a_shared_diffusion_model_does_not_carry_checkpoints_and_latents(finished_diffusion, tmp_path, capsys):
    out = tmp_path / "shapes"
    outcome = exported(capsys, finished_diffusion, "--format", "diffusers", "--out", out)
    assert outcome.code == 0 and "sampled from" in outcome.out, outcome.err
    (code,) = out.glob("pipeline_*.py")
    assert {path.name for path in out.iterdir()} == {
        *("vae", "unet", "scheduler", "model_index.json", code.name),
        *("README.md", "samples.png", "export.json"),
    }
    before, after = (LatentDiffusion.load(place).sample(2, steps=2, seed=3) for place in (finished_diffusion, out))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert json.loads((out / "export.json").read_text())["sample_difference"] <= 1e-3
    card = (out / "README.md").read_text()
    for words in (
        *("# shapes", "trust_remote_code=True", "LatentDiffusion.load", "2 classes: disc, square", "6 steps of 8"),
        *("16 pixels", "](samples.png)", "train_diffusion", "ldm export run --format diffusers --out shapes"),
    ):
        assert words in card, words
    assert "must be installed" not in card  # it said so of this package, after the folder had begun to bring its code
    assert str(tmp_path) not in card and str(finished_diffusion.parent) not in card
    refusal(exported(capsys, finished_diffusion, "--format", "diffusers", "--out", out), 2, "exists", "--force")
    assert exported(capsys, out, "--format", "diffusers", "--out", out, "--force").code == 0


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_diffusion_model_is_not_to_be_had_in_half_precision(finished_diffusion, tmp_path, capsys, dtype):
    out = tmp_path / "half"
    outcome = exported(capsys, finished_diffusion, "--format", "diffusers", "--dtype", dtype, "--out", out)
    assert outcome.code == 0 and f"is allowed in {dtype}" in outcome.out, outcome
    files = sorted(out.glob("*/*.safetensors"))
    assert [file.name for file in files] == [
        f"model.{dtype}.safetensors",
        f"diffusion_pytorch_model.{dtype}.safetensors",
    ]
    for file in files:
        assert {value.dtype for value in load_file(file).values()} == {diffusion_model.DTYPES[dtype]}
    difference = json.loads((out / "export.json").read_text())["sample_difference"]
    assert 0 < difference <= diffusion_model.SAMPLE_TOLERANCES[dtype]
    assert f'variant="{dtype}"' in (out / "README.md").read_text()
    assert out.stat().st_size and sum(file.stat().st_size for file in files) < 0.6 * sum(
        file.stat().st_size for file in finished_diffusion.glob("*/*.safetensors")
    )


def test_a_model_whose_samples_are_others_is_not_left_behind(finished_diffusion, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(diffusion_model.SAMPLE_TOLERANCES, "fp32", -1.0)
    outcome = exported(capsys, finished_diffusion, "--format", "diffusers", "--out", tmp_path / "out")
    refusal(outcome, 4, "samples by", "nothing was left behind")
    assert not list(tmp_path.iterdir())


def test_an_unfinished_diffusion_run_is_not_said_to_have_an_autoencoder(finished_diffusion, tmp_path, capsys):
    shutil.copytree(finished_diffusion, tmp_path / "run", ignore=shutil.ignore_patterns("unet", "vae", "checkpoints"))
    outcome = exported(capsys, tmp_path / "run", "--format", "diffusers", "--out", tmp_path / "out")
    refusal(outcome, 4, "not a finished run of train_diffusion.py")


def test_a_diffusion_model_is_not_written_in_the_form_of_an_autoencoder(finished_diffusion, tmp_path, capsys):
    for flags, words in (
        (("--format", "compvis"), ("diffusion model", "compvis", "/vae")),
        (("--format", "diffusers", "--latent-scale", 2), ("--latent-scale 2", "/vae")),
        (("--format", "diffusers", "--checkpoint", 3), ("--checkpoint 3",)),
    ):
        refusal(exported(capsys, finished_diffusion, *flags, "--out", tmp_path / "out"), 2, *words)


def test_stage_two_does_not_refuse_a_taesd_and_standardizes_its_latents(shapes_folder: Path, tmp_path, capsys):
    tiny().save_pretrained(tmp_path / "tiny")
    data = f'data: {{kind: folder, path: "{shapes_folder}", size: 16}}\n'
    (tmp_path / "two.yaml").write_text(data + STAGE_TWO.replace("steps: 6", "steps: 2"))
    stage, run = Stage("train_diffusion", (tmp_path / "two.yaml", "--autoencoder", tmp_path / "tiny")), tmp_path / "run"
    outcome = stage.run(run)
    assert outcome.code == 0, outcome.err
    standardized, given = (Autoencoder.load(place).requires_grad_(False) for place in (run, tmp_path / "tiny"))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert not torch.equal(standardized.latent_std, given.latent_std)
    torch.testing.assert_close(standardized.reconstruct(images), given.reconstruct(images))
    assert exported(capsys, run, "--format", "diffusers", "--out", tmp_path / "out").code == 0


def test_a_command_that_is_not_in_utf_8_is_a_traceback_of_the_card(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {steps: 1}\n")
    (tmp_path / "command.txt").write_bytes(b"train_diffusion.py caf\xe9.yaml\n")
    (section,) = diffusion_card.origin(tmp_path, {"command": "ldm export"})
    assert "caf" in section and section.endswith("    ldm export")
