"""`ldm encode`: the latents of a folder of images, in a file that other programs read."""

import argparse
from pathlib import Path

from ldm.cli.options import check_at_least_one, images_as_in_run, size_of
from ldm.config.command_line import Parser
from ldm.errors import ConfigError
from ldm.script_configs import vae_data_of
from ldm.terminal import amount

ENDINGS = (".safetensors", ".npz")


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm encode", __doc__ or "")
    add = found.add_argument
    add("run", metavar="RUN", help="a finished run, or whatever else ldm evaluate takes for an autoencoder")
    add("images", metavar="IMAGES", help="a folder of images, as data.path takes it")
    add("--out", metavar="FILE", type=Path, required=True, help="the file to write: .safetensors or .npz")
    add("--size", metavar="HxW", help="what images are brought to; one number for a square (as the run was trained)")
    add("--sample", metavar="SEED", type=int, help="write a sample of the posterior with this seed, not its mode")
    add("--moments", action="store_true", help="write means and log variances, for others to draw samples of")
    add("--batch-size", metavar="N", type=int, default=32, help="images at a time (%(default)s)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add("--force", action="store_true", help="replace FILE")
    return found


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    check_at_least_one(options, "batch_size")
    if options.out.suffix not in ENDINGS:
        raise ConfigError(f"--out {options.out} must end in {' or '.join(ENDINGS)}")
    if options.sample is not None and options.moments:
        raise ConfigError("--sample draws what --moments leaves to others: give one of them")
    if options.out.is_dir() or (options.out.exists() and not options.force):
        raise ConfigError(f"--out {options.out} exists: choose another, or give --force to replace a file")
    if not options.out.resolve().parent.is_dir():
        raise ConfigError(f"--out {options.out} is in no folder")
    return options


def main(arguments: list[str]) -> None:
    """Do what the command line says, on as many processes as there are."""
    options = parsed(arguments)
    run_data, size = vae_data_of(options.run), size_of(options.size)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from tqdm import tqdm

    from ldm.autoencoder.model import Autoencoder
    from ldm.data.datasets import open_dataset
    from ldm.data.summary import what_was_found
    from ldm.export.encoding import Encoding, encode
    from ldm.training.processes import Processes

    processes = Processes(options.device)
    autoencoder = processes.main_first(lambda: Autoencoder.load(options.run).requires_grad_(False))
    data = images_as_in_run(
        options.images,
        run=options.run,
        run_data=run_data,
        size=size,
        channels=autoencoder.network.image_channels,
        held_out=0.0,
        max_unreadable=0.0,  # every one of them: one that cannot be read is an error
    )
    dataset = processes.main_first(lambda: open_dataset(data, progress=processes.is_main))
    if processes.is_main:
        print(what_was_found(dataset))
    autoencoder.to(processes.device).eval()
    with tqdm(total=len(dataset), desc="encoding", unit="image", delay=1, disable=not processes.is_main) as bar:
        encode(
            autoencoder,
            dataset,
            options.out,
            processes,
            encoding=Encoding(options.sample, options.moments),
            batch_size=options.batch_size,
            source=options.run,
            on_images=bar.update,
        )
    if processes.is_main:
        classes = f" of {len(dataset.classes)} classes" if dataset.classes else ""
        shape = " x ".join(map(str, autoencoder.latent_shape(dataset.config.sides)))
        print(f"{options.out}: {amount(len(dataset), 'image')}{classes}, latents of {shape}")
    processes.end()
