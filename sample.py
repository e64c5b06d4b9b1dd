"""Draws images from a finished run of train_diffusion.py."""

import argparse
import sys
from pathlib import Path

from ldm.errors import ConfigError, exit_code_of


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(f"{message}; see sample.py --help")


def parser() -> Parser:
    parser = Parser(prog="sample.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run of train_diffusion.py")
    parser.add_argument("--out", type=Path, required=True, help="a .png for one grid, or a folder for single images")
    parser.add_argument("--num", type=int, default=16, help="how many images (%(default)s)")
    parser.add_argument("--labels", help="classes, by name or number, separated by commas; repeated as needed (all)")
    parser.add_argument("--steps", type=int, default=18, help="noise levels (%(default)s)")
    parser.add_argument("--sampler", default="heun", help="euler, heun or dpm++2m (%(default)s)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance; 1 means none (2 with classes)")
    parser.add_argument("--seed", type=int, default=0, help="image i of a seed is always the same (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    parser.add_argument("--columns", type=int, help="columns of the grid (classes, or a square)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    return parser


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    import torch
    from tqdm import tqdm

    from ldm.pictures import enlarged, grid, picture, save_png
    from ldm.pipeline import LatentDiffusion
    from ldm.shapes import to_uint8

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = LatentDiffusion.load(options.run, device)
    labels = options.labels.split(",") if options.labels else None
    batches = -(-options.num // max(options.batch_size, 1))
    with tqdm(total=max(batches * options.steps, 0), desc="sampling", unit="step") as bar:
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
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "device")}
    if options.out.suffix.lower() == ".png":
        columns = options.columns or len(labels or model.classes) or round(len(images) ** 0.5)
        save_png(enlarged(grid(images, columns)), options.out, settings)
    else:
        indices = model.label_indices(labels)
        for number, image in enumerate(to_uint8(images)):
            name = f"{number:05d}" + (f"-{model.classes[indices[number % len(indices)]]}" if indices else "")
            save_png(picture(image), options.out / f"{name}.png", {**settings, "number": number})
    print(f"{options.num} images: {options.out}")


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
