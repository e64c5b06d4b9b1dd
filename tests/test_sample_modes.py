"""sample.py edits images, walks between them and draws again what a picture says: by its files, end to end."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.cli.sample_settings import MARKS
from ldm.pictures import save_png
from ldm.pipeline import LatentDiffusion
from tests.support.diffusers_process import pixels
from tests.support.scripts import ran, script, together
from tests.test_sample_script import refusal, sampled


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture in color of the size of the model, and masks for it."""
    folder = tmp_path_factory.mktemp("photo")
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "photo.png")
    Image.new("L", (16, 16), 0).save(folder / "empty.png")
    Image.new("L", (8, 16), 255).save(folder / "other.png")
    hole = np.zeros((16, 16), dtype=np.uint8)
    hole[4:12, 6:14] = 255
    Image.fromarray(hole).save(folder / "hole.png")
    (folder / "text.png").write_text("no picture")
    return folder


def array(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture).astype(int)


def test_seeds_name_the_images_that_a_larger_request_would_draw(finished_diffusion: Path, tmp_path: Path) -> None:
    sampled(finished_diffusion, tmp_path / "some", "--seeds", "3,5-6")
    names = ["00003-square.png", "00005-square.png", "00006-disc.png"]
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == names
    images = pixels(LatentDiffusion.load(finished_diffusion).sample(7, steps=2))
    for name in names:
        assert abs(array(tmp_path / "some" / name) - images[int(name[:5])].astype(int)).max() <= 1


def test_a_mask_keeps_every_known_pixel_of_a_file(finished_diffusion: Path, photo: Path, tmp_path: Path) -> None:
    files = ("--image", photo / "photo.png", "--mask", photo / "hole.png")
    sampled(finished_diffusion, tmp_path / "edited", *files, "--num", 2)
    known = array(photo / "hole.png") == 0
    for file in (tmp_path / "edited").iterdir():
        difference = abs(array(file) - array(photo / "photo.png")).max(2)
        assert difference[known].max() == 0 and difference[~known].min() >= 0 and difference[~known].mean() > 3


def test_a_picture_is_drawn_again_by_its_own_settings(finished_diffusion: Path, photo: Path, tmp_path: Path) -> None:
    """A grid, an edited image, a single picture of a folder, an animation; other flags change what they say."""
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    for arguments in (
        ("--num", 3, "--seed", 4, "--sampler", "ddim", "--eta", 0.5, "--guidance", 1.5, "--labels", "square"),
        ("--image", photo / "photo.png", "--strength", 0.5, "--num", 2),
        ("--interpolate", "class:disc", "class:square", "--num", 3),
    ):
        sampled(finished_diffusion, first, *arguments)
        assert ran("sample", "--like", first, "--out", again, "--device", "cpu").code == 0
        assert (array(again) == array(first)).all()
    assert ran("sample", "--like", first, "--out", again, "--steps", 1, "--device", "cpu").code == 0
    assert (array(again) != array(first)).any()
    sampled(finished_diffusion, tmp_path / "many", "--num", 4)
    one = tmp_path / "many" / "00002-disc.png"
    assert ran("sample", "--like", one, "--out", tmp_path / "one", "--device", "cpu").code == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["00002-disc.png"]
    assert abs(array(tmp_path / "one" / one.name) - array(one)).max() <= 1
    sampled(finished_diffusion, tmp_path / "first.gif", "--gif", "--seeds", 2, "--steps", 3)
    outcome = ran("sample", "--like", tmp_path / "first.gif", "--out", tmp_path / "again.gif", "--device", "cpu")
    assert outcome.code == 0 and "3 images" in outcome.out and "images/s" in outcome.out
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "first.gif").read_bytes()
    with Image.open(tmp_path / "again.gif") as animation:
        assert animation.n_frames == 3


def test_a_strip_ends_with_the_image_that_it_shows(finished_diffusion: Path, tmp_path: Path) -> None:
    sampled(finished_diffusion, tmp_path / "strip", "--strip", "--seeds", 1, "--steps", 3)
    frames = sorted((tmp_path / "strip").iterdir())
    image = pixels(LatentDiffusion.load(finished_diffusion).sample(numbers=[1], steps=3))[0]
    assert len(frames) == 3 and abs(array(frames[-1]) - image.astype(int)).max() <= 1


def test_a_picture_was_scaled_for_a_run_that_does_not_scale(
    finished_diffusion: Path, photo: Path, tmp_path: Path
) -> None:
    """Of a larger picture its middle counts."""
    shutil.copytree(finished_diffusion, run := tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("resize: true", "resize: false"))
    values = np.pad(array(photo / "photo.png"), ((8, 8), (8, 8), (0, 0))).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "framed.png")
    for file in (photo / "photo.png", tmp_path / "framed.png"):
        sampled(run, tmp_path / f"drawn from {file.name}", "--image", file, "--strength", 0.2)
    drawn = [array(tmp_path / f"drawn from {name}.png") for name in ("photo", "framed")]
    assert np.array_equal(*drawn)


def test_two_processes_draw_the_images_of_one(finished_diffusion: Path, photo: Path, tmp_path: Path) -> None:
    for arguments in (("--num", 5), ("--variations", photo / "photo.png", "--num", 3, "--strength", 0.4)):
        both, one = tmp_path / "both.png", tmp_path / "one.png"
        shared = (*arguments, "--steps", 2, "--batch-size", 2, "--device", "cpu")
        assert ran("sample", finished_diffusion, "--out", one, *shared).code == 0
        outcomes = together([script("sample", finished_diffusion, "--out", both, *shared)] * 2)
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
        assert sum("images" in outcome.out for outcome in outcomes) == 1
        assert (array(both) == array(one)).all()
    outcomes = together([script("sample", finished_diffusion, "--out", tmp_path / "x.png", "--steps", 0)] * 2)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert sorted(outcome.err.count("--steps 0 must be at least 1") for outcome in outcomes) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("--image", "photo.png", "--mask", "other.png"), "--mask {}/other.png of 8 x 16 is not of the size of", 2),
        (("--image", "photo.png", "--mask", "empty.png"), "--mask {}/empty.png hides nothing", 2),
        (("--image", "text.png"), "--image {}/text.png cannot be read", 3),
        (("--image", "missing.png"), "--image {}/missing.png cannot be read", 3),
        (("--mask", "hole.png"), "--mask says what is drawn anew of an --image", 2),
        (("--image", "photo.png", "--strength", 0), "--strength 0 must be above 0 and at most 1", 2),
        (("--variations", "photo.png", "--strength", 1.5), "--strength 1.5 must be above 0 and at most 1", 2),
        (("--strength", 0.5), "--strength is of --image and --variations", 2),
        (("--image", "photo.png", "--variations", "photo.png"), "--image and --variations are two ways", 2),
        (("--interpolate", "1", "cube"), "--interpolate cube is neither the number of an image, a file nor", 2),
        (("--interpolate", "1", "class:cube"), "condition of this model (class:NAME of disc, square; label:VALUE)", 2),
        (("--variations", "photo.png", "--sampler", "ddim"), "--sampler ddim draws noise on its way", 2),
        (("--variations", "photo.png", "--labels", "0,1"), "--labels 0,1 are several, and --variations is of one", 2),
        (("--seeds", "9-3"), "--seeds 9-3: 9-3 must go from a number up", 2),
        (("--seeds", 10**20), f"--seeds {10**20} is no image: their numbers end at", 2),
        (("--interpolate", 10**20, 0), f"--interpolate {10**20} is no image: their numbers end at", 2),
        (("--seeds", "1,x"), "--seeds 1,x is not a list of numbers", 2),
        (("--strip", "--num", 3), "--strip is of one image: say which with --seeds N", 2),
        (("--gif",), "--gif writes a .gif, and nothing else does", 2),
        (("--size", 24), "--size 24 is not that of this denoiser", 2),
        (("--like", "photo.png"), "--like {}/photo.png is not a picture of sample.py", 2),
        (("--graph",), "--graph needs a CUDA GPU, and the model is on cpu", 2),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_an_edit_that_cannot_be_made_is_refused_in_one_line(
    finished_diffusion: Path, photo: Path, tmp_path: Path, arguments: tuple[object, ...], words: str, code: int
) -> None:
    given = [photo / each if str(each).endswith(".png") else each for each in arguments]
    out = tmp_path / "grid.png"
    said = refusal(ran("sample", finished_diffusion, "--out", out, "--device", "cpu", *given), code)
    assert words.format(photo) in said
    assert not out.exists()


def test_a_picture_whose_run_is_elsewhere_was_said_to_be_of_no_finished_run(tmp_path: Path) -> None:
    settings = {**dict.fromkeys(MARKS, "0"), "run": "runs/gone"}
    save_png(Image.new("RGB", (4, 4)), tmp_path / "grid.png", settings)
    said = refusal(ran("sample", "--like", tmp_path / "grid.png", "--out", tmp_path / "b.png"), 2)
    assert "was drawn from runs/gone, which is not there: name that run, as in sample.py RUN --like" in said


def test_settings_of_another_model_drew_something_else(finished_diffusion: Path, photo: Path, tmp_path: Path) -> None:
    sampled(finished_diffusion, tmp_path / "grid.png", "--num", 1)
    other = LatentDiffusion.load(finished_diffusion)
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(1)
    from ldm.export.diffusers_pipeline import save_pipeline

    save_pipeline(tmp_path / "other", other.autoencoder, other.denoiser, other.config)
    said = refusal(ran("sample", tmp_path / "other", "--like", tmp_path / "grid.png", "--out", tmp_path / "b.png"), 2)
    assert f"--like {tmp_path / 'grid.png'} was drawn from another model than {tmp_path / 'other'}" in said
    changed = tmp_path / "changed.png"
    changed.write_bytes((photo / "photo.png").read_bytes())
    sampled(finished_diffusion, tmp_path / "grid.png", "--image", changed)
    Image.new("RGB", (16, 16)).save(changed)
    said = refusal(ran("sample", "--like", tmp_path / "grid.png", "--out", tmp_path / "b.png"), 2)
    assert f"was made of {changed}, which is not what it was then" in said
