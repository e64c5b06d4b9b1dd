"""Pixels keep their place and their level on the way to a file."""

import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from ldm.pictures import MODES, curves, draw_small_plot, grid, picture, reconstruction_panel, save_png, upscaled
from ldm.shapes import full_precision, to_float, to_uint8
from tests.support.scripts import Stage, forked


def images(count: int, channels: int, height: int = 3, width: int = 4) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_all_256_levels_survive_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels)[0] == -1 and to_float(levels)[-1] == 1
    assert torch.equal(to_uint8(to_float(levels).bfloat16())[::255], levels[::255])


def test_levels_are_rounded_and_never_truncated():
    levels = torch.arange(255)
    for fraction, expected in ((0.49, levels), (0.51, levels + 1)):
        assert torch.equal(to_uint8((levels + fraction) / 127.5 - 1).long(), expected)


def test_values_beyond_the_range_are_clipped_and_do_not_wrap_around():
    assert to_uint8(torch.tensor([-9.0, -1.01, 1.01, 9.0])).tolist() == [0, 0, 255, 255]


def test_full_precision_raises_half_and_keeps_double():
    found = [full_precision(torch.zeros(1, dtype=dtype)).dtype for dtype in (torch.float16, torch.bfloat16)]
    assert found == [torch.float32, torch.float32]
    double = torch.zeros(1, dtype=torch.float64)
    assert full_precision(double) is double


@pytest.mark.parametrize("channels", MODES)
def test_a_grid_shows_every_pixel_in_its_place_on_white(channels: int):
    given, gap = images(5, channels), 2
    sheet = grid(given, columns=3, gap=gap)
    assert sheet.mode == MODES[channels] and sheet.size == (3 * (4 + gap) + gap, 2 * (3 + gap) + gap)
    found = pil_to_tensor(sheet)
    for place, image in enumerate(to_uint8(given)):
        top, left = gap + (3 + gap) * (place // 3), gap + (4 + gap) * (place % 3)
        assert torch.equal(found[:, top : top + 3, left : left + 4], image)
        found[:, top : top + 3, left : left + 4] = 255
    assert bool((found == 255).all())


def test_of_many_channels_the_first_three_are_shown():
    many = images(2, 13)
    assert grid(many, columns=2).tobytes() == grid(many[:, :3], columns=2).tobytes()
    shown = reconstruction_panel(many, many.flip(0)).tobytes()
    assert shown == reconstruction_panel(many[:, :3], many[:, :3].flip(0)).tobytes()


@pytest.mark.parametrize("channels", MODES)
def test_a_png_holds_the_same_pixels_and_the_settings(channels: int, tmp_path: Path):
    pixels = to_uint8(images(1, channels))[0]
    path, settings = tmp_path / "new" / "folder" / "image.png", {"seed": 7, "guidance": 1.5, "class": "Füße ✓"}
    save_png(picture(pixels), path, settings)
    with Image.open(path) as found:
        assert torch.equal(pil_to_tensor(found), pixels)
        assert found.text == {"seed": "7", "guidance": "1.5", "class": "Füße ✓"}


def test_small_pictures_grow_by_whole_pixels_and_large_ones_stay():
    pixels = to_uint8(images(1, 3))[0]
    found = pil_to_tensor(upscaled(picture(pixels), about=8))
    assert torch.equal(found, pixels.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert upscaled(picture(pixels), about=3).size == (4, 3)


@pytest.mark.parametrize("channels", MODES)
def test_a_panel_shows_images_reconstructions_and_four_times_their_difference(channels: int):
    given = images(2, channels, 4, 4)
    reconstruction = (given + 0.1 * images(2, channels, 4, 4).flip(0)).clamp(-1, 1)
    panel = pil_to_tensor(reconstruction_panel(given, reconstruction))
    factor = panel.shape[2] // 14  # two images of 4 pixels and three gaps of 2
    panel = panel[:, ::factor, ::factor]
    difference = (4 * (reconstruction - given)).clamp(-1, 1)
    for row, expected in enumerate((given, reconstruction, difference)):
        for column in range(2):
            found = panel[:, 2 + 6 * row : 6 + 6 * row, 2 + 6 * column : 6 + 6 * column]
            shown = channels - 1 if row == 2 and channels in (2, 4) else channels
            assert torch.equal(found[:shown], to_uint8(expected[column])[:shown])
            assert shown == channels or bool((found[-1] == 255).all())  # an opaque difference


NAN, INFINITY = float("nan"), float("inf")
LOGS = {
    "many": [
        {"step": step, "images": 8 * step, "l1": 1 / step, "lr": 1e-4, "gradient_norm": -step} for step in range(1, 60)
    ],
    "one point": [{"step": 1, "l1": 0.3}],
    "one point each": [{"step": 1, "l1": 0.3}, {"step": 2, "panel_psnr": 20.0}],
    "zeros": [{"step": 1, "lr": 0.0}, {"step": 2, "lr": 100.0}],
    "many decades": [{"step": 1, "l1": 1e-30}, {"step": 2, "l1": 1e30}],
    "not finite": [{"step": 1, "l1": NAN}, {"step": 2, "l1": INFINITY}, {"step": 3, "l1": 1.0}],
    "one not finite": [{"step": 1, "l1": INFINITY}],
    "one undefined": [{"step": 1, "l1": 0.3, "pca_psnr": None}, {"step": 2, "l1": 0.2, "pca_psnr": 3.0}],
    "only undefined": [{"step": 1, "l1": 0.3, "pca_psnr": None}],
}


@pytest.mark.parametrize("name", LOGS)
def test_curves_are_drawn_from_any_log_without_a_warning(name: str, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves(LOGS[name], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as found:
        assert min(found.size) > 100 and len(found.convert("L").getcolors()) > 2


@pytest.mark.parametrize("name", LOGS)
def test_no_two_ticks_of_a_plot_have_one_label(name: str) -> None:
    figure = Figure()
    for key in ("l1", "pca_psnr"):
        points = [(line["step"], line[key]) for line in LOGS[name] if line.get(key) is not None]
        axes = figure.add_axes((0, 0, 1, 1))
        if points:
            draw_small_plot(axes, key, np.array(points, dtype=float), left=0, bottom=0)
        labels = [(text.get_ha(), text.get_text()) for text in axes.texts]  # below the frame, or to its left
        assert len(set(labels)) == len(labels) and len(labels) >= 3 * bool(points), labels


@pytest.mark.parametrize("lines", [[], [{"step": 1, "images": 8}], [{"step": 1, "pca_psnr": None}]])
def test_a_log_without_metrics_gives_no_curves(lines: list[dict[str, object]], tmp_path: Path):
    curves(lines, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_the_backend_of_a_notebook_ended_the_run_at_its_first_curves(tmp_path: Path) -> None:
    """As a Jupyter kernel hands it down to every script, in a child that has not imported matplotlib yet."""
    backend = "module://backend_that_is_not_installed"

    def action() -> int:
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            del sys.modules[name]
        os.environ["MPLBACKEND"] = backend
        curves(LOGS["many"], tmp_path / "curves.png")
        return 0 if os.environ["MPLBACKEND"] == backend else 1

    outcome = forked(action)[1]()
    assert outcome.code == 0, outcome
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_picture_that_cannot_be_drawn_ended_the_training(
    stage_one: Stage, finished_vae: Path, tmp_path: Path
) -> None:
    """Neither the panels, for whose folder there is a file, nor the curves, for whose file there is a folder."""
    run = tmp_path / "run"
    shutil.copytree(finished_vae, run)
    shutil.rmtree(run / "samples")
    (run / "samples").write_text("a file")
    (run / "curves.png").unlink()
    (run / "curves.png").mkdir()
    outcome = stage_one.run(run, "--run.steps", 7, "--run.sample-every", 1)
    assert outcome.code == 0 and (run / "finished.json").read_text() == '{"step": 7}', outcome
    for what in ("panel", "curves"):
        assert f"warning: the {what} could not be drawn: " in outcome.out


def test_text_that_a_png_cannot_hold_is_written_with_backslashes(tmp_path: Path) -> None:
    save_png(Image.new("L", (2, 2)), tmp_path / "a.png", {"labels": "caf\udce9\0"})
    with Image.open(tmp_path / "a.png") as found:
        assert found.text == {"labels": "caf\\udce9\\x00"}  # type: ignore[attr-defined]
