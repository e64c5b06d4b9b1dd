"""Draws images from a finished run of train_diffusion.py: samples, edits of a real image, ways between two images.

accelerate launch and torchrun share the work among several processes, which draw the same images as one.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.condition_options import add_condition_options
from ldm.cli.editing_options import add_editing_options, check_modes
from ldm.cli.sample_settings import arguments_like, check_inputs, is_own, settings_of
from ldm.cli.sampling_options import add_sampling_options
from ldm.config.command_line import Parser
from ldm.data.image_formats import IMAGE_ENDINGS
from ldm.diffusion.config import SAMPLERS
from ldm.errors import ConfigError, RequestError
from ldm.terminal import amount, exit_code_of, writing

if TYPE_CHECKING:
    from ldm.shapes import Images

UNFIT = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')  # for a file's name, on any system
FILE_ENDINGS = (".png", ".gif")  # of an --out that is one picture; else it is a folder


def parser(arguments: Sequence[str] = ()) -> Parser:
    parser = Parser("sample.py", __doc__ or "")
    run = "a finished run of train_diffusion.py (that of --like)"
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help=run)
    out = "a .png for one grid, a .gif for --gif, or a folder for single images"
    parser.add_argument("--out", type=Path, help=out)
    add_editing_options(parser)
    parser.add_argument("--steps", type=int, help="noise levels (18; of a model tuned for few steps, 2)")
    parser.add_argument("--sampler", help=f"{', '.join(SAMPLERS)} (heun; of a model tuned for few steps, consistency)")
    add_sampling_options(parser)
    parser.add_argument("--ema", type=float, help="length of the EMA, made of the run's snapshots (the exported one)")
    parser.add_argument(
        "--seed", type=int, default=0, help="image i depends on the seed alone, not on the batch (%(default)s)"
    )
    parser.add_argument("--like", metavar="PNG", type=Path, help="draw again what this picture is; flags change that")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of both networks (fp32)")
    parser.add_argument("--graph", action="store_true", help="on a CUDA GPU, replay the denoiser as one graph")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    parser.add_argument("--columns", type=int, help="columns of the grid (the conditions up to 20, else a square)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (a GPU if there is one)")
    add_condition_options(parser, arguments)
    return parser


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    arguments = arguments_like(arguments, parser)
    options = parser(arguments).read(arguments)
    needed = {"RUN (or --like PNG)": options.run, "--out": options.out}
    if missing := [name for name, value in needed.items() if value is None]:
        raise ConfigError(f"the following arguments are required: {', '.join(missing)}; see sample.py --help")
    if options.columns is not None and options.columns < 1:
        raise ConfigError(f"--columns {options.columns} must be at least 1")
    check_modes(options)
    check_inputs(options)
    ending = options.out.suffix.lower()
    if ending in IMAGE_ENDINGS and ending not in FILE_ENDINGS and not options.out.is_dir():
        raise ConfigError(f"--out {options.out}: a grid is a .png, and a folder is not called {ending}")
    return options


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    import torch
    from tqdm import tqdm

    from ldm.cli.drawing import Drawing, open_drawing, open_model
    from ldm.training.processes import Processes

    processes = Processes(options.device)

    def opened() -> Drawing:
        with flags_named():
            return open_drawing(options, open_model(options, processes.device))

    drawing = processes.main_first(opened)

    def prepare() -> None:  # now, and not after the work
        with writing(options.out):
            check_out(options.out, file_names(drawing.numbers, drawing.names))
            (options.out.parent if is_file(options.out) else options.out).mkdir(parents=True, exist_ok=True)

    processes.on_main(prepare)
    began, own = time.monotonic(), -(-len(drawing.batches) // processes.count)
    bar = tqdm(total=own * drawing.steps, desc="sampling", unit="step", delay=1, disable=not processes.is_main)

    def draw(job: int) -> "Images":
        with flags_named():
            return drawing.draw(drawing.batches[job], bar.update)

    with bar:
        images = torch.cat(list(processes.map(len(drawing.batches), draw)))
    seconds = time.monotonic() - began

    def finish() -> None:
        with writing(options.out):
            save(images, drawing.names, options, numbers=drawing.numbers, columns=drawing.columns)
        rate = len(images) / seconds
        print(f"{amount(len(images), 'image')}: {options.out} ({rate:{',.0f' if rate > 10 else '.2g'}} images/s)")

    processes.on_main(finish)
    processes.end()


def save(
    images: "Images",
    names: list[str],
    options: argparse.Namespace,
    *,
    numbers: Sequence[int] | None = None,
    columns: int | None = None,
) -> None:
    """One grid, one animation, or single images, all or none.

    `names` are the conditions in the order in which they repeat, and `numbers` those of the images (0, 1, ...).
    """
    from ldm.pictures import grid, picture, save_gif, save_png, upscaled
    from ldm.shapes import to_uint8

    settings = settings_of(options)
    if options.gif:
        return save_gif([upscaled(picture(image), about=256) for image in to_uint8(images)], options.out, settings)
    if is_file(options.out):
        fitting = len(names) if 0 < len(names) <= 20 else round(len(images) ** 0.5)
        columns = options.columns or columns or min(fitting, len(images))
        return save_png(upscaled(grid(images, columns)), options.out, settings)
    numbers, written = range(len(images)) if numbers is None else numbers, list[Path]()
    try:
        for image, number, name in zip(to_uint8(images), numbers, file_names(numbers, names), strict=True):
            written.append(options.out / name)
            save_png(picture(image), written[-1], {**settings, "number": number})
    except BaseException:  # Ctrl-C too
        for path in written:
            path.unlink(missing_ok=True)
        raise


def file_names(numbers: Sequence[int], names: list[str]) -> list[str]:
    """What the pictures in a folder are called: by number and condition, which may have any name."""
    plain = [f"-{UNFIT.sub('_', name)[:60]}" for name in names] or [""]  # 60 of four bytes: a name may have 255
    return [f"{number:05d}{plain[number % len(plain)]}.png" for number in numbers]


def check_out(out: Path, names: list[str]) -> None:
    """Raise ConfigError if a picture of somebody's would be overwritten, or be taken for one of these."""
    if is_file(out):
        if out.is_dir():
            raise ConfigError(f"--out {out} cannot be written: it is a folder, and {out.suffix} means one picture")
        if not is_own(out):
            raise ConfigError(f"--out {out} is there, and is no picture of sample.py: choose another name")
        return
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if path.suffix.lower() in IMAGE_ENDINGS and (path.name not in names or not is_own(path)):
            raise ConfigError(
                f"--out {out} holds {path.name}, which would be mixed with the new pictures: choose a new folder"
            )


def is_file(out: Path) -> bool:
    """Whether the images go into one picture, or into a folder."""
    return out.suffix.lower() in FILE_ENDINGS


@contextmanager
def flags_named() -> Iterator[None]:
    """A request that cannot be met is refused in the words of the command line."""
    try:
        yield
    except RequestError as error:
        raise error.as_flag() from None


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:], resumes=False))
