"""`ldm export`: what hosts load, compared before it is called done; what they cannot load, refused in words."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.autoencoder.formats import compvis
from ldm.autoencoder.model import Autoencoder
from ldm.checkpoint import write_folder_atomically
from ldm.cli import export
from ldm.data.config import FolderConfig
from ldm.data.datasets import Subset, open_dataset
from ldm.evaluation.held_out import latent_statistics
from ldm.export.autoencoder import FORMATS
from ldm.export.compvis_network import CompVisAutoencoder
from ldm.export.load_run import load_run
from ldm.terminal import exit_code_of
from tests.support.diffusers_process import in_another_process
from tests.support.fine_tuning import fine_tuning, save_foreign_autoencoder
from tests.support.scripts import Outcome, Stage

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderKL that somebody else made, scaling factor 0.7, shift 0.2."""
    return save_foreign_autoencoder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, of a shape that CompVis' program can hold."""
    folder = tmp_path_factory.mktemp("wide") / "vae"
    compvis_kl(scaling_factor=0.7, shift_factor=0.2, latent_channels=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide_run(stage_one: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stage one of such a shape."""
    out, shape = tmp_path_factory.mktemp("wide-run") / "run", ("[32,32]", "--autoencoder.network.norm-groups", 32)
    flags = ("--run.steps", 2, "--run.sample-every", 2, "--objective.perceptual", "null")
    outcome = stage_one.run(out, "--autoencoder.network.widths", *shape, *flags)
    assert outcome.code == 0, outcome.err
    return out


def exported(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    capsys.readouterr()
    code = exit_code_of(export.main, [str(argument) for argument in arguments])
    return Outcome(code, *capsys.readouterr())


def refusal(outcome: Outcome, code: int, *words: str) -> None:
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == code and len(errors) == 1, outcome
    for word in words:
        assert word in errors[0], errors[0]


def images(count: int = 2, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(5)) * 2 - 1


def kl(widths: tuple[int, ...] = (8, 8), **more: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    levels = len(widths)
    blocks = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
    shape = {"norm_num_groups": 4, "down_block_types": blocks[0], "up_block_types": blocks[1]}
    return AutoencoderKL(block_out_channels=widths, **shape | more)


def compvis_kl(widths: tuple[int, ...] = (32, 32), **more: Any) -> AutoencoderKL:
    return kl(widths, **{"norm_num_groups": 32, **more})


# ---- what stock diffusers finds

ELSEWHERE = """
import json, sys
sys.modules["ldm"] = None  # importing it is an ImportError now
import numpy as np, torch
from pathlib import Path
from diffusers import AutoencoderKL

torch.set_num_threads(1)
given, *folders = sys.argv[1:]
images = torch.from_numpy(np.load(given))
for folder in map(Path, folders):
    facts = json.loads((folder / "export.json").read_text())
    if "file" in facts:
        file = str(folder / facts["file"])
        found = AutoencoderKL.from_single_file(file, config=str(folder), local_files_only=True).eval()
    else:
        found = AutoencoderKL.from_pretrained(folder).eval()
    with torch.no_grad():
        mean = found.encode(images).latent_dist.mean
        decoded = found.decode(mean).sample
    np.savez(folder.with_suffix(".npz"), latents=mean * found.config.scaling_factor, images=decoded)
"""


def test_stock_diffusers_without_us_reconstructs_every_export_as_the_run_does(wide_run, tmp_path, capsys):
    """Times the host's scale, its latents are those of the run, which have unit variance."""
    np.save(tmp_path / "given.npy", images().numpy())
    folders = {}
    for number, (name, scale) in enumerate([("diffusers", 1), ("diffusers", 0.3), ("compvis", 1), ("compvis", 2.5)]):
        folder = tmp_path / f"{number}"
        outcome = exported(capsys, wide_run, "--format", name, "--latent-scale", scale, "--out", folder)
        assert outcome.code == 0 and "read again and compared" in outcome.out, outcome
        folders[folder] = scale
        assert json.loads((folder / "config.json").read_text())["scaling_factor"] == scale
    in_another_process(ELSEWHERE, tmp_path, tmp_path / "given.npy", *folders)
    original = Autoencoder.load(wide_run)
    with torch.no_grad():
        latents, reconstructions = original.encode(images()).mean, original.reconstruct(images())
    for folder in folders:
        found = np.load(folder.with_suffix(".npz"))
        torch.testing.assert_close(torch.from_numpy(found["latents"]), latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(found["images"]), reconstructions, rtol=1e-4, atol=1e-4)


def test_any_source_and_every_way_back_is_the_same_autoencoder(wide, tmp_path, capsys):
    """A folder to a file, the file to a folder; the scale that its source states becomes the one asked for."""
    for given, name, out in ((wide, "compvis", "one"), (tmp_path / "one" / "one.safetensors", "diffusers", "two")):
        assert exported(capsys, given, "--format", name, "--latent-scale", 2, "--out", tmp_path / out).code == 0
    with torch.no_grad():
        first, last = (Autoencoder.load(place).encode(images()).mean for place in (wide, tmp_path / "two"))
    torch.testing.assert_close(first, last, rtol=1e-4, atol=1e-4)
    raw = AutoencoderKL.from_pretrained(tmp_path / "two").eval().encode(images()).latent_dist.mean
    torch.testing.assert_close(raw * 2, first, rtol=1e-4, atol=1e-4)


def test_comfyui_gets_the_network_it_takes_for_granted_at_the_scale_it_multiplies_by(tmp_path, capsys):
    """Attention in the middle too, which this one lacks; in half precision, and strictly."""
    given, out = tmp_path / "given", tmp_path / "mine"
    shape = {"layers_per_block": 2, "norm_num_groups": 32, "mid_block_add_attention": False, "scaling_factor": 1.7}
    kl((128, 256, 512, 512), **shape).save_pretrained(given)
    outcome = exported(capsys, given, "--format", "comfyui", "--dtype", "fp16", "--out", out)
    assert outcome.code == 0 and "0.01 is allowed in fp16" in outcome.out, outcome
    tensors = load_file(out / "mine.safetensors")
    assert len(tensors) == 248 and tensors["encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert json.loads((out / "config.json").read_text())["scaling_factor"] == 0.18215
    assert "models/vae" in (out / "README.md").read_text()
    fixed = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "dropout": 0.0}
    with torch.device("meta"):
        host = CompVisAutoencoder(
            {**fixed, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": []}, 4
        )
    host.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    with torch.no_grad():
        expected = Autoencoder.load(given).encode(images()).mean
        assert (host.encode(images()) * 0.18215 - expected).abs().max() < 0.01 * expected.abs().max()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({}, ("widths 8, 8", "1 block(s) per level", "4 norm groups")),
        ({"in_channels": 1, "out_channels": 1}, ("1 image channels",)),
        ({"latent_channels": 3}, ("3 latent channels",)),
    ],
)
def test_a_shape_that_comfyui_cannot_load_is_refused_with_what_it_takes_for_granted(shape, words, tmp_path, capsys):
    kl(**shape).save_pretrained(tmp_path / "given")
    outcome = exported(capsys, tmp_path / "given", "--format", "comfyui", "--out", tmp_path / "out")
    refusal(outcome, 2, "128, 256, 512, 512", "--format diffusers or compvis", *words)
    assert not (tmp_path / "out").exists()


# ---- which weights, and at which scale


def test_source_leaves_the_encoder_of_a_decoder_run_bit_equal_to_its_source(shapes_folder, wide, tmp_path, capsys):
    """So that a diffusion model of the source's latents goes on working, with a better decoder."""
    run = tmp_path / "run"
    assert fine_tuning(shapes_folder, wide, tmp_path, freeze_encoder=True).run(run).code == 0
    for name in ("diffusers", "compvis"):
        outcome = exported(capsys, run, "--format", name, "--latent-scale", "source", "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["scaling_factor"], config["shift_factor"]) == (0.7, 0.2)
        assert "shift_factor" in (tmp_path / name / "README.md").read_text()
    before, after = (load_file(place / WEIGHTS) for place in (wide, tmp_path / "diffusers"))
    single = load_file(tmp_path / "compvis" / "compvis.safetensors")
    assert all(torch.equal(single[name], v) for name, v in compvis.from_diffusers(after, compvis_kl().config).items())
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_a_checkpoint_is_exported_by_its_step_and_measured_on_the_data(finished_vae, shapes_folder, tmp_path, capsys):
    for step, average in ((3, "0.10"), (6, "none"), (6, "0.05")):
        out = tmp_path / f"{step}-{average}"
        outcome = exported(
            capsys, finished_vae, "--format", "diffusers", "--checkpoint", step, "--ema", average, "--out", out
        )
        assert outcome.code == 0, outcome.err
        facts = json.loads((out / "export.json").read_text())
        assert (facts["step"], facts["ema"]) == (step, average)
    data = FolderConfig(path=str(shapes_folder), size=16, flip=True)
    training, _ = open_dataset(data).split()
    early = Autoencoder.load(tmp_path / "3-0.10")
    found = latent_statistics(early, training, torch.device("cpu"))
    assert found.mean.abs().max() < 1e-4 and (found.std - 1).abs().max() < 1e-4
    raw = load_run(str(finished_vae), step=3, ema="0.10", raw_latents=True).autoencoder
    few = Subset(training.dataset, [0, 1]).images()
    with torch.no_grad():
        torch.testing.assert_close(early.reconstruct(few), raw.reconstruct(few), rtol=1e-4, atol=1e-4)
    finished, same, other = (
        load_file(tmp_path / place / WEIGHTS) for place in (finished_vae / "vae", "6-0.05", "6-none")
    )
    for name, value in finished.items():
        torch.testing.assert_close(same[name], value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(other["decoder.conv_out.weight"], finished["decoder.conv_out.weight"])


def test_a_run_that_is_not_finished_gives_its_newest_checkpoint(stage_one: Stage, finished_vae, tmp_path, capsys):
    run = tmp_path / "run"
    process, wait = stage_one.start(run, "--run.steps", 5000)
    while not (run / "checkpoints" / "step-00000003").is_dir():
        time.sleep(0.05)
    os.kill(process, signal.SIGTERM)
    assert wait().code == 75
    outcome = exported(capsys, run, "--format", "diffusers", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    step = json.loads((tmp_path / "out" / "export.json").read_text())["step"]
    assert step == max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"after {step:,} of 5,000 steps" in card and "## Metrics" not in card


# ---- what lies beside the weights


def test_the_card_says_what_it_is_how_good_it_is_and_how_it_was_made(wide_run, tmp_path, capsys):
    out = tmp_path / "shapes-f2c2"
    assert exported(capsys, wide_run, "--format", "compvis", "--out", out).code == 0
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown") and "library_name: diffusers" in card
    for word in (
        "# shapes-f2c2",
        "downsamples by 2",
        "3 x 256 x 256 becomes 2 x 128 x 128",
        "held_out_psnr",
        "train_vae",
    ):
        assert word in card
    assert f"ldm export {wide_run.name} --format compvis --out {out.name}" in card
    assert 'from_single_file("this/folder/shapes-f2c2.safetensors", config="this/folder")' in card
    for name in ("panel.png", "curves.png"):
        with Image.open(out / name) as picture:
            assert f"]({name})" in card and picture.size[0] > 0
    known = {"README.md", "config.json", "curves.png", "export.json", "panel.png", "shapes-f2c2.safetensors"}
    known |= {"shapes-f2c2.yaml"}
    assert {path.name for path in out.iterdir()} == known
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # whoever may read one may read all


def test_a_card_shows_no_picture_of_other_weights_than_those_it_lies_beside(finished_vae, tmp_path, capsys):
    for number, (flags, pictures) in enumerate(
        [
            (("--checkpoint", 3), set()),
            (("--checkpoint", 6), {"panel.png", "curves.png"}),
            (("--ema", "none"), set()),
        ]
    ):
        out = tmp_path / f"{number}"
        assert exported(capsys, finished_vae, "--format", "diffusers", *flags, "--out", out).code == 0
        assert {path.name for path in out.glob("*.png")} == pictures
        assert ("](panel.png)" in (out / "README.md").read_text()) == ("panel.png" in pictures)
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    shutil.copy(run / "samples" / "step-00000006.png", run / "samples" / "step-00000003.png")
    out = tmp_path / "early"
    assert exported(capsys, run, "--format", "diffusers", "--checkpoint", 3, "--out", out).code == 0
    assert {path.name for path in out.glob("*.png")} == {"panel.png"}


@pytest.mark.parametrize(("scale", "there"), [("1", True), ("source", False), ("0.5", False)])
def test_a_card_states_no_latent_statistics_of_another_scale(scale, there, finished_vae, tmp_path, capsys):
    out = tmp_path / "out"
    assert exported(capsys, finished_vae, "--format", "diffusers", "--latent-scale", scale, "--out", out).code == 0
    card = (out / "README.md").read_text()
    assert "| held_out_psnr |" in card and ("| latent_std |" in card) == there == ("| latent_mean |" in card)


def test_a_card_says_neither_where_things_lay_nor_none(finished_vae, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    report = json.loads((run / "report.json").read_text()) | {"pca_psnr": None}
    (run / "report.json").write_text(json.dumps(report))
    with open(run / "command.txt", "a") as file:
        file.write("train_vae.py a.yaml --data.path=/home/me/my\\ photos --cache / --out ~/runs/vae\n'cut sh")
    out = tmp_path / "out"
    assert exported(capsys, run, "--format", "diffusers", "--out", out).code == 0
    card = (out / "README.md").read_text()
    assert "| pca_psnr | not defined |" in card and "None" not in card
    assert "train_vae.py a.yaml '--data.path=my photos' --cache PATH --out vae\n" in card
    for file in ("README.md", "export.json", "config.json"):
        text = (out / file).read_text()
        assert str(tmp_path) not in text and "/home/" not in text and str(finished_vae.parent) not in text


# ---- refusals


def test_nothing_is_overwritten_without_force_and_nothing_else_with_it(finished_vae, tmp_path, capsys):
    out = tmp_path / "out"
    command = (finished_vae, "--format", "diffusers", "--out", out)
    assert exported(capsys, *command).code == 0
    before = (out / WEIGHTS).read_bytes()
    refusal(exported(capsys, *command), 2, "exists", "--force")
    assert exported(capsys, *command, "--latent-scale", 2, "--force").code == 0
    assert (out / WEIGHTS).read_bytes() != before
    (tmp_path / "letters").mkdir()
    refusal(
        exported(capsys, finished_vae, *command[1:3], "--out", tmp_path / "letters", "--force"), 2, "not an earlier"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters", "out"]


def test_an_export_that_does_not_reconstruct_is_not_left_behind(tmp_path, capsys):
    broken = compvis_kl().state_dict()
    compvis_kl().save_pretrained(tmp_path / "given")
    broken["decoder.conv_out.weight"][0] = 3e38  # finite, but what it makes is not
    save_file(broken, tmp_path / "given" / WEIGHTS)
    outcome = exported(capsys, tmp_path / "given", "--format", "compvis", "--out", tmp_path / "out")
    refusal(outcome, 4, "differs", "nan")
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_an_export_that_ctrl_c_stops_leaves_nothing_behind(tmp_path):
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder_atomically(tmp_path / "out", interrupted)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--checkpoint", 5), 2, ("--checkpoint 5", "3, 6")),
        (("--checkpoint", 0), 2, ("--checkpoint 0",)),
        (("--ema", "0.2"), 2, ("0.2", "ldm export --help")),
        (("--latent-scale", "-1"), 2, ("--latent-scale -1", "positive")),
        (("--latent-scale", "big"), 2, ("--latent-scale big", "source")),
        (("--fromat", "x"), 2, ("--fromat", "--format")),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, code, words, finished_vae, tmp_path, capsys):
    command = (finished_vae, "--format", "diffusers", "--out", tmp_path / "out", *arguments)
    refusal(exported(capsys, *command), code, *words)
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_has_no_checkpoints(source, finished_diffusion, tmp_path, capsys):
    out = ("--format", "diffusers", "--out", tmp_path / "out")
    refusal(exported(capsys, source, *out, "--checkpoint", 3), 2, "--checkpoint", str(source))
    refusal(exported(capsys, tmp_path / "nowhere", *out), 4, "nowhere does not exist")
    assert exported(capsys, finished_diffusion / "vae", *out).code == 0


def test_a_run_of_an_earlier_version_is_refused_and_its_vae_exported(finished_vae, tmp_path, capsys):
    run, out = tmp_path / "run", ("--format", "diffusers", "--out", tmp_path / "out")
    shutil.copytree(finished_vae, run)
    environment = json.loads((run / "environment.json").read_text())
    del environment["format"]
    (run / "environment.json").write_text(json.dumps(environment))
    refusal(exported(capsys, run, *out), 2, f"{run} is a run of an earlier version", f"give {run / 'vae'}")
    assert exported(capsys, run / "vae", *out).code == 0


def test_data_that_changed_or_have_gone_cannot_measure_a_checkpoint(stage_one, shapes_folder, tmp_path, capsys):
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(shapes_folder, images)
    assert stage_one.run(run, "--data.path", images).code == 0
    command = (run, "--format", "diffusers", "--checkpoint", 3, "--out", tmp_path / "out")
    (images / "disc" / "00.png").unlink()
    refusal(exported(capsys, *command), 3, "the data changed")
    shutil.rmtree(images)
    refusal(exported(capsys, *command), 3, str(images))
    assert exported(capsys, *command, "--latent-scale", "source").code == 0


def test_help_names_the_formats_there_are():
    text = export.parser().format_help()
    assert f"{{{','.join(FORMATS)}}}" in text
