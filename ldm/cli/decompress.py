"""`ldm decompress`: the images of compressed files."""

from pathlib import Path

from ldm.config.command_line import Parser


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm decompress", __doc__ or "")
    add = found.add_argument
    add("codec", metavar="CODEC", type=Path, help="the codec that the files were written with")
    add("files", metavar="FILES", type=Path, nargs="+", help="what ldm compress wrote: files, and folders of them")
    add("--out", metavar="OUT", type=Path, required=True, help="the folder of the images, .png each")
    help = "a finished run of train_diffusion.py on the same autoencoder: its denoiser moves latents within their cells"
    add("--denoise", metavar="RUN", help=help)
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (a GPU if there is one)")
    return found


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    options = parser().read(arguments)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from tqdm import tqdm

    from ldm.compression.codec import Codec
    from ldm.compression.denoising import DenoisingRefinement
    from ldm.compression.files import check_writes_pictures, jobs_of, read_file
    from ldm.errors import CodecError
    from ldm.pictures import picture, save_png
    from ldm.pipeline import LatentDiffusion
    from ldm.shapes import to_uint8
    from ldm.terminal import writing
    from ldm.training.devices import choose_device

    jobs = jobs_of(options.files, options.out, compresses=False)
    device = choose_device(options.device)
    codec = Codec.load(options.codec).to(device)
    check_writes_pictures(codec.autoencoder.network.image_channels)
    refine = None
    if options.denoise is not None:
        refine = DenoisingRefinement.of(codec, LatentDiffusion.load(options.denoise, device))
    for job in tqdm(jobs, desc="decompressing", unit="image", delay=1):
        try:
            (image,) = codec.decompress([read_file(job.source)], refine)
        except CodecError as error:
            raise CodecError(f"{job.source}: {error}") from error
        with writing(options.out):
            save_png(picture(to_uint8(image)), job.target)
    print(f"{options.out}: {len(jobs)} images")
