"""`ldm decode`: the images of latents in a file."""

import argparse
import sys
from pathlib import Path

from ldm.cli.options import check_at_least_one
from ldm.config.command_line import Parser
from ldm.errors import ConfigError
from ldm.terminal import amount


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm decode", __doc__ or "")
    add = found.add_argument
    add("run", metavar="RUN", help="a finished run, or whatever else ldm evaluate takes for an autoencoder")
    add("file", metavar="FILE", type=Path, help="what ldm encode wrote, or any standardized latents called `latents`")
    add("--out", metavar="PATH", type=Path, required=True, help="a folder for single images, or a .png for one grid")
    add("--images", metavar="N", type=int, help="the first N of them (all)")
    add("--batch-size", metavar="N", type=int, default=32, help="images at a time (%(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add("--force", action="store_true", help="write over what is there")
    return found


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    check_at_least_one(options, "images", "batch_size")
    out, is_grid = options.out, options.out.suffix.lower() == ".png"
    if out.exists() and out.is_dir() == is_grid:
        raise ConfigError(f"--out {out} is {'a folder' if is_grid else 'a file'}")
    if not options.force and out.exists() and (is_grid or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists: choose another, or give --force to write over what is there")
    return options


def main(arguments: list[str]) -> None:
    """Do what the command line says, on as many processes as there are."""
    options = parsed(arguments)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from tqdm import tqdm

    from ldm.autoencoder.model import Autoencoder
    from ldm.export import latent_file
    from ldm.export.encoding import check_fits, check_grid, decode
    from ldm.nn.pretrained_weights import sha256_of
    from ldm.training.processes import Processes

    processes = Processes(options.device)
    file = latent_file.read(options.file)
    if options.images is not None and options.images > file.shape[0]:
        raise ConfigError(f"--images {options.images} is more than the {file.shape[0]} of {options.file}")
    count = options.images or file.shape[0]
    check_grid(options.out, count)
    autoencoder = processes.main_first(lambda: Autoencoder.load(options.run).requires_grad_(False))
    check_fits(autoencoder, file, options.file)
    if processes.is_main and file.about.get("sha256") not in (None, sha256_of(autoencoder.state_dict())):
        other = file.about.get("autoencoder")
        print(f"note: {options.file} was written with other weights ({other}) than {options.run} has", file=sys.stderr)
    autoencoder.to(processes.device).eval()
    with tqdm(total=count, desc="decoding", unit="image", delay=1, disable=not processes.is_main) as bar:
        decode(autoencoder, file, count, options.out, processes, batch_size=options.batch_size, on_images=bar.update)
    if processes.is_main:
        print(f"{options.out}: {amount(count, 'image')}")
    processes.end()
