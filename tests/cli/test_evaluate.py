"""`ldm evaluate` from the command line: what it measures, what it writes, what it refuses."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm import Autoencoder
from ldm.shapes import to_float, to_uint8
from tests.support.backbones import random_alexnet
from tests.support.evaluate_command import evaluated, measured
from tests.support.scripts import ROOT, ran, script, together


def networks() -> tuple[object, ...]:
    """The flags for a perceptual distance and a Fréchet distance."""
    return "--lpips", "alex", "--lpips-weights", random_alexnet(), "--fid", "alex", "--fid-weights", random_alexnet()


@pytest.fixture(scope="module", autouse=True)
def imported_once() -> None:
    """What every forked child would import by itself."""
    import ldm.evaluation.protocol  # noqa: F401


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the images of the report and their reconstructions are."""
    return tmp_path_factory.mktemp("report") / "saved"


@pytest.fixture(scope="module")
def report(finished_vae: Path, saved: Path) -> dict[str, Any]:
    """The report on all images of the run, which are saved."""
    flags = ("--split", "all", *networks(), "--batch-size", 7, "--save-images", saved)
    return measured(saved.parent / "all.json", finished_vae, *flags)


def rounded(finished_vae: Path, shapes_folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and their reconstructions as bytes, by the shortest way."""
    files = sorted(str(path.relative_to(shapes_folder)) for path in shapes_folder.rglob("*.png"))
    arrays = [np.asarray(Image.open(shapes_folder / name)).transpose(2, 0, 1) for name in files]
    images = torch.from_numpy(np.stack(arrays))
    with torch.no_grad():
        return images, to_uint8(Autoencoder.load(finished_vae).reconstruct(to_float(images)))


def saved_pairs(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """What `--save-images` wrote, each image with its reconstruction."""
    files = sorted((folder / "images").iterdir())
    assert [file.name for file in files] == sorted(file.name for file in (folder / "reconstructions").iterdir())
    return [(np.asarray(Image.open(f)), np.asarray(Image.open(folder / "reconstructions" / f.name))) for f in files]


def test_saved_images_have_the_psnr_and_ssim_of_scikit_image(report, saved):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    pairs = saved_pairs(saved)
    assert report["count"] == len(pairs) == 60 and report["protocol"]["split"] == "all"
    theirs = np.mean([peak_signal_noise_ratio(image, other, data_range=255) for image, other in pairs])
    assert report["metrics"]["psnr"] == pytest.approx(theirs, abs=1e-6)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    theirs = np.mean([structural_similarity(*pair, channel_axis=2, **options) for pair in pairs])
    assert report["metrics"]["ssim"] == pytest.approx(theirs, abs=1e-6)
    assert "inside the image, without padding" in report["protocol"]["ssim"]


def test_saved_images_have_the_psnr_of_torchmetrics(report, saved):
    from torchmetrics.functional.image import peak_signal_noise_ratio

    images, reconstructions = (
        torch.from_numpy(np.stack(each)).double() for each in zip(*saved_pairs(saved), strict=True)
    )
    theirs = peak_signal_noise_ratio(reconstructions, images, 255.0, reduction="none", dim=(1, 2, 3)).mean().item()
    assert report["metrics"]["psnr"] == pytest.approx(theirs, rel=1e-5)


def test_saved_images_have_the_frechet_and_kernel_distances_of_torch_fidelity(report, saved):
    """In the features of the same network; those of Inception would have to be downloaded."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    from ldm.evaluation.feature_networks import open_extractor

    extractor = open_extractor("alex", str(random_alexnet()), 3, torch.device("cpu"))
    assert extractor is not None
    features = []
    for pixels in zip(*saved_pairs(saved), strict=True):
        with torch.no_grad():
            features.append(
                extractor.features(to_float(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))).double()
            )
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, features), verbose=False)
    assert report["metrics"]["frechet_alex"] == pytest.approx(fid["frechet_inception_distance"], rel=1e-3)
    kid = kid_features_to_metric(*features, kid_subset_size=60, kid_subsets=1, rng_seed=2020, verbose=False)
    found = report["metrics"]["kernel_distance_alex"]
    assert found == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-3)
    assert report["protocol"]["kernel"]["subsets"] == 1 and report["protocol"]["kernel"]["subset_size"] == 60
    assert not {"rfid", "kid"} & report["metrics"].keys()


def test_saved_images_are_the_bytes_that_were_measured_under_the_names_of_the_files(
    finished_vae, shapes_folder, report, saved
):
    images, reconstructions = rounded(finished_vae, shapes_folder)
    files = sorted(str(path.relative_to(shapes_folder)) for path in shapes_folder.rglob("*.png"))
    digests = []
    for name, image, reconstruction in zip(files, images, reconstructions, strict=True):
        found = [
            np.asarray(Image.open(saved / part / name.replace("/", "-"))) for part in ("images", "reconstructions")
        ]
        assert np.array_equal(found[0], image.permute(1, 2, 0)) and found[1].dtype == np.uint8
        assert np.abs(found[1].astype(int) - reconstruction.permute(1, 2, 0).numpy()).max() <= 1  # in other batches
        digests.append(hashlib.sha256(found[0].transpose(2, 0, 1).tobytes()).digest())
    assert report["reference"] == hashlib.sha256(b"".join(digests)).hexdigest()
    assert sorted(path.name for path in saved.parent.iterdir()) == ["all.json", "saved"]


def test_the_frechet_distance_is_the_fid_of_torchmetrics_with_the_same_features(finished_vae, shapes_folder, report):
    from torchmetrics.image.fid import FrechetInceptionDistance

    from ldm.evaluation.feature_networks import open_extractor

    extractor = open_extractor("alex", str(random_alexnet()), 3, torch.device("cpu"))
    assert extractor is not None and extractor.frechet_name == "frechet_alex"

    class Features(torch.nn.Module):
        num_features = 256

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return extractor.features(images.float()).double()

    fid = FrechetInceptionDistance(feature=Features()).set_dtype(torch.float64)
    with torch.no_grad():
        for pixels, real in zip(rounded(finished_vae, shapes_folder), (True, False), strict=True):
            fid.update(to_float(pixels), real=real)
    assert report["metrics"]["frechet_alex"] == pytest.approx(fid.compute().item(), rel=1e-3)
    assert report["protocol"]["frechet"]["fewer_images_than_dimensions"]


def test_the_reference_is_a_hash_of_the_bytes_of_the_images(finished_vae, shapes_folder, report):
    images, _ = rounded(finished_vae, shapes_folder)
    digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
    assert report["reference"] == hashlib.sha256(b"".join(digests)).hexdigest()


def test_two_processes_write_what_one_writes(finished_vae, report, saved, tmp_path):
    """Byte for byte: the metrics, and every image."""
    flags = ("--split", "all", *networks(), "--batch-size", 7, "--save-images", tmp_path / "saved")
    main = ("evaluate", finished_vae, *flags, "--out", tmp_path / "two.json")
    outcomes = together([script("ldm.cli.main", *main)] * 2)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert (tmp_path / "two.json").read_bytes() == (saved.parent / "all.json").read_bytes()
    assert sum("MS-SSIM" in outcome.out for outcome in outcomes) == 1
    for part in ("images", "reconstructions"):
        one, two = (
            {file.name: file.read_bytes() for file in (each / part).iterdir()} for each in (saved, tmp_path / "saved")
        )
        assert one == two and len(one) == 60


def test_large_images_have_all_figures_byte_for_byte_with_one_process_and_two(shapes_folder, tmp_path):
    """MS-SSIM too, which small images are left out of."""
    from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, TinyNetworkConfig
    from ldm.autoencoder.model import create

    torch.manual_seed(0)
    network = TinyNetworkConfig(width=8, levels=1, blocks=1)
    create(AutoencoderConfig(network, GaussianConfig(channels=3)), image=(3, 176, 162)).save(tmp_path / "vae")
    flags = ("--data", shapes_folder, "--size", "176x162", "--images", 4, "--batch-size", 2)
    one = measured(tmp_path / "one.json", tmp_path / "vae", *flags)
    main = ("evaluate", tmp_path / "vae", *flags, "--out", tmp_path / "two.json")
    outcomes = together([script("ldm.cli.main", *main)] * 2)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert 0 < one["metrics"]["ms_ssim"] < 1 and 0 < one["metrics"]["ssim"] < 1


def test_small_images_get_no_smaller_window_but_no_similarity_and_the_table_says_why(finished_vae, report, tmp_path):
    assert report["metrics"]["ms_ssim"] is None and "below 161 pixels, none" in report["protocol"]["ms_ssim"]
    outcome = evaluated(finished_vae, "--size", "10x12", "--out", tmp_path / "a.json")
    assert re.search(r"^SSIM +not defined: needs sides of at least 11 pixels$", outcome.out, re.MULTILINE), outcome
    assert re.search(r"^MS-SSIM +not defined: needs sides of at least 161 pixels$", outcome.out, re.MULTILINE)
    metrics = json.loads((tmp_path / "a.json").read_text())["metrics"]
    assert metrics["ssim"] is metrics["ms_ssim"] is None and metrics["psnr"] > 0


@pytest.mark.parametrize("there", ["a file in it", "a file"])
def test_saved_images_never_take_the_place_of_what_is_there(finished_vae, tmp_path, there):
    folder = tmp_path / "mine"
    mine = folder / "images" / "disc-00.png" if there == "a file in it" else folder
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(b"mine")
    outcome = evaluated(finished_vae, "--save-images", folder)
    assert outcome.code == 2 and f"--save-images {folder} is there already: name a new folder" in outcome.err, outcome
    assert mine.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_and_what_an_interrupted_attempt_left_are_no_obstacle(finished_vae, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "stale.png").write_bytes(b"")
    outcome = evaluated(finished_vae, "--images", 2, "--save-images", tmp_path / "new")
    assert outcome.code == 0 and len(saved_pairs(tmp_path / "new")) == 2, outcome
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("features", ["flat", "mean"])
def test_probes_find_the_same_with_one_process_and_two(finished_vae, tmp_path, features):
    flags = ("--probe", features, "--batch-size", 7)
    one = measured(tmp_path / "one.json", finished_vae, *flags)
    main = ("evaluate", finished_vae, *flags, "--out", tmp_path / "two.json")
    outcomes = together([script("ldm.cli.main", *main)] * 2)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert one["protocol"]["probe"]["features"] == features and one["protocol"]["probe"]["training_images"] == 54
    assert one["protocol"]["probe"]["dimensions"] == {"flat": 2 * 8 * 8, "mean": 2}[features]
    for name in ("knn_accuracy", "linear_accuracy", "pixel_knn_accuracy", "pixel_linear_accuracy"):
        assert 0 <= one["metrics"][name] <= 1


def test_probes_measure_the_held_out_images_of_another_folder_too(finished_vae, shapes_folder, tmp_path):
    flags = ("--data", shapes_folder, "--split", "held-out", "--probe", "mean", "--images", 4)
    found = measured(tmp_path / "a.json", finished_vae, *flags)
    assert found["count"] == 4 and found["protocol"]["probe"]["training_images"] == 54


def test_the_table_shows_probes_beside_the_pixels_and_of_a_sparse_code_how_sparse_it_is(shapes_folder, tmp_path):
    from ldm.autoencoder.config import AutoencoderConfig, LinearNetworkConfig, SparseConfig
    from ldm.autoencoder.model import create

    torch.manual_seed(0)
    config = AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=SparseConfig(channels=40, k=4))
    create(config, image=(3, 16, 16)).save(tmp_path / "sparse")
    data = ("--data", shapes_folder, "--size", 16, "--split", "held-out")
    outcome = evaluated(tmp_path / "sparse", *data, "--probe", "flat", "--out", tmp_path / "a.json")
    assert outcome.code == 0, outcome
    metrics = json.loads((tmp_path / "a.json").read_text())["metrics"]
    rows = dict(re.findall(r"^(\S.*?|  \S.*?)  +(\S.*)$", outcome.out, re.MULTILINE))
    assert rows["kNN accuracy"] == f"{metrics['knn_accuracy']:.4g} (of 40 numbers, 54 training images)"
    assert rows["linear accuracy"] == f"{metrics['linear_accuracy']:.4g}"
    assert rows["  of the pixels"] == f"{metrics['pixel_linear_accuracy']:.4g}"
    assert rows["code elements not 0"] == "4 of 40"
    assert rows["units that are always 0"] == f"{100 * metrics['dead_units']:.4g} %"
    assert rows["explained variance"] == f"{metrics['explained_variance']:.4g}"
    assert rows["KL per latent element, nats"] == "not defined" and metrics["kl_per_latent_element"] is None
    assert rows["  PSNR of PCA per patch"] == "the same: there is one patch"
    assert "in 40 channels" in rows["latent std"]


def test_the_table_of_a_code_that_is_not_sparse_does_not_say_how_sparse_it_is(finished_vae):
    outcome = evaluated(finished_vae)
    assert "explained variance" in outcome.out and "--probe mean" in outcome.out
    assert "not 0" not in outcome.out and "always 0" not in outcome.out


def test_a_probe_without_classes_is_refused_before_the_work(finished_vae, shapes_folder, tmp_path):
    for number, file in enumerate(sorted(shapes_folder.rglob("*.png"))):
        shutil.copy(file, tmp_path / f"{number}.png")
    outcome = evaluated(finished_vae, "--data", tmp_path, "--split", "held-out", "--probe", "mean")
    assert outcome.code == 3 and "--probe mean needs training images of at least two classes" in outcome.err, outcome
    assert "Traceback" not in outcome.err


def test_a_probe_of_more_numbers_than_can_be_held_is_refused(finished_vae, shapes_folder):
    data = ("--data", shapes_folder, "--split", "held-out", "--images", 1)
    outcome = evaluated(finished_vae, *data, "--size", "256x258", "--probe", "flat")
    assert outcome.code == 2 and "not of 33024: use --probe mean" in outcome.err, outcome


def test_the_default_is_the_held_out_images_of_the_run_and_agrees_with_its_own_report(finished_vae, tmp_path):
    found = measured(tmp_path / "a.json", finished_vae, "--panel", tmp_path / "panel.png")
    own = json.loads((finished_vae / "report.json").read_text())
    assert found["protocol"]["split"] == "held-out" and found["count"] == 6
    assert found["metrics"]["psnr"] == pytest.approx(own["held_out_psnr"], abs=1e-4)
    assert found["metrics"]["patch_pca_psnr"] == own["patch_pca_psnr"]
    assert found["protocol"]["distance"] is None and found["protocol"]["frechet"] is None
    with Image.open(tmp_path / "panel.png") as panel:
        assert panel.width > 100


def test_training_latents_are_standardized(finished_vae, tmp_path):
    metrics = measured(tmp_path / "a.json", finished_vae, "--split", "training")["metrics"]
    assert np.abs(metrics["latent_mean"]).max() < 1e-3
    assert np.abs(np.array(metrics["latent_std"]) - 1).max() < 1e-3


def test_a_folder_and_an_exported_autoencoder_give_the_metrics_of_the_run(
    finished_vae, shapes_folder, report, tmp_path
):
    exported, data = finished_vae / "vae", ("--data", shapes_folder, "--size", "16x16", "--batch-size", 7)
    found = measured(tmp_path / "a.json", exported, *data)
    assert found["reference"] == report["reference"] and found["protocol"]["baselines"] is None
    for name in ("psnr", "ssim", "latent_std", "latent_spectrum_slope", "encoder_jacobian"):
        assert found["metrics"][name] == report["metrics"][name], name
    assert found["autoencoder"]["sha256"] == report["autoencoder"]["sha256"]


def test_a_number_of_images_is_spread_over_all_of_them(finished_vae, report, tmp_path):
    found = measured(tmp_path / "a.json", finished_vae, "--split", "all", "--images", 3)
    assert found["count"] == 3 and found["reference"] != report["reference"]


def test_any_size_is_measured_even_one_that_the_factor_does_not_divide(finished_vae, tmp_path):
    found = measured(tmp_path / "a.json", finished_vae, "--size", 21)
    assert found["protocol"]["image"] == [3, 21, 21] and found["protocol"]["latent"] == [2, 11, 11]
    assert found["metrics"]["patch_pca_psnr"] is None
    found = measured(tmp_path / "b.json", finished_vae, "--size", "12x18", "--panel", tmp_path / "panel.png")
    assert found["protocol"]["image"] == [3, 12, 18] and found["protocol"]["latent"] == [2, 6, 9]
    assert found["metrics"]["patch_pca_psnr"] is not None


def test_without_networks_the_table_says_how_to_ask_for_them(finished_vae):
    outcome = evaluated(finished_vae)
    assert outcome.code == 0
    assert "--lpips vgg" in outcome.out and "--fid inception" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("{tmp}/nowhere",), 4, "is not a hub id"),
        (("{vae}/vae",), 2, "name the images with --data"),
        (("{tmp}/nowhere", "--data", "{shapes}", "--size", 16), 4, "is not a hub id"),
        (("{shapes}", "--data", "{shapes}", "--size", 16), 4, "it has no config.json"),
        (("{vae}/vae", "--data", "{shapes}"), 2, "--size is missing"),
        (("{vae}", "--size", "16x"), 2, "--size 16x is neither"),
        (("{vae}", "--data", "{tmp}"), 3, "holds no images"),
        (("{vae}", "--data", "{tmp}/nowhere"), 3, "does not exist"),
        (("{vae}", "--images", 7), 2, "--images 7 is more than the 6 held-out images"),
        (("{vae}", "--images", 0), 2, "--images 0 must be at least 1"),
        (("{vae}", "--batch-size", 0), 2, "--batch-size 0 must be at least 1"),
        (("{vae}", "--images", 1, "--fid", "alex", "--fid-weights", "{alexnet}"), 2, "--fid needs at least 2 images"),
        (("{vae}", "--device", "abacus"), 2, "--device abacus cannot be used"),
        (("{vae}", "--lpips", "vg"), 2, "invalid choice"),
        (("{vae}", "--lpips", "features"), 2, "--lpips features needs --lpips-weights"),
        (("{vae}", "--fid", "features"), 2, "--fid features needs --fid-weights"),
        (("{vae}", "--lpips", "vgg", "--lpips-weights", "{tmp}/vgg.pth"), 2, "vgg.pth is not a file"),
        (("{vae}", "--fid", "inception", "--fid-weights", "{tmp}/i.pth"), 2, "i.pth is not a file"),
        (("{vae}", "--fid-weights", "x"), 2, "--fid-weights is for a network that has weights: --fid is none"),
        (("{vae}", "--lpips", "vgg", "--fid-weights", "x"), 2, "--fid is none"),
        (("{vae}", "--fid", "inception", "--lpips-weights", "x"), 2, "--lpips is none"),
        (("{vae}", "--lpips", "random"), 2, "invalid choice"),
        (("{vae}", "--out", "{tmp}"), 2, "--out"),
        (("{vae}", "--out", "{tmp}/no/where.json"), 2, "it is in no folder"),
        (("{vae}", "--panel", "{tmp}/panel.gif"), 2, "must end in .png"),
        (("{vae}", "--save-images", "{tmp}/no/where"), 2, "it is in no folder"),
        (("{vae}", "--probe", "whole"), 2, "invalid choice"),
        (("{vae}", "--probe", "mean", "--split", "all"), 2, "--probe mean is fitted to the training images"),
        (("{vae}", "--probe", "flat", "--split", "training"), 2, "use --split held-out"),
        (("{vae}", "--probe", "flat", "--data", "{shapes}"), 2, "use --split held-out"),
        (("{vae}", "--datta", "x"), 2, "did you mean --data?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(finished_vae, shapes_folder, tmp_path, arguments, code, words):
    places = {"vae": finished_vae, "shapes": shapes_folder, "tmp": tmp_path, "alexnet": random_alexnet()}
    outcome = evaluated(*(str(argument).format(**places) for argument in arguments))
    assert outcome.code == code, outcome
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert words in line and "Traceback" not in outcome.err


@pytest.mark.parametrize(("kind", "flag"), [("vgg", "--lpips"), ("inception", "--fid"), ("vgg", "--fid")])
def test_absent_weights_are_named_with_the_flag_that_provides_them(finished_vae, tmp_path, monkeypatch, kind, flag):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no way out
    outcome = evaluated(finished_vae, flag, kind)
    assert outcome.code == 2 and f"{flag}-weights PATH" in outcome.err, outcome
    assert "--objective" not in outcome.err


def test_images_of_other_channels_than_the_autoencoders_are_refused(finished_vae, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("channels: 3", "channels: 1"))
    outcome = evaluated(run)
    assert outcome.code == 4 and "takes 3 channels, not data.channels 1" in outcome.err


def test_deep_images_of_many_channels_are_measured_on_8_bits(tmp_path):
    """13 bands of 16 bits each, through a stock autoencoder of 13 channels; the reference is their rounded bytes."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    kl = AutoencoderKL(13, 13, **blocks, block_out_channels=(4, 4), norm_num_groups=2, latent_channels=2)
    kl.save_pretrained(tmp_path / "kl")
    (tmp_path / "bands").mkdir()
    bands = np.random.default_rng(0).integers(0, 65536, (3, 13, 16, 16), dtype=np.uint16)
    for number, image in enumerate(bands):
        np.save(tmp_path / "bands" / f"{number}.npy", image)
    flags = ("--size", 16, *networks(), "--panel", tmp_path / "panel.png")
    found = measured(tmp_path / "a.json", tmp_path / "kl", "--data", tmp_path / "bands", *flags)
    levels = to_uint8(torch.from_numpy(bands.astype(np.float64) / 65535 * 2 - 1)).numpy()
    digests = [hashlib.sha256(image.tobytes()).digest() for image in levels]
    assert found["reference"] == hashlib.sha256(b"".join(digests)).hexdigest()
    assert found["protocol"]["frechet"]["dimensions"] == 5 * 256
    outcome = evaluated(tmp_path / "kl", "--data", tmp_path / "bands", "--size", 16, "--save-images", tmp_path / "png")
    assert outcome.code == 2 and "PNG files, of 1 to 4 channels, and these images have 13" in outcome.err, outcome
    assert not list(tmp_path.glob("png*"))


def test_a_folder_of_other_channels_is_refused(finished_vae, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((13, 16, 16), dtype=np.uint8))
    outcome = evaluated(finished_vae, "--data", tmp_path)
    assert outcome.code == 3 and "13 channels" in outcome.err, outcome


def test_a_run_that_is_not_finished_is_called_so(finished_vae, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    shutil.rmtree(run / "vae")
    outcome = evaluated(run)
    assert outcome.code == 4 and "is not finished" in outcome.err


def test_an_error_with_two_processes_is_said_once(finished_vae):
    outcomes = together([script("ldm.cli.main", "evaluate", finished_vae, "--images", 7)] * 2)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert sum(outcome.err.count("error:") for outcome in outcomes) == 1


def test_data_that_changed_have_no_held_out_images_of_the_run(stage_one, shapes_folder, tmp_path):
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(shapes_folder, images)
    assert stage_one.run(run, "--data.path", images).code == 0
    assert evaluated(run, "--images", 2).code == 0
    (images / "disc" / "00.png").unlink()
    outcome = evaluated(run)
    assert outcome.code == 3 and "the data changed" in outcome.err and "--data PATH" in outcome.err, outcome
    assert evaluated(run, "--data", images).code == 0
    other = evaluated(run, "--size", 18)
    assert other.code == 0 and "are not compared" in other.out, other


def test_an_old_vae_of_a_run_that_goes_on_is_not_measured(finished_vae, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    (run / "finished.json").write_text('{"step": 3}')
    outcome = evaluated(run)
    assert outcome.code == 4 and "is not finished" in outcome.err and "ldm export --checkpoint" in outcome.err, outcome


def test_one_image_was_said_to_be_of_data_that_hold_none_out(finished_vae, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    outcome = evaluated(finished_vae, "--data", tmp_path, "--split", "held-out")
    assert outcome.code == 3 and "none of the 1 images is held out: choose --split training or all" in outcome.err


def test_a_broken_config_is_what_is_wrong_and_not_the_lack_of_data(finished_vae, finished_diffusion, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("held_out:", "helt_out:"))
    for verb in (("evaluate",), ("export", "--format", "diffusers", "--out", tmp_path / "out")):
        outcome = ran("ldm.cli.main", *verb, run)
        assert outcome.code == 2 and "config.yaml" in outcome.err and "helt_out" in outcome.err, outcome
    outcome = ran("ldm.cli.main", "evaluate", finished_diffusion)
    assert outcome.code == 2 and f"give {finished_diffusion}/vae" in outcome.err, outcome


@pytest.mark.parametrize("flag", ["--out", "--panel", "--memorization-sheet"])
def test_a_picture_of_somebodys_is_replaced_by_a_report(finished_vae, finished_diffusion, tmp_path, flag):
    theirs = tmp_path / "mine.png"
    Image.new("RGB", (4, 4)).save(theirs)
    before = theirs.read_bytes()
    run = (finished_diffusion, "--generate", 4) if flag == "--memorization-sheet" else (finished_vae, "--images", 2)
    outcome = evaluated(*run, flag, theirs)
    assert outcome.code == 2 and f"{flag} {theirs} is there, and was not written by ldm evaluate" in outcome.err, (
        outcome
    )
    assert theirs.read_bytes() == before


def test_the_files_of_an_evaluation_are_written_again(finished_vae, tmp_path):
    flags = ("--images", 2, "--out", tmp_path / "a.json", "--panel", tmp_path / "a.png")
    assert [evaluated(finished_vae, *flags).code for _ in range(2)] == [0, 0]
    outcome = evaluated(finished_vae, "--out", tmp_path / "a.png", "--panel", tmp_path / "a.png")
    assert outcome.code == 2 and "name each its own" in outcome.err, outcome


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc is a folder in which nobody can make a file")
@pytest.mark.parametrize("flag", ["--panel", "--out", "--save-images"])
def test_a_place_that_cannot_be_written_is_no_traceback(finished_vae, flag):
    outcome = evaluated(finished_vae, "--images", 2, flag, "/proc/x.png")
    assert outcome.code == 4 and "error: could not write /proc/x.png" in outcome.err, outcome
    assert "Traceback" not in outcome.err


def test_ctrl_c_does_not_promise_that_something_was_saved(monkeypatch, capsys):
    from ldm.cli import evaluate, main

    def interrupted(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "main", interrupted)
    monkeypatch.setattr("sys.argv", ["ldm", "evaluate", "runs/vae"])
    with pytest.raises(SystemExit) as ended:
        main.entry()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: stopped; nothing was written\n"


@pytest.mark.slow
def test_torchrun_takes_none_of_the_flags_for_its_own(finished_vae, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    flags = ["--images", "5", "--batch-size", "2", "--split", "all", "--device", "cpu", "--size", "16"]
    main = [*launch, "-m", "ldm", "evaluate", str(finished_vae), *flags, "--out", str(tmp_path / "a.json")]
    ended = subprocess.run(main, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "a.json").read_text())["count"] == 5


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
