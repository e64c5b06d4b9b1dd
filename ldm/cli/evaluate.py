"""Evaluates an autoencoder by its reconstructions and latents, or a diffusion model by the images that it generates."""

import argparse
from pathlib import Path
from typing import get_args, get_type_hints

from ldm.autoencoder.losses.config import PerceptualConfig
from ldm.cli import evaluate_autoencoder, evaluate_codec, evaluate_generation
from ldm.cli.options import check_at_least_one
from ldm.cli.sampling_options import GUIDANCE, add_sampling_options
from ldm.config.command_line import Parser
from ldm.diffusion.config import SAMPLER_OPTIONS, SAMPLERS
from ldm.errors import ConfigError
from ldm.evaluation.report_files import check_replaceable, features_beside

SPLITS = ("held-out", "training", "all")
PROBES = ("mean", "flat", "none")
SWEEPS = ("guidance", "steps", "sampler", "ema")
NETWORKS = (*get_args(get_type_hints(PerceptualConfig)["backbone"]), "none")
OF_AUTOENCODERS = ("split", "lpips", "lpips_weights", "probe", "codec")
OF_SAMPLING = ("sampler", "steps", *GUIDANCE, *SAMPLER_OPTIONS, "ema", "seed", "sweep", "values", "memorization_sheet")


def parser() -> Parser:
    """The command line."""
    parser = Parser("ldm evaluate", __doc__ or "")
    run = (
        "a finished run of either script, a diffusers folder, a CompVis-keyed .safetensors, TAESD's files, or a hub id"
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help=run)
    add = parser.add_argument
    add("--data", metavar="PATH", help="a folder of images (the run's own data)")
    add("--size", metavar="HxW", help="what images are brought to; one number for a square (as the run was trained)")
    images = "how many images, evenly spread over them (all); of generation, at most so many real ones (5000)"
    add("--images", metavar="N", type=int, help=images)
    fid = "the network of the Fréchet and kernel distances (none; of generation, a classifier trained on the spot)"
    add("--fid", choices=("inception", *NETWORKS), help=fid)
    add("--fid-weights", metavar="PATH", default="", help="its file of weights, or the folder of features")
    add("--batch-size", metavar="N", type=int, help="images at a time (32; of generation, 64)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    add("--out", type=Path, metavar="FILE.json", help="where the metrics and the protocol are written")
    add("--save-images", type=Path, metavar="DIR", help="a new folder for the images that are measured, as PNG files")
    panel = "where images and reconstructions, or samples, are drawn; of a sweep or a codec, curves"
    add("--panel", type=Path, metavar="FILE.png", help=panel)
    add_autoencoder_options(parser)
    add_generation_options(parser)
    return parser


def add_autoencoder_options(parser: Parser) -> None:
    """What only autoencoders take."""
    add = parser.add_argument_group("of an autoencoder").add_argument
    add("--split", choices=SPLITS, help="which of the images (held-out of the run's own data, all of --data)")
    add("--lpips", choices=NETWORKS, help="the network of the perceptual distance (none)")
    add("--lpips-weights", metavar="PATH", default="", help="its file of weights, or the folder of features")
    probe = "what of a latent kNN and a linear classifier are given: the mean over positions, or all (none)"
    add("--probe", choices=PROBES, help=probe)
    codec = "rate-distortion beside JPEG and others of what ldm codec fit wrote, or fits now; of 64 images, or --images"
    add("--codec", metavar="CODEC", nargs="?", const=evaluate_codec.FIT, help=codec)


def add_generation_options(parser: Parser) -> None:
    """What only generated images take."""
    group = parser.add_argument_group("of generated images")
    add = group.add_argument
    add("--generate", metavar="N", type=int, help="draw so many images from a run of train_diffusion.py")
    add("--samples", metavar="PATH", help="a folder of generated images, from anywhere, instead")
    add("--sampler", choices=tuple(SAMPLERS), help="how they are drawn (heun; tuned for few steps, consistency)")
    add("--steps", metavar="N", type=int, help="noise levels (18; tuned for few steps, 2)")
    add_sampling_options(group)
    add("--ema", metavar="X", type=float, help="length of the EMA, made of the run's snapshots (the exported one)")
    sheet = "where the samples that are most like training images are drawn above these"
    add("--memorization-sheet", type=Path, metavar="FILE.png", help=sheet)
    add("--seed", metavar="N", type=int, help="image i depends on the seed alone, not on the batch (0)")
    add("--sweep", choices=SWEEPS, help="measure at each of --values of this; the same command again resumes")
    add("--values", metavar="A,B,...", help="what is swept over, separated by commas")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    check_at_least_one(options, "images", "batch_size", "steps")
    options.is_generation = bool(options.generate is not None or options.samples)
    if options.run is None and not options.samples:
        raise ConfigError("RUN is missing: name a run, or a folder of --samples; see ldm evaluate --help")
    if not options.is_generation and (Path(options.run) / "unet" / "config.json").is_file():
        raise ConfigError(
            f"{options.run} is a run of train_diffusion.py: say how many images to draw with --generate N, or give"
            f" {options.run}/vae to evaluate its autoencoder"
        )
    unfit = OF_AUTOENCODERS if options.is_generation else OF_SAMPLING
    check_not_given(options, unfit, "of autoencoders" if options.is_generation else "for --generate")
    check_files(options)
    return options


def check_not_given(options: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    """Raise ConfigError for an option that says nothing here."""
    for name in names:
        if getattr(options, name) not in (None, ""):
            raise ConfigError(f"--{name.replace('_', '-')} is {reason}: leave it out")


def check_files(options: argparse.Namespace) -> None:
    """Raise ConfigError for a file that could not be written, now and not after the work."""
    for name in ("panel", "memorization_sheet"):
        if (path := getattr(options, name)) and path.suffix.lower() != ".png":
            raise ConfigError(f"--{name.replace('_', '-')} {path} must end in .png")
    files = {name: getattr(options, name) for name in ("out", "panel", "memorization_sheet") if getattr(options, name)}
    for name, path in files.items():
        check_replaceable(f"--{name.replace('_', '-')}", path)
    if len({path.resolve() for path in files.values()}) < len(files):
        raise ConfigError("--out, --panel and --memorization-sheet are different files: name each its own")
    if options.panel:
        check_replaceable("--panel", features_beside(options.panel))
    folder = options.save_images
    if folder and not folder.resolve().parent.is_dir():
        raise ConfigError(f"--save-images {folder} cannot be written: it is in no folder")
    if folder and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--save-images {folder} is there already: name a new folder")


def main(arguments: list[str]) -> None:
    """Do what the command line says, on as many processes as there are."""
    options = parsed(arguments)
    if options.is_generation:
        evaluate_generation.run(evaluate_generation.checked(options))
    elif options.codec is not None:
        evaluate_codec.run(evaluate_codec.checked(options))
    else:
        evaluate_autoencoder.run(evaluate_autoencoder.checked(options))
