"""Every input that a person can get wrong: one line, the right exit code, nothing lost."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import squeezenet1_1

from tests.support.image_files import write_files
from tests.support.miniatures import STAGE_TWO
from tests.support.scripts import Outcome, Stage, ran, weights

PRETRAINED = ("--autoencoder.network.kind", "pretrained", "--autoencoder.network.path")
NO_FILE = ("--objective.perceptual.weights-file", "")


def one_line(outcome: Outcome, code: int, *words: str) -> None:
    """The script ended with this code and one line of error that holds these words, and with no traceback."""
    assert outcome.code == code, outcome.err
    errors = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in outcome.err, outcome.err
    for word in words:
        assert word in errors[0], errors[0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--optim.lrr", 1), 2, ("--optim.lrr", "did you mean --optim.lr")),
        (("--learning_rate", 1), 2, ("did you mean --optim.lr?",)),
        (("--train-batch-size", 1), 2, ("did you mean --run.batch_size?",)),
        (("--run.steps", "many"), 2, ("--run.steps", "whole number")),
        (("--run.steps", 2.5), 2, ("--run.steps",)),
        (("--run.precision", "fp61"), 2, ("--run.precision", "fp16")),
        (("--run.precision", "fp16"), 2, ("fp16 needs a GPU",)),
        (
            ("--run.batch-size", 1000),
            2,
            ("run.batch_size 1000 is larger than the 54 training images: give at most 54",),
        ),
        (("--run.batch-size", 9, "--run.accumulation", 2), 2, ("run.batch_size 9 is not divisible by 2",)),
        (("--data.size", 17), 2, ("data.size 17 is not divisible by 2", "16 or 18")),
        (("--autoencoder.network.norm-groups", 3), 2, ("norm_groups 3 does not divide",)),
        (("--data.held-out", 1.5), 2, ("--data.held_out is 1.5", "(at least 0 and below 1)")),
        (("--data.path", "/nowhere/at/all"), 3, ("/nowhere/at/all does not exist",)),
        (("--data.kind", "photos"), 2, ("--data.kind", "folder")),
    ],
)
def test_a_wrong_setting_of_train_vae(stage_one, tmp_path, arguments, code, words):
    one_line(stage_one.run(tmp_path / "run", *arguments), code, *words)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--objective.perceptual.weight", 0), 2, ("--objective.perceptual.weight is 0", "(above 0)")),
        (
            (*NO_FILE, "--objective.perceptual.backbone", "vgg"),
            2,
            ("vgg16-397923af.pth", "--objective.perceptual.weights-file PATH"),
        ),
        ((*NO_FILE, "--objective.perceptual.backbone", "features"), 2, ("needs weights_file",)),
        (("--objective.perceptual.weights-file", "nowhere"), 2, ("nowhere",)),
        (("--objective.perceptual.size", 8), 2, ("objective.perceptual.size 8 is too small for",)),
        (("--objective.discriminator.start", 2), 2, ("--objective.discriminator.start is 2", "(from 0 to 1)")),
        (("--objective.discriminator.los", "hinge"), 2, ("did you mean --objective.discriminator.loss",)),
        (("--objective.equivariance.min-scale", 0), 2, ("--objective.equivariance.min_scale is 0", "(above 0 and at")),
        (
            ("--objective.corruption.fraction", 1),
            2,
            ("--objective.corruption.fraction is 1", "(at least 0 and below 1)"),
        ),
        (("--data.size", "[16, 17]"), 2, ("data.size [16, 17] is not divisible by 2",)),
        (("--data.size", 1), 2, ("data.size 1 is not divisible by 2", "use 2")),
        (("--data.channels", 0), 2, ("--data.channels is 0", "(at least 1)")),
        (("--data.channels", 13), 3, ("13", "channels")),
        (
            ("--autoencoder.freeze-encoder", "true"),
            2,
            ("freeze_encoder leaves", "network.kind kl random"),
        ),
        (
            (
                *("--autoencoder.network.kind", "residual", "--autoencoder.network.encoder-lr-factor", 0),
                *("--objective.penalties.jacobian.weight", 1),
            ),
            2,
            ("objective.penalties.jacobian shapes the encoder", "encoder_lr_factor 0", "set that to 1"),
        ),
        (
            ("--autoencoder.network.kind", "residual", "--autoencoder.freeze-encoder", "true"),
            2,
            ("encoder_lr_factor 0",),
        ),
        (("--autoencoder.network.kind", "pretrained"), 2, ("autoencoder.network", "path is empty")),
        ((*PRETRAINED, "nowhere/at/all"), 4, ("nowhere/at/all", "autoencoder.network.path")),
        ((*PRETRAINED, __file__), 4, ("autoencoder.network.path",)),
    ],
)
def test_a_wrong_loss_size_or_start(stage_one, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there, whatever the machine reaches otherwise
    outcome = stage_one.run(tmp_path / "run", *arguments)
    one_line(outcome, code, *words)
    assert not (tmp_path / "run" / "checkpoints").exists()


KIND = "--objective.corruption.kind"
SPARSE = ("--autoencoder.bottleneck.kind", "sparse")
IDENTITY = ("--autoencoder.bottleneck.kind", "identity")
PLAIN = tuple(
    word
    for name in ("corruption", "latent_corruption", "equivariance", "discriminator", "perceptual")
    for word in (f"--objective.{name}", "null")
)
VIT = ("--autoencoder.network.kind", "vit", *PLAIN[2:])  # with a corruption, nothing else
MLP = ("--autoencoder.network.kind", "mlp", KIND, "gaussian")
STAGES = "--objective.stages"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            (KIND, "salt-and-pepper", "--objective.corruption.probability", 1.5),
            ("corruption.probability is 1.5", "(above 0 and at most 1)"),
        ),
        (
            (KIND, "salt-and-pepper", "--objective.corruption.probability", -0.1),
            ("corruption.probability is -0.1", "(above 0 and at"),
        ),
        ((KIND, "salt-and-pepper", "--objective.corruption.low", -2), ("corruption.low is -2", "(from -1 to 1)")),
        ((KIND, "salt-and-pepper", "--objective.corruption.high", -1), ("low must be below high",)),
        ((KIND, "gaussian", "--objective.corruption.sigma", -1), ("corruption.sigma is -1", "(above 0)")),
        ((KIND, "gaussian", "--objective.corruption.sigma", "[1, 0.1]"), ("smaller and a larger number",)),
        ((KIND, "blur", "--objective.corruption.sigma", 0), ("corruption.sigma is 0", "(above 0)")),
        ((KIND, "interpolation", "--objective.corruption.strength", 0), ("corruption.strength is 0", "(above 0)")),
        ((KIND, "fog"), (KIND, "salt-and-pepper")),
        (("--objective.corruption.fraction", 0), ("fraction must be above 0",)),
        (("--objective.corruption.fraction", "[0.5, 1.5]"), ("fraction is [0.5, 1.5]", "(at least 0 and below 1)")),
        (("--objective.corruption.fraction", 0.001), ("fraction 0.001 of 64 patches hides none of them",)),
        (("--objective.corruption.fraction", 0.999), ("fraction 0.999 of 64 patches hides all of them",)),
        (("--objective.corruption.p-clean", 1), ("p_clean is 1", "(at least 0 and below 1)")),
        (("--objective.corruption.patch", 5), ("objective.corruption.patch 5 does not divide the size 16 x 16",)),
        (("--objective.corruption.patch", -1), ("corruption.patch is -1", "(at least 0)")),
        (("--objective.latent_corruption.strength", -1), ("--objective.latent_corruption.strength is -1", "(above 0)")),
        (
            ("--objective.latent_corruption.kind", "mask", "--objective.latent_corruption.patch", 3),
            ("does not divide",),
        ),
        (("--objective.corruption", "null", "--objective.emphasis", 0.9), ("objective.emphasis", "corruption is null")),
        (("--objective.emphasis", 0.9), ("objective.equivariance changes the image", ".emphasis")),
        ((*SPARSE, "--objective.penalties.aux_k.weight", 1), ("objective.equivariance", ".penalties.aux_k")),
        (("--objective.target", "normalized-patches"), ("are for images, and normalized patches are none",)),
        ((KIND, "gaussian", "--objective.emphasis", 0.9), ("change some elements only", "salt-and-pepper")),
        (("--objective.emphasis", 1.5), ("--objective.emphasis is 1.5", "(from 0 to 1)")),
        (("--objective.penalties.kl_sparsity.rate", 0), ("rate is 0", "(above 0 and below 1)")),
        (("--objective.penalties.kl_sparsity.rate", 1.2), ("rate is 1.2", "(above 0 and below 1)")),
        (("--objective.penalties.kl_sparsity.weight", 1), ("objective.penalties.kl_sparsity", "activation sigmoid")),
        (("--objective.penalties.l1.weight", 0), ("--objective.penalties.l1.weight is 0", "(above 0)")),
        (("--objective.penalties.aux_k.weight", 1), ("objective.penalties.aux_k", "kind sparse")),
        (("--objective.penalties.jacobian.probes", -1), ("jacobian.probes is -1", "(at least 0)")),
        (("--objective.penalties.l3.weight", 1), ("did you mean --objective.penalties.l2.weight",)),
        ((*SPARSE, "--autoencoder.bottleneck.k", 5, "--autoencoder.bottleneck.channels", 4), ("k must be from 0 to",)),
        ((*SPARSE, "--autoencoder.bottleneck.activation", "sigmoid", "--autoencoder.bottleneck.k", 1), ("use relu",)),
        ((*SPARSE, "--autoencoder.bottleneck.dead_after", 0), ("dead_after is 0", "(at least 1)")),
        (
            ("--autoencoder.network.kind", "mlp", "--autoencoder.network.widths", "[]"),
            ("kind linear has no layers between",),
        ),
        (("--autoencoder.network.kind", "linear", "--autoencoder.network.tied", "true"), ("tied needs",)),
        (("--autoencoder.network.kind", "pixels"), ("pixels has nothing to train",)),
        ((*VIT, "--autoencoder.network.heads", 3), ("heads 3 does not divide width 128",)),
        ((*VIT, "--autoencoder.network.width", 30), ("width must be a multiple of 4",)),
        ((*VIT, "--autoencoder.network.patch", 5), ("data.size 16 is not divisible by 5", "15 or 20")),
        ((*VIT, "--objective.corruption.p-clean", 0.1), ("must hide as many patches of every image",)),
        (
            (*VIT, "--objective.corruption.fraction", 0.5, "--objective.corruption.patch", 2),
            ("hides patches of 2", "autoencoder.network.patch is 4"),
        ),
        (
            (*PLAIN, *IDENTITY, "--autoencoder.bottleneck.channels", 12),
            ("holds all 768", "copying", "lower autoencoder.bottleneck.channels 12"),
        ),
        ((*PLAIN, *SPARSE, "--autoencoder.bottleneck.channels", 64), ("holds all 768", "corruption or a penalty")),
        ((*MLP, "--objective.equivariance", "null"), ("objective.discriminator.adaptive",)),
        ((*MLP, "--objective.discriminator", "null"), ("objective.equivariance needs",)),
        (
            (STAGES, "[{layer: 1}]"),
            ("objective.perceptual and .discriminator are for images", "a layer stage has none"),
        ),
        (
            (*PLAIN, STAGES, "[{layer: 1}]"),
            ("objective.stages.0.layer 1 needs autoencoder.network.kind linear or mlp",),
        ),
        ((*PLAIN, STAGES, "[{}, {fraction: 0.001}]"), ("objective.stages.1 has no step of the 6",)),
        ((*PLAIN, STAGES, "[{fraction: 0}]"), ("--objective.stages.0.fraction is 0", "(above 0)")),
        ((*PLAIN, STAGES, "[{layr: 1}]"), ("objective.stages.0.layr", "objective.stages.0.layer")),
        ((*PLAIN, STAGES, "3"), ("--objective.stages is 3", "list of settings")),
        (
            (*PLAIN, "--autoencoder.network.kind", "mlp", STAGES, "[{layer: 4}]"),
            ("objective.stages.0.layer 4 is not there: the network has 3",),
        ),
    ],
)
def test_what_cannot_be_asked_of_an_autoencoder(stage_one, tmp_path, arguments, words):
    one_line(stage_one.run(tmp_path / "run", *arguments), 2, *words)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_stage_that_trains_nothing(stage_one, finished_vae, tmp_path):
    frozen = (*PRETRAINED, finished_vae, "--autoencoder.freeze-encoder", "true")
    outcome = stage_one.run(tmp_path / "run", *PLAIN, *frozen, STAGES, "[{}, {trains: encoder}]")
    one_line(outcome, 2, "objective.stages.1 trains nothing: its encoder is frozen or empty")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_one_class_is_no_classification(stage_one, shapes_folder, tmp_path):
    outcome = stage_one.run(
        tmp_path / "run", "--data.path", shapes_folder / "disc", "--objective.penalties.classification.weight", 1
    )
    one_line(outcome, 2, "objective.penalties.classification needs data with at least two classes")


@pytest.mark.parametrize("what", ["channels", "latent channels"])
def test_an_autoencoder_to_start_from_that_does_not_fit(stage_one, finished_vae, tmp_path, what):
    wrong = ("--data.channels", 1) if what == "channels" else ("--autoencoder.bottleneck.channels", 4)
    outcome = stage_one.run(tmp_path / "run", *PRETRAINED, finished_vae, *wrong)
    one_line(outcome, 2, str(finished_vae), wrong[0].removeprefix("--"), "has 3" if what == "channels" else "has 2")


def test_other_perceptual_weights_do_not_slip_into_a_resumed_run(stage_one, tmp_path):
    networks = [squeezenet1_1(), squeezenet1_1()]
    file, out = tmp_path / "squeeze.pth", tmp_path / "run"
    config = ("--objective.perceptual.backbone", "squeeze", "--objective.perceptual.weights-file", file)
    torch.save(networks[0].state_dict(), file)
    assert stage_one.run(out, *config, "--run.steps", 3).code == 0
    torch.save(networks[1].state_dict(), file)
    one_line(stage_one.run(out, *config), 2, "weights of objective.perceptual changed")
    torch.save(networks[0].state_dict(), file)
    assert stage_one.run(out, *config).code == 0


def test_images_that_are_not_numbers_are_named(stage_one, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).random((16, 16, 3)).astype(np.float32)
        pixels[3, 4] = np.nan if number == 7 else 0
        np.save(folder / f"{number:02d}.npy", pixels)
    outcome = stage_one.run(tmp_path / "run", "--data.path", folder, "--data.depth", "float32")
    one_line(outcome, 3, "07.npy", "NaN")


@pytest.mark.parametrize("name", ["train_vae", "train_diffusion"])
def test_a_missing_or_broken_config_file(tmp_path, name):
    more = ("--autoencoder", tmp_path) if name == "train_diffusion" else ()
    one_line(ran(name, tmp_path / "no.yaml", "--out", tmp_path / "run", *more), 2, "no.yaml")
    (tmp_path / "bad.yaml").write_text("run: [\n")
    one_line(ran(name, tmp_path / "bad.yaml", "--out", tmp_path / "run", *more), 2, "bad.yaml")
    (tmp_path / "evil.yaml").write_text(f"run: !!python/object/apply:os.system ['touch {tmp_path}/owned']\n")
    one_line(ran(name, tmp_path / "evil.yaml", "--out", tmp_path / "run", *more), 2, "evil.yaml")
    assert not (tmp_path / "owned").exists()


def test_an_empty_folder(stage_one, tmp_path):
    (tmp_path / "empty").mkdir()
    one_line(stage_one.run(tmp_path / "run", "--data.path", tmp_path / "empty"), 3, "holds no images")


def test_unreadable_files_stop_a_run_above_the_threshold_and_are_listed_below_it(stage_one, shapes_folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(shapes_folder, images)
    (images / "disc" / "00.png").write_bytes(b"not a picture")
    broken = ("--data.path", images, "--run.steps", 2)
    one_line(stage_one.run(tmp_path / "stops", *broken), 3, "1 of 60", "disc/00.png")
    goes_on = stage_one.run(tmp_path / "goes-on", *broken, "--data.max-unreadable", 0.05)
    assert goes_on.code == 0 and "disc/00.png" in goes_on.out + goes_on.err


BATCH = (("--run.batch-size", 1000), "run.batch_size 1000 is larger than the 54 training images")
BALANCE = (("--data.balance", 1, "--data.labels", "none"), "data.balance 1 needs classes")
PATCH = (("--objective.corruption.patch", 5), "objective.corruption.patch 5 does not divide the size 16 x 16")


@pytest.mark.parametrize(
    ("script", "setting"),
    [
        *(("train_vae", setting) for setting in (BATCH, BALANCE, PATCH)),
        *(("train_diffusion", setting) for setting in (BATCH, BALANCE)),
    ],
)
def test_a_setting_that_does_not_fit_the_images_was_refused_after_they_were_decoded(
    stage_one, tmp_path, script, setting
):
    arguments, words = setting
    files = {f"{name}/{number}.png": b"damaged" for name in ("disc", "square") for number in range(30)}
    data = ("--data.kind", "folder", "--data.path", write_files(tmp_path / "images", files), "--data.size", 16)
    (tmp_path / "diffusion.yaml").write_text(STAGE_TWO)
    config = stage_one.arguments[0] if script == "train_vae" else tmp_path / "diffusion.yaml"
    one_line(ran(script, config, *data, *arguments, "--out", tmp_path / "run"), 2, words)


def test_an_out_that_cannot_be_a_folder(stage, tmp_path):
    (tmp_path / "file").write_text("")
    one_line(stage.run(tmp_path / "file"), 2, "--out")


def test_an_out_among_the_images_would_train_on_its_own_panels(stage_one, shapes_folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(shapes_folder, images)
    one_line(stage_one.run(images / "run", "--data.path", images), 2, "--out", "data.path", "choose another --out")
    assert not (images / "run").exists()


def test_an_empty_out_is_not_the_current_folder(stage):
    one_line(stage.run(""), 2, "--out needs a value")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["environment.json", "finished.json"])
def test_a_damaged_note_in_the_run_folder_is_named(stage_one, finished_vae, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    (run / name).write_text("{")
    one_line(stage_one.run(run, "--run.steps", 8), 4, name, "damaged")


def test_a_cache_that_cannot_be_a_folder(stage_two, tmp_path):
    (tmp_path / "file").write_text("")
    one_line(stage_two.run(tmp_path / "run", "--cache", tmp_path / "file" / "cache"), 2, "--cache", "Not a directory")


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "an unfinished run", "a hub id", "no autoencoder"])
def test_a_wrong_autoencoder(stage_two, finished_vae, tmp_path, what):
    source: Path | str = tmp_path / "source"
    if what == "a hub id":
        source = "nobody/nothing-like-this"
    elif what != "nothing":
        Path(source).mkdir()
    if what == "an unfinished run":
        for name in ("config.yaml", "environment.json"):
            shutil.copy(finished_vae / name, source)
    if what == "no autoencoder":
        (Path(source) / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    arguments = (*stage_two.arguments[:-1], source)
    data = ("--data.kind", "folder", "--data.path", finished_vae, "--data.size", 16)
    if what in ("nothing", "an empty folder", "a hub id"):
        one_line(Stage(stage_two.name, arguments).run(tmp_path / "run"), 2, "must have a data section")
    images = finished_vae / "config.yaml"
    path = next(line.split(": ")[1] for line in images.read_text().splitlines() if " path:" in line)
    data = ("--data.kind", "folder", "--data.path", path, "--data.size", 16)
    one_line(Stage(stage_two.name, arguments).run(tmp_path / "other", *data), 4, str(source))


def test_an_autoencoder_of_other_channels(stage_two, finished_vae, tmp_path):
    file = finished_vae / "config.yaml"
    path = next(line.split(": ")[1] for line in file.read_text().splitlines() if " path:" in line)
    data = ("--data.kind", "folder", "--data.path", path, "--data.size", 16, "--data.channels", 1)
    one_line(stage_two.run(tmp_path / "run", *data), 4, "3", "data.channels 1")


def test_a_stale_cache(stage_two, finished_diffusion, stage_one, tmp_path):
    other = tmp_path / "other-vae"
    assert stage_one.run(other, "--run.seed", 7).code == 0
    outcome = Stage(stage_two.name, (*stage_two.arguments[:-1], other)).run(
        tmp_path / "run", "--cache", finished_diffusion / "latents"
    )
    one_line(outcome, 4, "stale", str(finished_diffusion / "latents"))


def test_a_shared_cache_is_built_once(stage_two, tmp_path):
    assert stage_two.run(tmp_path / "one", "--cache", tmp_path / "cache").code == 0
    built = (tmp_path / "cache" / "moments.npy").stat().st_mtime_ns
    assert stage_two.run(tmp_path / "two", "--cache", tmp_path / "cache").code == 0
    assert (tmp_path / "cache" / "moments.npy").stat().st_mtime_ns == built
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


class Payload:
    """What a pickle does to whoever opens it."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("place", ["the autoencoder", "a checkpoint"])
def test_a_malicious_pickle_in_place_of_weights_is_refused_and_not_run(
    stage_one, stage_two, finished_vae, tmp_path, place
):
    run, owned = tmp_path / "run", tmp_path / "owned"
    shutil.copytree(finished_vae, run)
    evil = pickle.dumps(Payload(owned))
    if place == "the autoencoder":
        file = run / "vae" / "diffusion_pytorch_model.safetensors"
        file.unlink()
        for name in (file.name, "diffusion_pytorch_model.bin"):
            (file.parent / name).write_bytes(evil)
        outcome = Stage(stage_two.name, (*stage_two.arguments[:-1], run)).run(tmp_path / "two")
        one_line(outcome, 4, str(run))
    else:
        (run / "finished.json").unlink()
        for file in (run / "checkpoints").rglob("*.safetensors"):
            file.write_bytes(evil)
        one_line(stage_one.run(run), 4, "model.safetensors")
    assert not owned.exists()


def test_a_loss_that_is_not_finite_is_named_with_its_step(stage, tmp_path):
    """A learning rate so large that the weights overflow."""
    outcome = stage.run(tmp_path / "run", "--optim.lr", 1e30, "--run.steps", 40, "--run.checkpoint-every", 20)
    one_line(outcome, 5, "was not a finite number at step")
    assert not (tmp_path / "run" / "finished.json").exists()


def test_a_dry_run_refuses_a_folder_that_the_run_itself_would_refuse(stage, tmp_path):
    precious = tmp_path / "mine" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("all of it")
    one_line(stage.run(precious.parent, "--dry-run"), 2, "holds thesis.txt, which could be lost")
    assert [*precious.parent.iterdir()] == [precious]


def test_a_dry_run_trains_nothing_and_prints_what_a_run_would_take(stage, tmp_path):
    outcome = stage.run(tmp_path / "run", "--dry-run")
    assert outcome.code == 0, outcome.err
    text = outcome.out + outcome.err
    for word in ("parameters", "latent", "times fewer", "time", "memory", "precision: fp32"):
        assert word in text
    assert not (tmp_path / "run" / "config.yaml").exists()
