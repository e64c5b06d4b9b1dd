"""Every config of the autoencoder family is a run, in miniature: trained, exported, measured, and of use afterwards."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm import Autoencoder, LatentDiffusion
from ldm.autoencoder.features import has_features
from ldm.data.datasets import Dataset, open_dataset
from ldm.data.settings import MNIST5k
from ldm.data.split import split
from ldm.evaluation import plain_images
from ldm.metrics import psnr
from ldm.runs import reopen
from tests.conftest import ROOT, Outcome, ran

CONFIGS = sorted((ROOT / "configs" / "autoencoder").glob("*.yaml"))
DATA = MNIST5k(size=16)
STEPS = {"stacked": 5}  # a step for each of its stages; for all others three
CLASSES = ("--objective.penalties.classification.weight", 0.1)
every = pytest.mark.parametrize("name", [file.stem for file in CONFIGS])
corrupting = {"denoising", "masked"}
FIGURES = {"corrupted_psnr", "restored_psnr", "linear_restoration_psnr", "gain_over_corrupted", "gain_over_linear"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The finished run of a config, with 16 x 16 digits and a batch of 16; each is made once."""
    folder, made = tmp_path_factory.mktemp("family"), dict[str, Path]()

    def run(name: str, *more: object) -> Path:
        place = folder / (name if not more else f"{name} with more")
        if str(place) not in made:
            steps = STEPS.get(name, 3)
            small = ("--data.size", 16, "--run.steps", steps, "--run.batch-size", 16, "--run.sample-every", steps)
            logged = ("--run.log-every", 1, "--run.checkpoint-every", steps)
            config = ROOT / "configs" / "autoencoder" / f"{name}.yaml"
            outcome = ran("train_vae", config, "--out", place, *small, *logged, *more)
            assert outcome.code == 0, outcome.err
            made[str(place)] = place
        return made[str(place)]

    return run


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return open_dataset(DATA)


def held_out(dataset: Dataset) -> tuple[list[int], Tensor]:
    """Which images no run was trained on, and those images."""
    _, indices = split(dataset.groups, DATA.held_out, DATA.split_seed)
    return indices.tolist(), plain_images(dataset, DATA, indices.tolist())


def report_of(run: Path) -> dict[str, Any]:
    """report.json, in which NaN and infinity are no numbers."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {run / 'report.json'}")

    return json.loads((run / "report.json").read_text(), parse_constant=refuse)


def one_line(outcome: Outcome, code: int) -> str:
    """What a refused command says, once."""
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == code and len(errors) == 1 and "Traceback" not in outcome.err, outcome
    return errors[0]


# ---- what a run leaves behind


@every
def test_what_is_exported_reconstructs_like_what_was_trained_in_standardized_latents(name, family, dataset):
    run, (_, images) = family(name), held_out(dataset)
    trained = reopen(str(run), step=STEPS.get(name, 3), ema=None, as_trained=True).autoencoder
    exported = Autoencoder.load(run)
    assert not trained.latent_mean.any() and bool(exported.latent_mean.any()), "only the export is standardized"
    with torch.no_grad():
        expected, found = trained.reconstruct(images[:32]), exported.reconstruct(images[:32])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exported.code(images).mean, trained.code(images).mean, rtol=0, atol=0)
    report = report_of(run)
    assert max(map(abs, report["latent_mean"])) < 1e-3
    assert all(abs(std - 1) < 1e-3 or std == 0 for std in report["latent_std"]), "a unit that is never used has none"


@every
def test_saved_once_more_it_is_the_same_to_the_bit(name, family, dataset, tmp_path):
    exported, (_, images) = Autoencoder.load(family(name)), held_out(dataset)
    exported.save(tmp_path / "vae")
    with torch.no_grad():
        assert Autoencoder.load(tmp_path / "vae").reconstruct(images[:8]).equal(exported.reconstruct(images[:8]))


@every
def test_the_report_holds_finite_figures_and_those_of_restoration_only_where_something_is_corrupted(name, family):
    report = report_of(family(name))
    assert FIGURES & report.keys() == (FIGURES if name in corrupting else set())
    assert {"latent_mean", "latent_std", "held_out_psnr", "pca_psnr", "patch_pca_psnr"} <= report.keys()
    assert "head_accuracy" not in report
    assert all(value is None or isinstance(value, float | list) for value in report.values())
    assert not [key for key, value in report.items() if value is None and key not in ("patch_pca_psnr", "pca_psnr")]
    if name in corrupting:
        before, after, linear = (report[f"{each}_psnr"] for each in ("corrupted", "restored", "linear_restoration"))
        assert report["gain_over_corrupted"] == pytest.approx(after - before)
        assert report["gain_over_linear"] == pytest.approx(after - linear)
        assert linear > before + 1, "noise and masks can be made better with one matrix"


@every
def test_the_psnr_of_the_report_is_that_of_the_exported_autoencoder(name, family, dataset):
    run, (_, images) = family(name), held_out(dataset)
    with torch.no_grad():
        found = psnr(images, Autoencoder.load(run).reconstruct(images)).mean().item()
    assert report_of(run)["held_out_psnr"] == pytest.approx(found, abs=1e-3)


@every
def test_panels_show_what_units_stand_for_where_that_is_worth_a_picture(name, family):
    run, steps = family(name), STEPS.get(name, 3)
    autoencoder = Autoencoder.load(run)
    names = {f"step-{steps:08d}.png"} | ({f"features-{steps:08d}.png"} if has_features(autoencoder) else set())
    assert {path.name for path in (run / "samples").iterdir()} == names
    assert has_features(autoencoder) == (name != "masked")
    with Image.open(run / "samples" / f"step-{steps:08d}.png") as panel:
        rows = 4 if name in corrupting else 3  # what the encoder saw is shown too
        assert panel.height * (2 + 8 * 18) == panel.width * (2 + rows * 18)


@every
def test_every_step_of_every_stage_is_logged_with_finite_terms(name, family):
    lines = [json.loads(line) for line in (family(name) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "lr" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS.get(name, 3) + 1))
    assert all(isinstance(value, int | float) and math.isfinite(value) for line in steps for value in line.values())


def test_a_head_that_reads_classes_is_exported_and_its_accuracy_is_reported(family, dataset):
    run, (indices, images) = family("stacked", *CLASSES), held_out(dataset)
    autoencoder = Autoencoder.load(run)
    with torch.no_grad():
        read = autoencoder.head(autoencoder.code(images).mean.mean((2, 3))).argmax(1).numpy()
    assert report_of(run)["head_accuracy"] == pytest.approx((read == dataset.labels[indices]).mean(), abs=0.003)
    assert autoencoder.head.out_features == 10 and len(set(read.tolist())) > 1


# ---- what it is good for

WIDTHS = {"plain": ((16,), 0), "masked": ((8, 16), 1)}  # a code of k x 1 x 1 is not made smaller; 4 x 4 once


@pytest.mark.parametrize("name", WIDTHS)
def test_stage_two_learns_its_latents_and_samples_are_drawn(name, family, tmp_path):
    (widths, attention), shape = WIDTHS[name], {"plain": (32, 1, 1), "masked": (96, 4, 4)}[name]
    (tmp_path / "two.yaml").write_text(f"""
denoiser: {{network: {{widths: {list(widths)}, blocks: 1, attention: [{attention}], head_channels: 8}}}}
run: {{steps: 2, batch_size: 8, log_every: 1, checkpoint_every: 2, sample_every: 2, precision: fp32}}
""")
    out = tmp_path / "two"
    outcome = ran("train_diffusion", tmp_path / "two.yaml", "--autoencoder", family(name), "--out", out)
    assert outcome.code == 0, outcome.err
    drawn = ran("sample", out, "--out", tmp_path / "many", "--num", 2, "--steps", 2, "--device", "cpu")
    assert drawn.code == 0, drawn.err
    model = LatentDiffusion.load(out)
    assert model.description.latent_shape == shape and len(model.classes) == 10
    for number, image in enumerate(model.sample(2, steps=2)):
        with Image.open(tmp_path / "many" / f"{number:05d}-{number}.png") as picture:
            found = torch.tensor(list(picture.getdata())).view(1, 16, 16) / 127.5 - 1
        assert (found - image).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("size", ["32", "20", "12", "16x32"])
def test_a_dense_autoencoder_refuses_images_of_another_size_in_one_line_that_names_both(size, family):
    line = one_line(ran("ldm.cli.main", "evaluate", family("plain"), "--size", size, "--images", 3), 2)
    given = size if "x" not in size else "[16, 32]"
    assert "mlp" in line and "size 16 " in line and line.endswith(f"not of {given}")


@pytest.mark.parametrize("name", ["plain", "masked"])
@pytest.mark.parametrize("form", ["diffusers", "compvis", "comfyui"])
def test_what_no_other_program_can_hold_is_not_exported_to_it(name, form, family, tmp_path):
    out = tmp_path / "export"
    line = one_line(ran("ldm.cli.main", "export", family(name), "--format", form, "--out", out), 2)
    assert {"plain": "mlp and identity", "masked": "vit and identity"}[name] in line
    assert not out.exists()
