"""Grids, panels and curves as PNG files."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
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


def save_png(image: Image.Image, path: Path, settings: dict[str, Any] | None = None) -> None:
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
    """Every metric of a run's log over its steps, one small plot each."""
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    left_out = {"step", "images", "memory_gb", "overfitting_since"}
    known = (name for line in lines for name, value in line.items() if value is not None)
    names = [name for name in dict.fromkeys(known) if name not in left_out]
    if not names:
        return
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows))
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        points = np.array([(line["step"], line[name]) for line in lines if line.get(name) is not None], dtype=float)
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.plot(points[:, 0], points[:, 1], linewidth=1.2, marker="." if len(points) < 20 else "")
        if (points[:, 1] > 0).all() and points[:, 1].max() > 20 * points[:, 1].min():
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_title(name, fontsize=9, y=1.0)  # its place is given: finding it takes as long as the plot
        axes.tick_params(which="both", labelsize=7)
        axes.grid(alpha=0.3)
    # Fixed margins: a layout that measures every label takes as long as the drawing.
    height = 2.6 * rows
    figure.subplots_adjust(0.06, 0.3 / height, 0.99, 1 - 0.3 / height, wspace=0.22, hspace=0.35)
    figure.savefig(path, dpi=110)


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
