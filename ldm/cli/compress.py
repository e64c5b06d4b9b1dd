"""`ldm compress`: images to files of a codec."""

import argparse
from pathlib import Path

from ldm.config.command_line import Parser
from ldm.errors import ConfigError


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm compress", __doc__ or "")
    add = found.add_argument
    add("codec", metavar="CODEC", type=Path, help="what ldm codec fit wrote")
    add("images", metavar="IMAGES", type=Path, nargs="+", help="images, and folders of them, of any size")
    add("--out", metavar="OUT", type=Path, required=True, help="the folder of the files, .ldmc each")
    add("--rate", metavar="BPP", type=float, help="at most so many bits per pixel in each file, its header counted")
    add("--psnr", metavar="DB", type=float, help="at least so many dB of each image, as few bits as that takes")
    add("--step", metavar="S", type=float, help="the step of quantization, in standard deviations of the latent")
    add("--verify", action="store_true", help="decode each file, compare its symbols, and say the PSNR")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    return found


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the command line says, or ConfigError."""
    options = parser().read(arguments)
    given = [name for name in ("rate", "psnr", "step") if getattr(options, name) is not None]
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none of them"
        raise ConfigError(f"one of --rate, --psnr and --step says how far to compress: there is {found}")
    return options


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    options = parsed(arguments)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from tqdm import tqdm

    from ldm.checkpoint import write_atomically
    from ldm.compression.codec import Codec
    from ldm.compression.container import header_size
    from ldm.compression.files import jobs_of, read_image
    from ldm.compression.step_search import target_of
    from ldm.errors import CodecError, RequestError
    from ldm.evaluation.metrics import psnr
    from ldm.shapes import rounded
    from ldm.terminal import writing
    from ldm.training.devices import choose_device

    try:
        target = target_of(options.step, options.rate, options.psnr)
    except RequestError as error:
        raise error.as_flag() from error
    jobs = jobs_of(options.images, options.out, compresses=True)
    codec = Codec.load(options.codec).to(choose_device(options.device))
    pixels, size, headers, decibels = 0, 0, 0, []
    for job in tqdm(jobs, desc="compressing", unit="image", delay=1):
        image = read_image(job.source, codec.autoencoder.network.image_channels)
        try:
            (file,) = codec.compressed([image], target)
        except RequestError as error:
            raise RequestError(error.argument, f"{error.problem} ({job.source})").as_flag() from error
        if options.verify:
            try:
                decoded = codec.verify(image, file)
            except CodecError as error:
                raise CodecError(f"{job.source}: {error}") from error
            decibels.append(float(psnr(image[None], rounded(decoded)[None])))
        with writing(options.out):
            job.target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(job.target, file)
        pixels, size, headers = pixels + image[0].numel(), size + len(file), headers + header_size(file)
    quality = f", {sum(decibels) / len(decibels):.2f} dB on average" if decibels else ""
    rates = f"{8 * size / pixels:.4g} bits per pixel, {8 * headers / pixels:.4g} of them headers"
    print(f"{options.out}: {len(jobs)} files of {size:,} bytes, {rates}{quality}")
