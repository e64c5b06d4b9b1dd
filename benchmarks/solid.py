"""Many small images in one file, beside the classical codecs on one contact sheet of the same images.

    python benchmarks/solid.py CODEC RUN [--images 64] [--steps 0.1875,0.25,0.375,0.5,0.75,1]

takes held-out images of RUN, the run of train_vae.py that CODEC is of. `ldm compress --solid` writes them into one file
at each step; the classical codecs get them side by side in one picture, so that nobody pays for more than one header.
Printed are bits per pixel of whole files and without headers, the mean PSNR of the images, and BD-rates against JPEG.
"""

import argparse
import math
from collections.abc import Sequence

import torch

from ldm import Codec
from ldm.compression.classical import CLASSICAL_CODECS, ClassicalCodec
from ldm.compression.container import header_size
from ldm.compression.rate_distortion import Curve, ImageMeter, table
from ldm.compression.solid import compress_solid, decompress_solid
from ldm.compression.step_search import Target
from ldm.data.datasets import open_dataset
from ldm.script_configs import vae_data_of
from ldm.shapes import Images, rounded, to_float, to_uint8


def solid_curve(codec: Codec, meter: ImageMeter, steps: Sequence[float]) -> Curve:
    """All images in one file, at each step."""
    names, points = [f"{number}.png" for number in range(len(meter.images))], []
    for step in sorted(steps, reverse=True):
        file = compress_solid(codec, list(meter.images), names, Target(step=step))
        decoded = rounded(torch.stack([*decompress_solid(codec, file).values()]))
        points.append(meter.point(step, [len(file)], header_size(file), decoded))
    return Curve("ldm --solid", points)


def sheet_curve(name: str, codec: ClassicalCodec, meter: ImageMeter) -> Curve:
    """All images in one picture, at each setting."""
    columns = math.isqrt(len(meter.images))
    sheet, points = to_uint8(contact_sheet(meter.images, columns)), []
    for value in codec.values:
        file = codec.file(sheet, value)
        decoded = cut(to_float(codec.image(file, len(sheet))), columns, meter.images.shape[2:])
        points.append(meter.point(value, [len(file)], len(file) - codec.payload(file), decoded))
    return Curve(name, points)


def contact_sheet(images: Images, columns: int) -> torch.Tensor:
    """A square number of images, row by row, in one."""
    return torch.cat([torch.cat(list(row), 2) for row in images.split(columns)], 1)


def cut(sheet: torch.Tensor, columns: int, sides: Sequence[int]) -> Images:
    """The images of a contact sheet."""
    height, width = sides
    rows = sheet.unfold(1, height, height).unfold(2, width, width)  # channels x rows x columns x height x width
    return rows.flatten(1, 2).transpose(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec")
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=64, help="a square number")
    parser.add_argument("--steps", default="0.1875,0.25,0.375,0.5,0.75,1")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = vae_data_of(options.run)
    assert data is not None, f"{options.run} is not a run of train_vae.py"
    images = open_dataset(data).split()[1].evenly_spaced(options.images).images()
    meter = ImageMeter(images[: math.isqrt(len(images)) ** 2])
    curves = [sheet_curve(name, codec, meter) for name, codec in CLASSICAL_CODECS.items() if codec.is_there]
    curves.append(solid_curve(Codec.load(options.codec), meter, [float(each) for each in options.steps.split(",")]))
    print(table(curves))


if __name__ == "__main__":
    main()
