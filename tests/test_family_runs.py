"""Every config of the autoencoder family is a run, in miniature: trained, exported, measured, and of use afterwards."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm import Autoencoder, LatentDiffusion
from ldm.autoencoder.dictionary import has_dictionary
from ldm.autoencoder.restoration import restore
from ldm.config import reader
from ldm.data.config import MNIST5kConfig
from ldm.data.datasets import Dataset, open_dataset
from ldm.evaluation.metrics import psnr
from ldm.export.load_run import load_run
from ldm.randomness import StepRandom
from ldm.script_configs import TrainVAEConfig
from ldm.shapes import rounded
from tests.support.diffusers_process import pixels
from tests.support.scripts import ROOT, Outcome, ran

CONFIGS = [  # compression.yaml is for a folder of images
    file for file in sorted((ROOT / "configs" / "autoencoder").glob("*.yaml")) if file.stem != "compression"
]
DATA = MNIST5kConfig(size=16)
STEPS = {"stacked": 5}  # a step for each of its stages; for all others three
CLASSES = ("--objective.penalties.classification.weight", 0.1)
every = pytest.mark.parametrize("name", [file.stem for file in CONFIGS])
CORRUPTING = {"denoising", "masked"}
RESTORING = {"denoising"}  # to images, and not to patches without their mean
RESTORATION_METRICS = {
    "corrupted_psnr",
    "restored_psnr",
    "linear_restoration_psnr",
    "gain_over_corrupted",
    "gain_over_linear",
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished run of a config, with 16 x 16 digits and a batch of 16; each is made once."""
    folder = tmp_path_factory.mktemp("family")

    def run(name: str) -> Path:
        out = folder / name
        if not out.exists():
            trained(name, out, STEPS.get(name, 3))
        return out

    return run


def trained(name: str | Path, out: Path, steps: int, *more: object) -> None:
    file = ROOT / "configs" / "autoencoder" / f"{name}.yaml" if isinstance(name, str) else name
    small = ("--data.size", 16, "--run.batch-size", 16)
    bookkeeping = ("--run.log-every", 1, "--run.checkpoint-every", steps, "--run.sample-every", steps)
    outcome = ran("train_vae", file, "--out", out, *small, "--run.steps", steps, *bookkeeping, *more)
    assert outcome.code == 0, outcome.err


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return open_dataset(DATA)


def held_out(dataset: Dataset) -> tuple[list[int], Tensor]:
    """Which images no run was trained on, and those images."""
    _, images = dataset.split()
    return images.indices, images.images()


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
    trained = load_run(str(run), step=STEPS.get(name, 3), ema=None, raw_latents=True).autoencoder
    exported = Autoencoder.load(run)
    assert not trained.latent_mean.any() and bool(exported.latent_mean.any()), "only the export is standardized"
    with torch.no_grad():
        expected, found = trained.reconstruct(images[:32]), exported.reconstruct(images[:32])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            exported.raw_posterior(images).mean, trained.raw_posterior(images).mean, rtol=0, atol=0
        )
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
    assert RESTORATION_METRICS & report.keys() == (RESTORATION_METRICS if name in RESTORING else set())
    assert {"latent_mean", "latent_std", "pca_psnr", "patch_pca_psnr"} <= report.keys()
    assert ("held_out_psnr" in report) == (name != "masked"), "what is decoded there are no images"
    assert "head_accuracy" not in report
    assert all(value is None or isinstance(value, float | list) for value in report.values())
    assert not [key for key, value in report.items() if value is None and key not in ("patch_pca_psnr", "pca_psnr")]
    if name in RESTORING:
        before, after, linear = (report[f"{each}_psnr"] for each in ("corrupted", "restored", "linear_restoration"))
        assert report["gain_over_corrupted"] == pytest.approx(after - before)
        assert report["gain_over_linear"] == pytest.approx(after - linear)
        assert linear > before + 1, "noise and masks can be made better with one matrix"


@pytest.mark.parametrize("name", [file.stem for file in CONFIGS if file.stem != "masked"])
def test_the_psnr_of_the_report_is_that_of_the_exported_autoencoder(name, family, dataset):
    run, (_, images) = family(name), held_out(dataset)
    with torch.no_grad():
        found = psnr(rounded(images), rounded(Autoencoder.load(run).reconstruct(images))).mean().item()
    assert report_of(run)["held_out_psnr"] == pytest.approx(found, abs=1e-3)


@pytest.mark.parametrize("name", sorted(RESTORING))
def test_the_figures_of_restoration_are_those_of_another_draw_of_the_noise(name, family, dataset):
    run, (_, images) = family(name), held_out(dataset)
    report, objective = report_of(run), reader.load(TrainVAEConfig, run / "config.yaml", {}).objective
    found = restore(Autoencoder.load(run), objective, images, StepRandom(7, 0, len(images)))
    for key, seen in (("corrupted_psnr", found.corrupted), ("restored_psnr", found.images)):
        assert report[key] == pytest.approx(psnr(images, seen).mean().item(), abs=0.3)
    assert abs(report["corrupted_psnr"] - report["restored_psnr"]) > 1, "the two are not mistaken for each other"


@every
def test_panels_show_what_units_stand_for_where_that_is_worth_a_picture(name, family):
    run, steps = family(name), STEPS.get(name, 3)
    autoencoder = Autoencoder.load(run)
    names = {f"step-{steps:08d}.png"} | ({f"features-{steps:08d}.png"} if has_dictionary(autoencoder) else set())
    assert {path.name for path in (run / "samples").iterdir()} == names
    assert has_dictionary(autoencoder) == (name != "masked")
    with Image.open(run / "samples" / f"step-{steps:08d}.png") as panel:
        rows = 4 if name in CORRUPTING else 3  # what the encoder saw is shown too
        assert panel.height * (2 + 8 * 18) == panel.width * (2 + rows * 18)


@every
def test_every_step_of_every_stage_is_logged_with_finite_terms(name, family):
    lines = [json.loads(line) for line in (family(name) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "lr" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS.get(name, 3) + 1))
    assert all(isinstance(value, int | float) and math.isfinite(value) for line in steps for value in line.values())


def test_a_head_that_reads_classes_is_exported_and_reads_better_than_chance(dataset, tmp_path):
    trained("plain", tmp_path / "run", 80, *CLASSES, "--optim.warmup", 5)
    (indices, images), autoencoder = held_out(dataset), Autoencoder.load(tmp_path / "run")
    with torch.no_grad():
        read = autoencoder.head(autoencoder.raw_posterior(images).mean.mean((2, 3))).argmax(1).numpy()
    accuracy = report_of(tmp_path / "run")["head_accuracy"]
    assert accuracy == pytest.approx((read == dataset.labels[indices]).mean(), abs=0.003) and accuracy > 0.3


# ---- what it is good for

STAGE_TWO = """
denoiser: {{network: {{widths: {widths}, blocks: 1, attention: [{attention}], head_channels: 8}}}}
run: {{steps: 2, batch_size: 8, log_every: 1, checkpoint_every: 2, sample_every: 2, precision: fp32}}
"""


def of_shapes(shapes_folder: Path) -> tuple[object, ...]:
    return ("--data.kind", "folder", "--data.path", shapes_folder, "--data.channels", 1)


def stage_two(autoencoder: Path, folder: Path, widths: tuple[int, ...] = (16,), attention: int = 0) -> Outcome:
    """A run in `folder`/two on latents of k x 1 x 1, which cannot be made smaller, or on others."""
    (folder / "two.yaml").write_text(STAGE_TWO.format(widths=list(widths), attention=attention))
    return ran("train_diffusion", folder / "two.yaml", "--autoencoder", autoencoder, "--out", folder / "two")


@pytest.mark.parametrize(("name", "latent"), [("plain", (32, 1, 1)), ("masked", (96, 4, 4))])
def test_stage_two_learns_its_latents_and_samples_are_drawn(name, latent, family, shapes_folder, tmp_path):
    """Also of a vision transformer, once it gives images back."""
    if name == "masked":
        autoencoder = tmp_path / "vit"
        trained(name, autoencoder, 3, "--objective.target", "images", *of_shapes(shapes_folder))
        outcome = stage_two(autoencoder, tmp_path, (8, 16), 1)
    else:
        outcome = stage_two(family(name), tmp_path)
    assert outcome.code == 0, outcome.err
    out, many = tmp_path / "two", tmp_path / "many"
    assert (drawn := ran("sample", out, "--out", many, "--num", 2, "--steps", 2, "--device", "cpu")).code == 0, drawn
    model = LatentDiffusion.load(out)
    assert model.config.latent_shape == latent and len(model.classes) == (2 if name == "masked" else 10)
    images = pixels(model.sample(2, steps=2))
    for path, image in zip(sorted(many.iterdir()), images, strict=True):
        with Image.open(path) as picture:
            assert (np.asarray(picture) == image[:, :, 0]).all()


KL = """
data: {kind: mnist5k}
autoencoder: {network: {kind: kl, widths: [8, 8], norm_groups: 4, mid_attention: false}}
objective: {target: normalized-patches}
"""


def test_what_becomes_an_autoencoderkl_gives_images_back(shapes_folder, tmp_path):
    """Nothing in its folder could say that it does not."""
    (tmp_path / "kl.yaml").write_text(KL)
    data = (*of_shapes(shapes_folder), "--run.batch-size", 8)
    outcome = ran("train_vae", tmp_path / "kl.yaml", "--out", tmp_path / "kl", *data)
    assert "objective.target normalized-patches" in one_line(outcome, 2)


def test_an_autoencoder_that_gives_no_images_back_is_neither_measured_nor_sampled_as_if_it_did(
    family, shapes_folder, tmp_path
):
    """Its patches have neither mean nor variance: whatever is drawn from it would be gray, in a well-formed PNG."""
    run = family("masked")
    assert "held_out_psnr" not in report_of(run)
    measured = ran(
        "ldm.cli.main", "evaluate", run, "--data", shapes_folder, "--images", 3, "--out", tmp_path / "e.json"
    )
    assert measured.code == 0, measured.err
    measured_metrics = json.loads((tmp_path / "e.json").read_text())["metrics"]
    assert [measured_metrics[each] for each in ("psnr", "ssim", "explained_variance")] == [None] * 3
    assert str(run) in one_line(stage_two(run, tmp_path), 4)


@pytest.mark.parametrize("size", ["32", "20", "12", "16x32"])
def test_a_dense_autoencoder_refuses_images_of_another_size_and_names_both(size, family, shapes_folder):
    """Images that it would first have to extend are of another size too."""
    outcome = ran("ldm.cli.main", "evaluate", family("plain"), "--data", shapes_folder, "--size", size, "--images", 3)
    line, given = one_line(outcome, 2), "[16, 32]" if size == "16x32" else size
    assert "mlp" in line and "size 16 " in line and line.endswith(f"not of {given}")


def test_stage_two_refuses_images_that_a_dense_autoencoder_does_not_take(family, shapes_folder, tmp_path):
    for size in (32, 12):
        data = (*of_shapes(shapes_folder), "--data.size", size)
        (tmp_path / "two.yaml").write_text("run: {steps: 2, batch_size: 8}\n")
        given = (tmp_path / "two.yaml", "--autoencoder", family("plain"), "--out", tmp_path / "two", *data)
        outcome = ran("train_diffusion", *given)
        assert str(size) in one_line(outcome, outcome.code) and outcome.code in (2, 4)


@pytest.mark.parametrize("name", ["plain", "masked"])
@pytest.mark.parametrize("form", ["compvis", "comfyui"])
def test_what_no_other_program_can_hold_is_not_exported_to_it(name, form, family, tmp_path):
    out = tmp_path / "export"
    line = one_line(ran("ldm.cli.main", "export", family(name), "--format", form, "--out", out), 2)
    assert {"plain": "mlp and identity", "masked": "vit and identity"}[name] in line
    assert not out.exists()


@pytest.mark.parametrize("name", ["plain", "masked"])
def test_what_brings_its_own_code_is_not_refused_by_diffusers(name, family, tmp_path):
    outcome = ran("ldm.cli.main", "export", family(name), "--format", "diffusers", "--out", tmp_path / "export")
    assert outcome.code == 0 and "read again and compared" in outcome.out, outcome
    assert len(list((tmp_path / "export").glob("autoencoder_*.py"))) == 1


def test_a_tokenizer_that_reads_classes_finishes_although_its_folder_has_no_place_for_a_head(stage_one, tmp_path):
    outcome = stage_one.run(tmp_path / "run", "--objective.penalties.classification.weight", 0.1)
    assert outcome.code == 0, outcome.err
    assert 0 <= report_of(tmp_path / "run")["head_accuracy"] <= 1


def test_the_config_of_a_codec_trains_on_a_folder_of_images_and_is_exported(shapes_folder, tmp_path):
    trained("compression", tmp_path / "run", 3, "--data.path", shapes_folder)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert math.isfinite(report["held_out_psnr"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (
        all(line["bits_per_pixel"] > 0 for line in lines if "bits_per_pixel" in line) and "bits_per_pixel" in lines[0]
    )
    assert Autoencoder.load(tmp_path / "run").decode(torch.zeros(1, 8, 4, 4)).shape == (1, 3, 16, 16)
