"""Grids, panels and curves as PNG files."""

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from ldm.shapes import Images, to_uint8

T = TypeVar("T")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def picture(image: Tensor) -> Image.Image:
    """A Pillow image of a uint8 tensor of C x H x W; of more than four channels the first three are shown as RGB."""
    array = image[: len(image) if len(image) in MODES else 3].permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array, MODES[array.shape[2]])


def grid(images: Images, columns: int, gap: int = 2) -> Image.Image:
    """The images side by side, row by row, on white."""
    pixels = to_uint8(images)
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for place, image in enumerate(pixels):
        top, left = (gap + (height + gap) * (place // columns)), (gap + (width + gap) * (place % columns))
        sheet[:, top : top + height, left : left + width] = image
    return picture(sheet)


def save_png(image: Image.Image, path: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Write a PNG whose text chunks hold `settings`."""
    text = PngImagePlugin.PngInfo()
    for key, value in (settings or {}).items():  # a class or a path may hold what UTF-8 or a text chunk cannot
        text.add_text(key, str(value).encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00"))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, pnginfo=text)


def save_gif(frames: list[Image.Image], path: Path, settings: dict[str, Any], seconds: float = 0.1) -> None:
    """Write an animation whose comment holds `settings` as JSON; the last picture stands a second longer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [round(1000 * seconds)] * (len(frames) - 1) + [1000]
    comment = json.dumps(settings).encode()
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, comment=comment)


def reconstruction_panel(images: Images, reconstruction: Images, seen: Images | None = None) -> Image.Image:
    """Three rows: the images, what came back, and four times their difference around gray; `seen`, if given, second."""
    difference = (4 * (reconstruction - images)).clamp(-1, 1)
    if images.shape[1] in (2, 4):
        difference[:, -1] = 1.0  # an opaque difference can be seen
    rows = [images, *([] if seen is None else [seen]), reconstruction, difference]
    return upscaled(grid(torch.cat(rows), columns=len(images)))


def upscaled(image: Image.Image, about: int = 640) -> Image.Image:
    """Small pictures shown in whole multiples of their pixels."""
    factor = max(round(about / image.width), 1)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Every metric of a run's log over its steps, one small plot each.

    All are drawn on one set of axes: with a set for each it takes three times as long, and the run waits for it.
    """
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    left_out = {"step", "images", "memory_gb", "overfitting_since"}
    known = (name for line in lines for name, value in line.items() if value is not None)
    names = [name for name in dict.fromkeys(known) if name not in left_out]
    if not names:
        return
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(-rows, 0))
    axes.set_axis_off()
    for place, name in enumerate(names):
        points = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None], dtype=float)
        draw_small_plot(axes, name, points, left=place % columns, bottom=-1 - place // columns)
    figure.savefig(path, dpi=110, pil_kwargs={"compress_level": 1})


def draw_small_plot(axes: Any, title: str, points: NDArray[np.float64], *, left: int, bottom: int) -> None:
    """Draw points, N x 2, as a curve with a grid and ticks into a unit square; those not finite are gaps."""
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

    steps, values = points.T
    is_log = bool((values > 0).all() and values.max() > 20 * values.min())
    heights = np.log10(values) if is_log else values
    finite = np.isfinite(heights)
    widths, levels = (left + 0.13, left + 0.98), (bottom + 0.11, bottom + 0.88)  # of the frame
    across, up = shown_range(steps[finite]), shown_range(heights[finite])
    x_ticks = [tick for tick in MaxNLocator(4, integer=True).tick_values(*across) if tick == round(tick)]
    y_ticks = list(MaxNLocator(4, integer=is_log).tick_values(*up))
    if is_log and up[1] - up[0] < 3:
        decades = range(math.floor(up[0]), math.ceil(up[1]))
        y_ticks = [decade + math.log10(digit) for decade in decades for digit in (1, 3)]
    x_ticks = [tick for tick in x_ticks if across[0] <= tick <= across[1]]
    y_ticks = [tick for tick in y_ticks if up[0] <= tick <= up[1]]
    x, y = np.interp(x_ticks, across, widths), np.interp(y_ticks, up, levels)
    lines = [[(place, level) for level in levels] for place in (*x, *widths)]
    lines += [[(width, place) for width in widths] for place in (*y, *levels)]
    colors = [*["0.88"] * len(x), *["black"] * 2, *["0.88"] * len(y), *["black"] * 2]
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=0.8), autolim=False)
    for place, step in zip(x, x_ticks, strict=True):
        axes.text(place, levels[0] - 0.02, f"{step:.0f}", fontsize=7, ha="center", va="top")
    for place, height in zip(y, y_ticks, strict=True):
        axes.text(
            widths[0] - 0.01, place, f"{10.0**height if is_log else height:.6g}", fontsize=7, ha="right", va="center"
        )
    axes.text(sum(widths) / 2, levels[1] + 0.02, title, fontsize=9, ha="center")
    x, y = np.interp(steps, across, widths), np.where(finite, np.interp(heights, up, levels), np.nan)
    axes.plot(x, y, color="C0", linewidth=1.2, marker="." if len(points) < 20 else "")


def shown_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """From where to where a plot of these values goes, with a margin; a range in any case."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05 * abs(low) or 0.05
    return low - margin, high + margin


def import_matplotlib() -> None:
    """Import it whatever MPLBACKEND says: a notebook hands its own backend down to every script that it starts."""
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):  # a backend that is not installed here
            matplotlib.rcParams["backend"] = backend


def drawn(what: str, draw: Callable[[], T], *, warn: Callable[[str], None]) -> T | None:
    """The result of `draw`; that a picture cannot be drawn is a warning, and the training goes on without it."""
    try:
        return draw()
    except Exception as error:  # whatever it is
        reason = " ".join(str(error).split())[:200]
        warn(f"warning: the {what} could not be drawn: {type(error).__name__}: {reason}")
        return None
