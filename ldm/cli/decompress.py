"""`ldm decompress`: the images of compressed files, or images drawn from a codec's entropy model."""

import argparse
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.options import check_at_least_one, size_of
from ldm.config.command_line import Parser
from ldm.errors import CodecError, ConfigError
from ldm.terminal import amount, writing

if TYPE_CHECKING:
    from ldm.compression.codec import Codec
    from ldm.compression.files import Job

OF_SAMPLES = ("step", "size", "seed")


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm decompress", __doc__ or "")
    add = found.add_argument
    add("codec", metavar="CODEC", type=Path, help="the codec that the files were written with")
    add("files", metavar="FILES", type=Path, nargs="*", help="what ldm compress wrote: files, and folders of them")
    add("--out", metavar="OUT", type=Path, required=True, help="the folder of the images, .png each")
    help = "a finished run of train_diffusion.py on the same autoencoder: its denoiser moves latents within their cells"
    add("--denoise", metavar="RUN", help=help)
    help = "sampler steps for --denoise; one goes to what is likely on average, several to one of what is likely (1)"
    add("--denoise-steps", metavar="N", type=int, help=help)
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    samples = found.add_argument_group("of samples")
    samples.add_argument("--sample", metavar="N", type=int, help="draw so many images from the entropy model, no FILES")
    samples.add_argument("--step", metavar="S", type=float, help="the step of quantization (that of training, or .5)")
    samples.add_argument("--size", metavar="HxW", help="of the images (those of the autoencoder's training)")
    samples.add_argument("--seed", metavar="N", type=int, help="image i depends on the seed and i alone (0)")
    return found


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    check_at_least_one(options, "sample", "denoise_steps")
    if (options.sample is None) == (not options.files):
        raise ConfigError("name either FILES to decompress or, with --sample N, how many images to draw")
    given = [name for name in OF_SAMPLES if getattr(options, name) is not None]
    if options.sample is None and given:
        raise ConfigError(f"--{given[0]} is for --sample N: a file knows its own")
    if options.denoise_steps is not None and options.denoise is None:
        raise ConfigError("--denoise-steps is for --denoise RUN")
    if options.sample is not None and options.denoise is not None:
        raise ConfigError("--denoise moves what a file holds: leave it out, or --sample")
    return options


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    options = parsed(arguments)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.compression.codec import Codec
    from ldm.compression.files import check_writes_pictures, jobs_of
    from ldm.training.devices import choose_device

    jobs = jobs_of(options.files, options.out, compresses=False)
    if options.sample is not None and options.out.exists():
        raise ConfigError(f"--out {options.out} exists: choose another folder")
    codec = Codec.load(options.codec).to(choose_device(options.device))
    check_writes_pictures(codec.autoencoder.network.image_channels)
    count = draw_samples(options, codec) if options.sample is not None else decompress(options, jobs, codec)
    print(f"{options.out}: {amount(count, 'image')}")


def decompress(options: argparse.Namespace, jobs: "list[Job]", codec: "Codec") -> int:
    """Write the images of each file; those of a solid one lie in a folder of its name."""
    from tqdm import tqdm

    from ldm.compression.container import SOLID_MAGIC
    from ldm.compression.denoising import DenoisingRefinement
    from ldm.compression.files import read_file
    from ldm.compression.solid import decompress_solid
    from ldm.pictures import picture, save_png
    from ldm.pipeline import LatentDiffusion
    from ldm.shapes import to_uint8

    refine, count = None, 0
    if options.denoise is not None:
        model = LatentDiffusion.load(options.denoise, codec.autoencoder.latent_mean.device)
        refine = DenoisingRefinement.of(codec, model, options.denoise_steps or 1)
    for job in tqdm(jobs, desc="decompressing", unit="file", delay=1):
        file, folder = read_file(job.source), job.target.with_suffix("")
        is_solid = file.startswith(SOLID_MAGIC)
        if is_solid and folder.exists():
            raise ConfigError(f"--out {options.out} holds {folder.name} already: choose another folder")
        try:
            if is_solid:
                images = {
                    folder / f"{name}.png": image for name, image in decompress_solid(codec, file, refine).items()
                }
            else:
                images = {job.target: codec.decompress([file], refine)[0]}
        except CodecError as error:
            raise CodecError(f"{job.source}: {error}") from error
        with writing(options.out):
            for target, image in images.items():
                save_png(picture(to_uint8(image)), target)
        count += len(images)
    return count


def draw_samples(options: argparse.Namespace, codec: "Codec") -> int:
    """Write images that are drawn from the entropy model."""
    from ldm.compression.fitting import learned_step
    from ldm.compression.sampling import sampled
    from ldm.compression.step_search import target_of
    from ldm.entropy.tables import POSITIONS
    from ldm.errors import RequestError
    from ldm.pictures import picture, save_png
    from ldm.shapes import to_uint8

    step = options.step if options.step is not None else learned_step(codec.autoencoder) or 0.5
    try:
        positions = round((target_of(step, None, None).step or step) * POSITIONS)
    except RequestError as error:
        raise error.as_flag() from error
    size, image = size_of(options.size), codec.autoencoder.image
    if size is not None:
        sides = (size, size) if isinstance(size, int) else size
    elif image is not None:
        sides = image[1:]
    else:
        raise ConfigError("--size is missing: this autoencoder does not say what it was trained on")
    images = islice(sampled(codec, sides, positions, seed=options.seed or 0), options.sample)
    with writing(options.out):
        for number, drawn in enumerate(images):
            save_png(picture(to_uint8(drawn)), options.out / f"{number:0{len(str(options.sample - 1))}}.png")
    return int(options.sample)
