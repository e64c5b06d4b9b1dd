"""`ldm export` of autoencoders that diffusers has no class for: a folder with its own code, or one line of refusal."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm import Autoencoder
from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, KLNetworkConfig, MLPNetworkConfig, SparseConfig
from ldm.autoencoder.model import create
from ldm.export.diffusers_pipeline import save_pipeline
from ldm.export.round_trip import imported
from tests.export.test_autoencoder import exported, images, refusal
from tests.support.diffusion_models import diffusion_model
from tests.support.scripts import Stage


@pytest.fixture(scope="module")
def run(stage_one: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny autoencoder."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    network = (
        "--autoencoder.network.kind",
        "tiny",
        "--autoencoder.network.width",
        8,
        "--autoencoder.network.levels",
        1,
    )
    outcome = stage_one.run(out, *network, "--run.steps", 2, "--run.sample-every", 2, "--objective.perceptual", "null")
    assert outcome.code == 0, outcome.err
    return out


def test_the_vae_of_a_run_does_not_lack_the_code_that_opens_it(run: Path) -> None:
    """Only pipelines of stage two had it."""
    (file,) = (run / "vae").glob("*.py")
    assert json.loads((run / "vae" / "config.json").read_text())["auto_map"]["AutoModel"].startswith(f"{file.stem}.")
    with torch.no_grad():
        expected = Autoencoder.load(run).reconstruct(images())
        assert imported(file).AutoencoderModel.from_pretrained(run / "vae")(images()).sample.equal(expected)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_autoencoder_that_brings_its_code_is_not_refused(dtype: str, run: Path, tmp_path: Path, capsys) -> None:
    """It was, by every format; now the card says how it opens, and its lines run."""
    out = tmp_path / "mine"
    outcome = exported(capsys, run, "--format", "diffusers", "--dtype", dtype, "--out", out)
    assert outcome.code == 0 and "read again and compared" in outcome.out, outcome
    suffix = "" if dtype == "fp32" else ".fp16"
    tensors = load_file(out / f"model{suffix}.safetensors")
    assert tensors["latent_std"].dtype == (torch.float32 if dtype == "fp32" else torch.float16)
    with torch.no_grad():
        difference = (
            (Autoencoder.load(out).reconstruct(images()) - Autoencoder.load(run).reconstruct(images())).abs().max()
        )
    assert difference == 0 if dtype == "fp32" else 0 < difference < 0.02
    card = (out / "README.md").read_text()
    (file,) = out.glob("*.py")
    assert "trust_remote_code=True" in card and (f'variant="{dtype}"' in card) == (dtype != "fp32")
    assert "AutoencoderKL" not in card and f"from {file.stem} import load" in card
    assert re.search(r"\[-1, 1\]: 3 x 256 x 256 becomes 2 x 128 x 128\.", card) and "## Metrics" in card
    assert imported(file).load(out).latent_channels == 2


def test_a_checkpoint_of_it_is_not_left_with_the_latents_of_its_network(run: Path, tmp_path: Path, capsys) -> None:
    """It is measured on the run's data, as that of an AutoencoderKL is."""
    out = tmp_path / "out"
    assert exported(capsys, run, "--format", "diffusers", "--checkpoint", 2, "--ema", "none", "--out", out).code == 0
    assert not Autoencoder.load(out).latent_std.eq(1).any()


@pytest.mark.parametrize("name", ["compvis", "comfyui"])
def test_a_host_that_has_no_network_for_it_does_not_go_unnamed(name: str, run: Path, tmp_path: Path, capsys) -> None:
    outcome = exported(capsys, run, "--format", name, "--out", tmp_path / "out")
    refusal(outcome, 2, "an autoencoder of tiny and gaussian", name, "--format diffusers", "kind kl")
    assert not (tmp_path / "out").exists()


def test_a_kl_network_whose_noise_is_set_is_not_told_to_train_what_it_is(tmp_path: Path, capsys) -> None:
    """No AutoencoderKL holds it: its encoder gives no variance."""
    config = AutoencoderConfig(KLNetworkConfig(widths=(8, 8), norm_groups=4), GaussianConfig(channels=2, noise=0.1))
    create(config, image=(3, 16, 16)).save(tmp_path / "vae")
    outcome = exported(capsys, tmp_path / "vae", "--format", "compvis", "--out", tmp_path / "out")
    refusal(outcome, 2, "of kl and gaussian with noise 0.1", "learns its noise")


@pytest.mark.parametrize("scale", [("--host", "sd15"), ("--latent-scale", 0.5), ("--latent-scale", "source")])
def test_a_scale_that_its_latents_cannot_be_given_is_refused(scale, run: Path, tmp_path: Path, capsys) -> None:
    outcome = exported(capsys, run, "--format", "diffusers", *scale, "--out", tmp_path / "out")
    refusal(outcome, 2, "--latent-scale", "unit variance", "tiny and gaussian")


def test_integers_in_it_do_not_become_rounded_numbers_of_half_precision(tmp_path: Path, capsys) -> None:
    """The last step in which a unit of a sparse code was active."""
    config = AutoencoderConfig(MLPNetworkConfig(widths=(8,)), SparseConfig(channels=8))
    create(config, image=(3, 16, 16)).save(tmp_path / "vae")
    arguments = (tmp_path / "vae", "--format", "diffusers", "--dtype", "bf16", "--out", tmp_path / "out")
    assert (outcome := exported(capsys, *arguments)).code == 0, outcome
    assert load_file(tmp_path / "out" / "model.bf16.safetensors")["bottleneck.last_active"].dtype == torch.int64
    assert ": 3 x 16 x 16 becomes 8 x 1 x 1." in (tmp_path / "out" / "README.md").read_text()


def test_an_export_of_an_export_is_the_same_autoencoder(run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run / "vae", tmp_path / "vae")
    for given, out in ((tmp_path / "vae", "one"), (tmp_path / "one", "two")):
        assert exported(capsys, given, "--format", "diffusers", "--out", tmp_path / out).code == 0
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("vae", "two"))
    assert first.keys() == last.keys() and all(first[name].equal(last[name]) for name in first)


@pytest.mark.parametrize("kind", ["kl", "residual"])
def test_the_card_of_a_pipeline_does_not_name_a_class_that_cannot_open_its_vae(kind, tmp_path, capsys, monkeypatch):
    for name, number in (("SAMPLES", 4), ("COMPARED", 2), ("STEPS", 2)):
        monkeypatch.setattr(f"ldm.export.diffusion_model.{name}", number)
    model = diffusion_model(kind)
    save_pipeline(tmp_path / "run", model.autoencoder, model.denoiser, model.config)
    assert exported(capsys, tmp_path / "run", "--format", "diffusers", "--out", tmp_path / "out").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    line = {"kl": 'AutoencoderKL.from_pretrained("this/folder/vae")', "residual": "AutoModel.from_pretrained"}
    assert [name for name in line if line[name] in card] == [kind]
    assert len(list((tmp_path / "out" / "vae").glob("*.py"))) == (kind == "residual")
