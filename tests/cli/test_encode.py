"""`ldm encode` and `ldm decode`: latents that other programs read, and images of them again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm.autoencoder.model import Autoencoder
from ldm.cli.encode import ENDINGS
from ldm.data.config import FolderConfig
from ldm.data.datasets import open_dataset
from ldm.export.encoding import picture_names
from ldm.export.latent_file import WRITTEN
from ldm.shapes import to_uint8
from tests.export.test_autoencoder import refusal
from tests.support.scripts import Outcome, ran, script, together


def encode(*arguments: object) -> Outcome:
    return ran("ldm.cli.main", "encode", *arguments)


def decode(*arguments: object) -> Outcome:
    return ran("ldm.cli.main", "decode", *arguments)


@pytest.fixture(scope="module")
def dataset(shapes_folder: Path):
    return open_dataset(FolderConfig(path=str(shapes_folder), size=16, held_out=0))


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_the_latents_need_nothing_of_ours_to_be_read_and_come_back_as_images(
    ending, finished_vae, shapes_folder, dataset, tmp_path
):
    file = tmp_path / f"latents{ending}"
    outcome = encode(finished_vae, shapes_folder, "--out", file, "--batch-size", 7)
    assert outcome.code == 0 and f"{len(dataset)} images of 2 classes" in outcome.out, outcome
    found = (
        load_file(file)
        if ending == ".safetensors"
        else {k: torch.tensor(v) for k, v in np.load(file).items() if v.dtype.kind != "U"}
    )
    if ending == ".npz":
        names, classes = (np.load(file)[name].tolist() for name in ("names", "classes"))
    else:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["ldm.latents"])
        names, classes = about["names"], about["classes"]
    assert (names, classes) == (dataset.names, dataset.classes)
    assert found["labels"].tolist() == dataset.labels.tolist()
    images = dataset.split()[0].images()
    stock = AutoencoderKL.from_pretrained(finished_vae / "vae").eval()
    with torch.no_grad():  # as somebody else's program would
        raw = stock.encode(images).latent_dist.mean
        mean, std = (found[name].view(-1, 1, 1) for name in ("mean", "std"))
        torch.testing.assert_close(found["latents"] * std + mean, raw, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["measured_mean"], raw.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["measured_std"], raw.std((0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)

    out = tmp_path / "images"
    outcome = decode(finished_vae, file, "--out", out, "--batch-size", 5)
    assert outcome.code == 0 and "note" not in outcome.err, outcome
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == sorted(names)
    expected = to_uint8(Autoencoder.load(finished_vae).requires_grad_(False).reconstruct(images))
    for name, image in list(zip(names, expected, strict=True))[::5]:
        drawn = np.asarray(Image.open(out / name)).transpose(2, 0, 1).astype(int)
        assert np.abs(drawn - image.numpy()).max() <= 1
    assert decode(finished_vae, file, "--out", tmp_path / "grid.png", "--images", 4).code == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width == grid.height


def test_a_sample_does_not_depend_on_the_batch_and_moments_let_others_draw_it(finished_vae, shapes_folder, tmp_path):
    for name, *flags in (("a", "--sample", 3), ("b", "--sample", 3, "--batch-size", 3), ("c",), ("m", "--moments")):
        outcome = ran(
            "ldm.cli.main", "encode", finished_vae, shapes_folder, "--out", tmp_path / f"{name}.safetensors", *flags
        )
        assert outcome.code == 0, outcome.err
    found = {name: load_file(tmp_path / f"{name}.safetensors") for name in "abcm"}
    torch.testing.assert_close(found["a"]["latents"], found["b"]["latents"], rtol=1e-5, atol=1e-5)
    mean, logvar = found["m"]["moments"].chunk(2, dim=1)
    torch.testing.assert_close(mean, found["c"]["latents"])
    noise = (found["a"]["latents"] - mean) / (logvar / 2).exp()
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    outcome = decode(finished_vae, tmp_path / "m.safetensors", "--out", tmp_path / "images")
    assert outcome.code == 0, outcome.err


def test_two_processes_do_not_write_another_file_than_one(finished_vae, shapes_folder, tmp_path):
    arguments = ("encode", finished_vae, shapes_folder, "--device", "cpu", "--batch-size", 5, "--out")
    for count in (1, 2):
        outcomes = together([script("ldm.cli.main", *arguments, tmp_path / f"{count}.safetensors")] * count)
        assert [outcome.code for outcome in outcomes] == [0] * count, outcomes
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_latents_that_somebody_else_made_are_drawn(finished_vae, tmp_path):
    latents = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents.half()}, tmp_path / "theirs.safetensors")
    np.save(tmp_path / "theirs.npy", latents.numpy())
    np.save(tmp_path / "big-endian.npy", latents.numpy().astype(">f8"))
    np.savez(tmp_path / "big-endian.npz", latents=latents.numpy().astype(">f4"))
    for name in ("theirs.safetensors", "theirs.npy", "big-endian.npy", "big-endian.npz"):
        outcome = decode(finished_vae, tmp_path / name, "--out", tmp_path / "out", "--force")
        assert outcome.code == 0, outcome.err
        assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{i:05d}.png" for i in range(3)}


def test_nothing_is_overwritten_and_what_cannot_be_is_one_line(finished_vae, shapes_folder, tmp_path):
    there, out = tmp_path / "there.npz", tmp_path / "out"
    there.write_bytes(b"mine")
    run, images = finished_vae, shapes_folder
    refusal(encode(run, images, "--out", there), 2, "exists", "--force")
    refusal(encode(run, images, "--out", tmp_path / "a.pt"), 2, ".safetensors or .npz")
    refusal(encode(run, images, "--out", tmp_path / "no" / "a.npz"), 2, "in no folder")
    refusal(encode(run / "vae", images, "--out", tmp_path / "a.npz"), 2, "--size is missing")
    refusal(
        encode(run, images, "--out", tmp_path / "a.npz", "--sample", 1, "--moments"),
        2,
        "--moments",
    )
    broken = tmp_path / "broken"
    shutil.copytree(images, broken)
    (broken / "disc" / "00.png").write_bytes(b"no picture")
    refusal(encode(run, broken, "--out", tmp_path / "a.npz"), 3, "1 of", "00.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "there.npz"]

    refusal(decode(run, there, "--out", out), 3, "no latents that can be read")
    save_file({"weights": torch.zeros(1)}, tmp_path / "other.safetensors")
    refusal(decode(run, tmp_path / "other.safetensors", "--out", out), 3, "weights")
    for name, latents, code, word in (
        ("three", torch.zeros(2, 3, 8, 8), 4, "3 channels"),
        ("flat", torch.zeros(2, 3), 3, "2 x 3"),
        ("nan", torch.full((2, 2, 8, 8), torch.nan), 3, "NaN"),
    ):
        save_file({"latents": latents}, tmp_path / f"{name}.safetensors")
        refusal(decode(run, tmp_path / f"{name}.safetensors", "--out", out), code, word)
    away = {"ldm.latents": json.dumps({"names": ["../../escaped.png"]})}
    save_file({"latents": torch.zeros(1, 2, 8, 8)}, tmp_path / "away.safetensors", away)
    refusal(decode(run, tmp_path / "away.safetensors", "--out", out), 3, "leads out")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refusal(decode(run, tmp_path / "away.safetensors", "--out", out), 2, "exists", "--force")
    assert encode(run, images, "--out", there, "--force").code == 0 and there.stat().st_size > 100


def test_the_command_line_takes_other_endings_than_the_writer():
    assert ENDINGS == WRITTEN


def test_images_whose_names_differ_in_their_endings_were_drawn_over_each_other():
    names = ["a.png", "a.jpg", "a.png.png", "b/c.jpg"]
    assert len(set(picture_names(names, 4))) == 4
    assert picture_names(["a.png", "b/c.jpg"], 2) == ["a.png", "b/c.png"]


def test_a_place_that_cannot_be_written_to_was_a_traceback(finished_vae, shapes_folder, tmp_path):
    save_file({"latents": torch.zeros(1, 2, 8, 8)}, tmp_path / "latents.safetensors")
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "images", tmp_path / "file" / "grid.png"):
        refusal(decode(finished_vae, tmp_path / "latents.safetensors", "--out", out), 2, "--out", "cannot be written")
    (tmp_path / "a.npz.partial").mkdir()
    refusal(encode(finished_vae, shapes_folder, "--out", tmp_path / "a.npz"), 2, "--out", "cannot be written")


def test_images_of_a_test_split_were_left_out_in_silence(finished_vae, shapes_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(shapes_folder, tmp_path / "images" / split)
    outcome = encode(finished_vae, tmp_path / "images", "--out", tmp_path / "a.npz")
    assert outcome.code == 0 and "not used: test" in outcome.out, outcome
