"""Draws images from a finished run of train_diffusion.py."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.condition_options import CONDITION, add_condition_options, requested_conditions
from ldm.cli.sampling_options import GUIDANCE, add_sampling_options, requested_guidance, requested_options
from ldm.config.command_line import Parser
from ldm.data.image_formats import IMAGE_ENDINGS
from ldm.diffusion.config import SAMPLER_OPTIONS, SAMPLERS
from ldm.errors import ConfigError, RequestError
from ldm.terminal import exit_code_of, writing

if TYPE_CHECKING:
    from ldm.pipeline import LatentDiffusion
    from ldm.shapes import Images

UNFIT = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f\ud800-\udfff]')  # for a file's name, on any system


def parser(arguments: Sequence[str] = ()) -> Parser:
    parser = Parser("sample.py", __doc__ or "")
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run of train_diffusion.py")
    parser.add_argument("--out", type=Path, required=True, help="a .png for one grid, or a folder for single images")
    parser.add_argument("--num", type=int, default=16, help="how many images (%(default)s)")
    parser.add_argument("--steps", type=int, help="noise levels (18; of a model tuned for few steps, 2)")
    parser.add_argument("--sampler", help=f"{', '.join(SAMPLERS)} (heun; of a model tuned for few steps, consistency)")
    add_sampling_options(parser)
    parser.add_argument("--ema", type=float, help="length of the EMA, made of the run's snapshots (the exported one)")
    parser.add_argument(
        "--seed", type=int, default=0, help="image i depends on the seed alone, not on the batch (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    parser.add_argument("--columns", type=int, help="columns of the grid (the classes up to 20, else a square)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (a GPU if there is one)")
    add_condition_options(parser, arguments)
    return parser


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser(arguments).read(arguments)
    if options.columns is not None and options.columns < 1:
        raise ConfigError(f"--columns {options.columns} must be at least 1")
    ending = options.out.suffix.lower()
    if ending in IMAGE_ENDINGS and not is_grid(options.out) and not options.out.is_dir():
        raise ConfigError(f"--out {options.out}: a grid is a .png, and a folder is not called {ending}")
    return options


def names_of(model: "LatentDiffusion", requested: dict[str, Any]) -> list[str]:
    """What the images are called by, in the order in which they repeat: classes, else prompts, else nothing."""
    if requested["labels"] is not None or not any(requested.values()):
        return model.config.schema.names(requested["labels"])
    return requested["prompt"] or []


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    requested = requested_conditions(options)
    from tqdm import tqdm

    from ldm.pipeline import LatentDiffusion
    from ldm.training.devices import choose_device
    from ldm.training.snapshots import load_average

    model = LatentDiffusion.load(options.run, choose_device(options.device))
    grid = model.config.sampling
    options.sampler = options.sampler or grid.sampler
    options.steps = grid.steps if options.steps is None else options.steps
    with flags_named():
        if options.ema is not None:
            load_average(model.denoiser, options.run, options.ema)
        names = names_of(model, requested)
        guidance = requested_guidance(options, model)
    with writing(options.out):  # now, and not after the work
        check_out(options.out, file_names(options.num, names))
        (options.out.parent if is_grid(options.out) else options.out).mkdir(parents=True, exist_ok=True)

    batches = -(-options.num // max(options.batch_size, 1))
    bar = tqdm(total=max(batches * options.steps, 0), desc="sampling", unit="step", delay=1)
    with bar, flags_named():
        images = model.sample(
            options.num,
            **requested,
            steps=options.steps,
            sampler=options.sampler,
            sampler_options=requested_options(options),
            guidance=guidance,
            seed=options.seed,
            batch_size=options.batch_size,
            on_step=bar.update,
        )
    with writing(options.out):
        save(images, names, options)
    print(f"{options.num} images: {options.out}")


def save(images: "Images", names: list[str], options: argparse.Namespace) -> None:
    """One grid, or single images, all or none; `names` are the classes in the order in which they repeat."""
    from ldm.pictures import grid, picture, save_png, upscaled
    from ldm.shapes import to_uint8

    settings = {key: value for key, value in vars(options).items() if key not in ("out", "device")}
    unasked = {*SAMPLER_OPTIONS, *GUIDANCE[1:], *(key for key in settings if key.startswith(("prompt", CONDITION)))}
    settings = {key: value for key, value in settings.items() if value is not None or key not in unasked}
    if is_grid(options.out):
        columns = options.columns or (len(names) if 0 < len(names) <= 20 else round(len(images) ** 0.5))
        return save_png(upscaled(grid(images, columns)), options.out, settings)
    written: list[Path] = []
    try:
        for image, name in zip(to_uint8(images), file_names(len(images), names), strict=True):
            written.append(options.out / name)
            save_png(picture(image), written[-1], {**settings, "number": len(written) - 1})
    except BaseException:  # Ctrl-C too
        for path in written:
            path.unlink(missing_ok=True)
        raise


def file_names(num: int, names: list[str]) -> list[str]:
    """What the pictures in a folder are called: by number and class, which may have any name."""
    plain = [f"-{UNFIT.sub('_', name)[:60]}" for name in names] or [""]  # 60 of four bytes: a name may have 255
    return [f"{number:05d}{plain[number % len(plain)]}.png" for number in range(max(num, 0))]


def check_out(out: Path, names: list[str]) -> None:
    """Raise ConfigError if a picture of somebody's would be overwritten, or be taken for one of these."""
    if is_grid(out):
        if not is_own(out):
            raise ConfigError(f"--out {out} is there, and is no picture of sample.py: choose another name")
        return
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if path.suffix.lower() in IMAGE_ENDINGS and (path.name not in names or not is_own(path)):
            raise ConfigError(
                f"--out {out} holds {path.name}, which would be mixed with the new pictures: choose a new folder"
            )


def is_own(path: Path) -> bool:
    """Whether that is a picture of sample.py, which may be drawn again, or nothing at all."""
    from PIL import Image

    if not path.is_file() or not path.stat().st_size:
        return True
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return {"run", "sampler", "seed"} <= picture.info.keys()
    except Exception:  # of many types, where Pillow cannot read it
        return False


def is_grid(out: Path) -> bool:
    """Whether the images go into one picture, or into a folder."""
    return out.suffix.lower() == ".png"


@contextmanager
def flags_named() -> Iterator[None]:
    """A request that cannot be met is refused in the words of the command line."""
    try:
        yield
    except RequestError as error:
        raise error.as_flag() from None


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:], resumes=False))
