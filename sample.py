"""Draws images from a finished run of train_diffusion.py."""

import argparse
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.config.command_line import Parser
from ldm.diffusion.config import SAMPLERS
from ldm.errors import ConfigError, RequestError, exit_code_of

if TYPE_CHECKING:
    from ldm.shapes import Images


def parser() -> Parser:
    parser = Parser("sample.py", __doc__ or "")
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run of train_diffusion.py")
    parser.add_argument("--out", type=Path, required=True, help="a .png for one grid, or a folder for single images")
    parser.add_argument("--num", type=int, default=16, help="how many images (%(default)s)")
    parser.add_argument("--labels", help="classes, by name or number, separated by commas; repeated as needed (all)")
    parser.add_argument("--steps", type=int, default=18, help="noise levels (%(default)s)")
    parser.add_argument("--sampler", default="heun", help=f"{', '.join(SAMPLERS)} (%(default)s)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance; 1 means none (2 with classes)")
    parser.add_argument(
        "--seed", type=int, default=0, help="image i depends on the seed alone, not on the batch (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    parser.add_argument("--columns", type=int, help="columns of the grid (the classes up to 20, else a square)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    return parser


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    if options.columns is not None and options.columns < 1:
        raise ConfigError(f"--columns {options.columns} must be at least 1")
    return options


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    import torch
    from tqdm import tqdm

    from ldm.pipeline import LatentDiffusion

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    model = LatentDiffusion.load(options.run, device)
    labels = None if options.labels is None else options.labels.split(",")
    with writing(options.out):  # now, and not after the work
        (options.out.parent if is_grid(options.out) else options.out).mkdir(parents=True, exist_ok=True)

    batches = -(-options.num // max(options.batch_size, 1))
    with tqdm(total=max(batches * options.steps, 0), desc="sampling", unit="step", delay=1) as bar:
        try:
            images = model.sample(
                options.num,
                labels,
                steps=options.steps,
                sampler=options.sampler,
                guidance=options.guidance,
                seed=options.seed,
                batch_size=options.batch_size,
                on_step=bar.update,
            )
        except RequestError as error:
            raise error.as_flag() from None
    names = model.config.schema.names(labels)
    with writing(options.out):
        save(images, names, options)
    print(f"{options.num} images: {options.out}")


def save(images: "Images", names: list[str], options: argparse.Namespace) -> None:
    """One grid, or single images; `names` are the classes in the order in which they repeat."""
    from ldm.pictures import grid, picture, save_png, upscaled
    from ldm.shapes import to_uint8

    settings = {key: value for key, value in vars(options).items() if key not in ("out", "device")}
    if is_grid(options.out):
        columns = options.columns or (len(names) if 0 < len(names) <= 20 else round(len(images) ** 0.5))
        return save_png(upscaled(grid(images, columns)), options.out, settings)
    for number, image in enumerate(to_uint8(images)):
        of_class = f"-{names[number % len(names)]}".replace("/", "_") if names else ""
        save_png(picture(image), options.out / f"{number:05d}{of_class}.png", {**settings, "number": number})


def is_grid(out: Path) -> bool:
    """Whether the images go into one picture, or into a folder."""
    return out.suffix.lower() == ".png"


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """An error in writing becomes one line; a full disk that of `exit_code_of`, with the file's name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(out)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(f"--out {out} cannot be written: {error.filename}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
