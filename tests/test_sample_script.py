"""sample.py: one grid or many pictures, and one line for whatever cannot be done."""

import errno
import json
import os
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.diffusion.config import SAMPLERS
from ldm.errors import ConfigError
from ldm.pipeline import LatentDiffusion
from sample import check_out
from tests.support.diffusers_process import pixels
from tests.support.scripts import ROOT, Outcome, forked, ran


def sampled(run: Path, out: Path, *more: object) -> Outcome:
    outcome = ran("sample", run, "--out", out, "--steps", 2, "--device", "cpu", *more)
    assert outcome.code == 0, outcome.err
    return outcome


def refusal(outcome: Outcome, code: int) -> str:
    """The one line that a refused command says."""
    assert outcome.code == code, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert not outcome.out
    return outcome.err


def expected(run: Path, *arguments: object, **options: object) -> np.ndarray:
    """What the library draws, as count x height x width x 3."""
    return pixels(LatentDiffusion.load(run).sample(*arguments, steps=2, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["grid.png", "GRID.PNG", "new/folder/grid.Png"])
def test_a_png_is_one_grid_that_says_how_it_was_made(finished_diffusion: Path, tmp_path: Path, name: str) -> None:
    outcome = sampled(finished_diffusion, tmp_path / name, "--num", 6, "--columns", 3, "--seed", 4, "--guidance", 1.5)
    assert name in outcome.out
    with Image.open(tmp_path / name) as grid:
        assert grid.format == "PNG" and grid.mode == "RGB"
        factor = 640 // (2 + 3 * 18)
        assert grid.size == (factor * (2 + 3 * 18), factor * (2 + 2 * 18))
        request = {"run": str(finished_diffusion), "num": "6", "seed": "4", "steps": "2", "guidance": "1.5"}
        assert request.items() <= grid.text.items()
        shown = np.asarray(grid)[::factor, ::factor]
    images = expected(finished_diffusion, 6, seed=4, guidance=1.5)
    for place, image in enumerate(images):
        top, left = 2 + 18 * (place // 3), 2 + 18 * (place % 3)
        assert (shown[top : top + 16, left : left + 16] == image).all()


@pytest.mark.parametrize(
    "sampler", [name for name, facts in SAMPLERS.items() if facts.stochastic and not facts.consistency]
)
def test_images_of_a_stochastic_sampler_are_those_of_the_library(
    finished_diffusion: Path, tmp_path: Path, sampler: str
) -> None:
    sampled(finished_diffusion, tmp_path / "many", "--num", 3, "--sampler", sampler, "--batch-size", 3)
    images = expected(finished_diffusion, 3, sampler=sampler)
    for image, file in zip(images, sorted((tmp_path / "many").iterdir()), strict=True):
        with Image.open(file) as picture:
            assert (np.asarray(picture) == image).all()


def test_a_grid_has_a_column_for_each_class(finished_diffusion: Path, tmp_path: Path) -> None:
    for labels, columns in [((), 2), (("--labels", "square"), 1), (("--labels", "0,1,0"), 3)]:
        sampled(finished_diffusion, tmp_path / "grid.png", "--num", 6, *labels)
        with Image.open(tmp_path / "grid.png") as grid:
            assert grid.width / grid.height == (2 + columns * 18) / (2 + 6 // columns * 18)


def test_a_single_image_stood_beside_blank_places_for_the_other_classes(
    finished_diffusion: Path, tmp_path: Path
) -> None:
    sampled(finished_diffusion, tmp_path / "grid.png", "--num", 1)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width == grid.height


def test_a_folder_gets_one_picture_per_image_named_by_its_class(finished_diffusion: Path, tmp_path: Path) -> None:
    sampled(finished_diffusion, tmp_path / "many", "--num", 5, "--labels", "square,disc", "--batch-size", 2)
    names = ["00000-square.png", "00001-disc.png", "00002-square.png", "00003-disc.png", "00004-square.png"]
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == names
    images = expected(finished_diffusion, 5, ["square", "disc"], batch_size=2)
    for number, name in enumerate(names):
        with Image.open(tmp_path / "many" / name) as picture:
            assert (np.asarray(picture) == images[number]).all()
            assert picture.text["number"] == str(number) and picture.text["seed"] == "0"


def test_what_was_asked_for_beyond_sixteen_was_not_drawn(finished_diffusion: Path, tmp_path: Path) -> None:
    sampled(finished_diffusion, tmp_path / "many", "--labels", ",".join([*["disc"] * 16, "square"]))
    assert sorted(path.name for path in (tmp_path / "many").iterdir())[16:] == ["00016-square.png"]


def test_image_i_is_the_same_in_a_grid_and_in_a_folder_and_whatever_their_number(
    finished_diffusion: Path, tmp_path: Path
) -> None:
    for name, num in [("few", 2), ("many", 7)]:
        sampled(finished_diffusion, tmp_path / name, "--num", num, "--batch-size", 7)
    for name in ("00000-disc.png", "00001-square.png"):
        few, many = (np.asarray(Image.open(tmp_path / folder / name)).astype(int) for folder in ("few", "many"))
        assert abs(few - many).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nmu", 3), "--nmu is not understood; did you mean --num?"),
        (("--batch_size", 3), "--batch_size is not understood; did you mean --batch-size?"),
        (("--lables=disc",), "--lables=disc is not understood; did you mean --labels?"),
        (("--guid", 3), "--guid is not understood"),
        (("another",), "another is not understood"),
        (("--num", "many"), "argument --num: invalid int value: 'many'"),
        (("--num",), "argument --num: expected one argument"),
        (("--strength", "-0.5,1"), "expected one argument (one that begins with a minus is written --FLAG=-90,0)"),
        (("--num", 0), "--num 0 must be at least 1"),
        (("--steps", 0), "--steps 0 must be at least 1"),
        (("--batch-size", 0), "--batch-size 0 must be at least 1"),
        (("--columns", 0), "--columns 0 must be at least 1"),
        (("--columns", -2), "--columns -2 must be at least 1"),
        (("--sampler", "dpm"), f"--sampler dpm is not one of {', '.join(SAMPLERS)}"),
        (("--labels", "circle"), "--labels circle is not a class of this model: disc, square"),
        (("--labels", ""), "--labels  is not a class"),
        (("--guidance", "nan"), "--guidance nan must be a finite number"),
        (("--guidance", "strong"), "argument --guidance: strong is neither a number nor one for each condition"),
        (
            ("--guidance", "label=much"),
            "argument --guidance: label=much is neither a number nor one for each condition",
        ),
        (("--guidance", "label=2,label=3"), "argument --guidance: label=2,label=3 is neither"),
        (("--guidance", "=2"), "argument --guidance: =2 is neither"),
        (("--guidance-interval", "3"), "--guidance-interval 3 must be two noise levels, as 0.3,3"),
        (("--guidance-interval", "3,1"), "--guidance-interval 3,1 must be two noise levels, the lower one first"),
        (("--guidance-rescale", 2), "--guidance-rescale 2 must be at least 0 and at most 1"),
        (("--guidance", 1, "--guidance-rescale", 0.5), "--guidance-rescale says nothing without guidance"),
        (("--eta", 1), "--eta is an option of ddim, dpm++2m_sde, and not of heun"),
        (("--sampler", "ddim", "--eta", 2), "--eta 2 must be at least 0 and at most 1"),
        (("--sampler", "restart", "--restarts", 1.5), "--restarts 1.5 must be a whole number"),
        (("--sampler", "gaussian", "--gaussian-start", 99), "--gaussian-start 99 must be above 0.01 and at most"),
        (("--device", "quantum"), "--device quantum cannot be used"),
        (("--device", "cuda:99"), "--device cuda:99 cannot be used"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(
    finished_diffusion: Path, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    out = tmp_path / "grid.png"
    assert " ".join(words.split()) in refusal(ran("sample", finished_diffusion, "--out", out, *arguments), 2)
    assert not out.exists()


def test_without_a_run_or_a_place_to_write_to_there_is_nothing_to_do(finished_diffusion: Path) -> None:
    assert "RUN" in refusal(ran("sample", "--out", "grid.png"), 2)
    assert "--out" in refusal(ran("sample", finished_diffusion), 2)


@pytest.mark.parametrize("made", [lambda run: None, lambda run: run.mkdir(), lambda run: run.write_text("a file")])
def test_what_is_no_finished_run_exits_4(tmp_path: Path, made) -> None:
    made(tmp_path / "run")
    outcome = ran("sample", tmp_path / "run", "--out", tmp_path / "grid.png")
    assert f"{tmp_path / 'run'} is not a finished run of train_diffusion.py" in refusal(outcome, 4)
    assert not (tmp_path / "grid.png").exists()


def test_a_run_that_is_not_there_was_said_to_have_no_config(tmp_path: Path) -> None:
    outcome = ran("sample", tmp_path / "run", "--out", tmp_path / "grid.png")
    assert refusal(outcome, 4).endswith("is not a finished run of train_diffusion.py: it does not exist\n")


def test_a_run_of_stage_one_is_not_one_of_stage_two(finished_vae: Path, tmp_path: Path) -> None:
    assert "not a finished run of train_diffusion.py" in refusal(
        ran("sample", finished_vae, "--out", tmp_path / "grid.png"), 4
    )


@pytest.mark.parametrize("name", ["taken/grid.png", "taken", "folder.png"])
def test_a_place_that_cannot_be_written_to_exits_2(finished_diffusion: Path, tmp_path: Path, name: str) -> None:
    """As with the --out of the training scripts: choose another one."""
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder.png").mkdir()
    outcome = ran("sample", finished_diffusion, "--out", tmp_path / name, "--num", 2, "--steps", 1)
    assert f"--out {tmp_path / name} cannot be written" in refusal(outcome, 2)
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.parametrize("name", ["folder.png", "folder.gif"])
def test_a_folder_in_the_place_of_a_picture_was_found_after_all_the_sampling(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="it is a folder"):
        check_out(tmp_path / name, [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is the disk that is always full")
def test_a_full_disk_exits_4_and_names_the_picture(finished_diffusion: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    os.symlink("/dev/full", out)
    message = refusal(ran("sample", finished_diffusion, "--out", out, "--num", 2, "--steps", 1), 4)
    assert str(out) in message and "full" in message
    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as full:
        full.write(b"1")
    assert caught.value.errno == errno.ENOSPC


def test_a_class_whose_name_is_a_path_stays_in_the_folder(finished_diffusion: Path, tmp_path: Path) -> None:
    """A metadata.jsonl may call a class anything."""
    run = with_classes(finished_diffusion, tmp_path, "../../disc", "cats/tabby")
    sampled(run, tmp_path / "deep" / "many", "--num", 2)
    assert sorted(path.name for path in (tmp_path / "deep").rglob("*")) == [
        "00000-.._.._disc.png",
        "00001-cats_tabby.png",
        "many",
    ]


def test_the_pictures_of_a_gpu_are_not_asked_for_where_there_is_none(finished_diffusion: Path, tmp_path: Path) -> None:
    """Without --device the script takes what the machine has."""
    assert ran("sample", finished_diffusion, "--out", tmp_path / "a.png", "--num", 1, "--steps", 1).code == 0
    if not torch.cuda.is_available():
        refusal(ran("sample", finished_diffusion, "--out", tmp_path / "b.png", "--device", "cuda"), 2)


def with_classes(run: Path, folder: Path, *names: str) -> Path:
    """A copy of a run of two classes, which have other names there."""
    shutil.copytree(run, folder / "run")
    file = folder / "run" / "unet" / "config.json"
    config = json.loads(file.read_text())
    config["schema"]["attributes"][0]["classes"] = names
    file.write_text(json.dumps(config))
    return folder / "run"


def test_a_class_of_any_name_lost_the_pictures_after_all_the_sampling(finished_diffusion: Path, tmp_path: Path) -> None:
    """A NUL, a byte that is not UTF-8, what Windows forbids, and more letters than a file's name may have."""
    run = with_classes(finished_diffusion, tmp_path, "caf\udce9\0", 'a"b:c' + "é" * 300)
    out = tmp_path / "many"
    sampled(run, out, "--num", 2)
    assert sorted(path.name for path in out.iterdir()) == ["00000-caf__.png", f"00001-a_b_c{'é' * 55}.png"]
    sampled(run, tmp_path / "grid.png", "--num", 1, "--labels", "caf\udce9\0")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.text["labels"] == "caf\\udce9\\x00"


def test_labels_with_a_space_after_the_comma_were_no_classes(finished_diffusion: Path, tmp_path: Path) -> None:
    run = with_classes(finished_diffusion, tmp_path, "cat, black", "dog")
    names = ["00000-dog.png", "00001-cat, black.png", "00002-dog.png"]
    sampled(run, tmp_path / "many", "--num", 3, "--labels", 'dog, "cat, black" ')
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == names
    said = refusal(ran("sample", run, "--out", tmp_path / "x", "--labels", '"cat, black'), 2)
    assert "--labels" in said and "cannot be read" in said


@pytest.mark.parametrize("name", ["grid.jpg", "grid.JPEG", "grid.webp", "grid.tiff"])
def test_a_grid_with_another_ending_became_a_folder(finished_diffusion: Path, tmp_path: Path, name: str) -> None:
    assert "a grid is a .png" in refusal(ran("sample", finished_diffusion, "--out", tmp_path / name), 2)
    assert not (tmp_path / name).exists()


def test_pictures_of_an_earlier_run_in_a_folder_were_mixed_with_the_new_ones(
    finished_diffusion: Path, tmp_path: Path
) -> None:
    out = tmp_path / "many"
    sampled(finished_diffusion, out, "--num", 2)
    sampled(finished_diffusion, out, "--num", 2, "--seed", 1)  # the same names: drawn again
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    said = refusal(ran("sample", finished_diffusion, "--out", out, "--num", 2, "--labels", "square"), 2)
    assert f"--out {out} holds 00000-disc.png" in said and "choose a new folder" in said
    (out / "00000-disc.png").write_bytes(b"somebody's")
    assert "holds 00000-disc.png" in refusal(ran("sample", finished_diffusion, "--out", out, "--num", 2), 2)
    assert {path.name for path in out.iterdir()} == before.keys()


def test_a_picture_of_somebodys_was_overwritten_by_a_grid(finished_diffusion: Path, tmp_path: Path) -> None:
    out = tmp_path / "holiday.png"
    Image.new("RGB", (4, 4)).save(out)
    before = out.read_bytes()
    assert "no picture of sample.py" in refusal(ran("sample", finished_diffusion, "--out", out), 2)
    assert out.read_bytes() == before


def test_a_tilde_after_an_equals_sign_became_a_folder_of_that_name(
    finished_diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = (f"--out={'~/grid.png'}", "--num", 1, "--steps", 1, "--device", "cpu")
    assert ran("sample", finished_diffusion, *arguments).code == 0
    assert (tmp_path / "grid.png").exists() and not (tmp_path / "~").exists()


def test_ctrl_c_promised_that_sampling_would_go_on_from_what_was_saved(
    finished_diffusion: Path, tmp_path: Path
) -> None:
    arguments = ("--out", tmp_path / "many", "--num", 10_000, "--device", "cpu")
    child, wait = forked(as_started_by_a_person(finished_diffusion, *arguments))
    while not (tmp_path / "many").exists():
        time.sleep(0.01)
    began = time.monotonic()
    os.kill(child, signal.SIGINT)
    outcome = wait()
    assert time.monotonic() - began < 2
    assert outcome.code == 1 and outcome.err.endswith("error: stopped; nothing was written\n"), outcome
    assert not list((tmp_path / "many").iterdir())


def test_ctrl_c_while_pictures_are_saved_leaves_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm import pictures
    from sample import parsed, save

    written: list[Path] = []

    def interrupted(image: Image.Image, path: Path, settings: object) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        image.save(path)
        written.append(path)

    monkeypatch.setattr(pictures, "save_png", interrupted)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        save(torch.zeros(5, 3, 4, 4), [], parsed(["run", "--out", str(tmp_path)]))
    assert len(written) == 3 and [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def as_started_by_a_person(*arguments: object) -> Callable[[], int]:
    """`python sample.py ARGUMENTS` for `forked`, the last line of the script included."""

    def action() -> int:
        sys.argv = ["sample.py", *map(str, arguments)]
        try:
            runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 70

    return action
