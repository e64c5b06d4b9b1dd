"""`ldm compress`: images to files of a codec."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.options import check_new
from ldm.config.command_line import Parser
from ldm.errors import CodecError, ConfigError, DataError, RequestError
from ldm.terminal import amount, writing

if TYPE_CHECKING:
    from ldm.compression.codec import Codec
    from ldm.compression.files import Job
    from ldm.compression.step_search import Target


@dataclass
class Totals:
    """What was written."""

    pixels: int = 0
    size: int = 0  # bytes
    headers: int = 0  # bytes of these
    decibels: list[float] = field(default_factory=list)  # of each image, where they were verified

    def add(self, pixels: int, file: bytes) -> None:
        """Count a file."""
        from ldm.compression.container import header_size

        self.pixels += pixels
        self.size += len(file)
        self.headers += header_size(file)

    def __str__(self) -> str:
        quality = f", {sum(self.decibels) / len(self.decibels):.2f} dB on average" if self.decibels else ""
        rates = [8 * each / self.pixels for each in (self.size, self.headers)]
        return f"{self.size:,} bytes, {rates[0]:.4g} bits per pixel, {rates[1]:.4g} of them headers{quality}"


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm compress", __doc__ or "")
    add = found.add_argument
    add("codec", metavar="CODEC", type=Path, help="what ldm codec fit wrote")
    add("images", metavar="IMAGES", type=Path, nargs="+", help="images, and folders of them, of any size")
    add(
        "--out", metavar="OUT", type=Path, required=True, help="the folder of the files, .ldmc each; of --solid, a file"
    )
    add("--rate", metavar="BPP", type=float, help="at most so many bits per pixel in each file, its header counted")
    add("--psnr", metavar="DB", type=float, help="at least so many dB of each image, as few bits as that takes")
    add("--step", metavar="S", type=float, help="the step of quantization, in standard deviations of the latent")
    add("--solid", action="store_true", help="all images in one file; --rate and --psnr are of all together")
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
    if options.solid:
        check_new("--out", options.out)
        if options.out.suffix != ".ldmc":
            raise ConfigError(f"--out {options.out} is the one file of --solid, and must end in .ldmc")
    return options


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    options = parsed(arguments)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.compression.codec import Codec
    from ldm.compression.files import Job, jobs_of, sources_of, target_names
    from ldm.compression.step_search import target_of
    from ldm.training.devices import choose_device

    try:
        target = target_of(options.step, options.rate, options.psnr)
    except RequestError as error:
        raise error.as_flag() from error
    if options.solid:
        found = sources_of(options.images, compresses=True)
        names = target_names([name for _, name in found], "")
        jobs = [Job(source, Path(name)) for (source, _), name in zip(found, names, strict=True)]
    else:
        jobs = jobs_of(options.images, options.out, compresses=True)
    codec = Codec.load(options.codec).to(choose_device(options.device))
    write = write_solid if options.solid else write_files
    totals = write(options, jobs, codec, target)
    what = f"{amount(len(jobs), 'image')} in one file" if options.solid else amount(len(jobs), "file")
    print(f"{options.out}: {what} of {totals}")


def write_files(options: argparse.Namespace, jobs: "list[Job]", codec: "Codec", target: "Target") -> Totals:
    """A file for each image; those that cannot be read, or have the rate or the PSNR, are named after all others."""
    from tqdm import tqdm

    from ldm.checkpoint import write_atomically
    from ldm.compression.files import read_image
    from ldm.evaluation.metrics import psnr
    from ldm.shapes import rounded

    totals, refused, unreadable = Totals(), list[RequestError](), list[str]()
    for job in tqdm(jobs, desc="compressing", unit="image", delay=1):
        try:
            image = read_image(job.source, codec.autoencoder.network.image_channels)
        except DataError as error:
            unreadable.append(str(error))
            continue
        try:
            (file,) = codec.compressed([image], target)
        except RequestError as error:
            refused.append(RequestError(error.argument, f"{error.problem} ({job.source})"))
            continue
        if options.verify:
            try:
                decoded = codec.verify(image, file)
            except CodecError as error:
                raise CodecError(f"{job.source}: {error}") from error
            totals.decibels.append(float(psnr(image[None], rounded(decoded)[None])))
        with writing(options.out):
            job.target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(job.target, file)
        totals.add(image[0].numel(), file)
    if (refused or unreadable) and totals.size:
        print(f"{options.out}: {amount(len(jobs) - len(refused) - len(unreadable), 'file')} of {totals}")
    if unreadable:
        problems = "; ".join([*unreadable, *map(str, refused)])
        raise DataError(f"{problems}: {len(unreadable) + len(refused)} of {len(jobs)} images have no file")
    if refused:
        raise out_of_reach(refused, len(jobs)).as_flag()
    return totals


def out_of_reach(refused: list[RequestError], images: int) -> RequestError:
    """What is said of the images that cannot have what was asked for: each one's range, and how many they are."""
    problem = "; ".join(error.problem for error in refused)
    if images > 1:
        problem += f": {len(refused)} of {images} images"
        problem += ", and the others are written" if len(refused) < images else ""
    return RequestError(refused[0].argument, problem)


def write_solid(options: argparse.Namespace, jobs: "list[Job]", codec: "Codec", target: "Target") -> Totals:
    """One file for all images."""
    from tqdm import tqdm

    from ldm.checkpoint import write_atomically
    from ldm.compression.files import read_image
    from ldm.compression.solid import compress_solid, verify_solid
    from ldm.evaluation.metrics import psnr
    from ldm.shapes import rounded

    channels = codec.autoencoder.network.image_channels
    images = [read_image(job.source, channels) for job in tqdm(jobs, desc="reading", unit="image", delay=1)]
    try:
        file = compress_solid(codec, images, [job.target.as_posix() for job in jobs], target)
    except RequestError as error:
        raise error.as_flag() from error
    totals = Totals()
    totals.add(sum(image[0].numel() for image in images), file)
    if options.verify:
        pairs = zip(images, verify_solid(codec, images, file), strict=True)
        totals.decibels += [float(psnr(image[None], rounded(decoded)[None])) for image, decoded in pairs]
    with writing(options.out):
        write_atomically(options.out, file)
    return totals
