"""Benchmark of a fitted codec: speed beside JPEG 2000 and CompressAI, entropy models, threads, float64.

    python benchmarks/codec.py CODEC IMAGE... [--size 256] [--step 0.5] [--path FOLDER]

The middle SIZE x SIZE pixels of each image are compressed. Printed are: megapixels per CPU second, with one thread, of
this codec, of Pillow's JPEG 2000 at the nearest rate, and of CompressAI's factorized prior as it comes, untrained, of
128 and 192 channels, if `import compressai` works with FOLDER on the path; bits of the same symbols with tables of the
kernel estimate and with those of a mixture of three logistic distributions, both fitted to one half of the images and
measured on the other; whether one, two and four threads decode the same symbols; and how far apart the pixels are of a
decoder in float32 and in float64, which bounds what another machine's order of sums can do.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm import Codec
from ldm.compression.classical import CLASSICAL_CODECS
from ldm.compression.files import read_image
from ldm.entropy.config import EntropyModelConfig
from ldm.entropy.distributions import REACH, joined, smoothed
from ldm.entropy.logistic_mixture import LogisticMixture
from ldm.entropy.model import EntropyModel
from ldm.entropy.tables import MASS, POSITIONS, CumulativeTables, steps_of
from ldm.shapes import Images, to_uint8

MIXTURE_STEPS = 1500


def cpu_seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """The CPU seconds of the second of two calls, and what it returns."""
    action()
    begun = time.process_time()
    found = action()
    return time.process_time() - begun, found


def speeds(codec: Codec, images: Sequence[Tensor], step: float) -> None:
    """Megapixels per CPU second."""
    millions = sum(image[0].numel() for image in images) / 1e6
    encoding, files = cpu_seconds(lambda: codec.compress(images, step=step))
    decoding, _ = cpu_seconds(lambda: codec.decompress(files))
    rate = 8 * sum(map(len, files)) / (1e6 * millions)
    print(f"ldm: {rate:.3f} bpp, {millions / encoding:.3f} MP/s compress, {millions / decoding:.3f} MP/s decompress")
    network, _ = cpu_seconds(lambda: [codec.latents(image[None]) for image in images])
    print(f"  of which the encoder network takes {network / encoding:.0%}")
    classical, pixels = CLASSICAL_CODECS["JPEG 2000"], [to_uint8(image) for image in images]
    sizes = {value: sum(len(classical.file(image, value)) for image in pixels) for value in classical.values}
    value = min(sizes, key=lambda each: abs(sizes[each] - sum(map(len, files))))
    encoding, files = cpu_seconds(lambda: [classical.file(image, value) for image in pixels])
    decoding, _ = cpu_seconds(lambda: [classical.image(file, len(pixels[0])) for file in files])
    rate = 8 * sum(map(len, files)) / (1e6 * millions)
    print(f"JPEG 2000: {rate:.3f} bpp, {millions / encoding:.2f} MP/s, {millions / decoding:.2f} MP/s")
    compressai_speed(images, millions)


def compressai_speed(images: Sequence[Tensor], millions: float) -> None:
    """The same of CompressAI's factorized prior."""
    try:
        from compressai.models import FactorizedPrior
    except ImportError as error:
        print(f"CompressAI: skipped ({error})")
        return
    model = FactorizedPrior(128, 192).eval()
    model.update()

    def compressed() -> list[Any]:
        with torch.no_grad():
            return [model.compress((image.expand(3, -1, -1)[None] + 1) / 2) for image in images]

    encoding, files = cpu_seconds(compressed)
    with torch.no_grad():
        decoding, _ = cpu_seconds(lambda: [model.decompress(each["strings"], each["shape"]) for each in files])
    print(f"CompressAI, factorized prior: {millions / encoding:.3f} MP/s, {millions / decoding:.3f} MP/s")


def entropy_models(codec: Codec, images: Sequence[Tensor], step: float) -> None:
    """Bits per pixel of one half of the images, by tables fitted to the other half's latents, without context."""
    latents = [codec.latents(image[None])[0] for image in images]
    half, positions = len(latents) // 2, round(step * POSITIONS)
    values = torch.cat([each.flatten(1) for each in latents[:half]], 1)
    integers = (values.double() * POSITIONS).round().long().numpy()
    tables = {
        "kernel": joined([smoothed(each, float(POSITIONS)) for each in integers]),
        "mixture of 3 logistic distributions": mixture_tables(values),
    }
    pixels = sum(image[0].numel() for image in images[half:])
    for name, found in tables.items():
        model = EntropyModel(EntropyModelConfig(kind="factorized"), len(values), found)
        steps = steps_of(positions, codec.ratios)
        bits = sum(model.bits(codec.quantized(latent, positions), steps) for latent in latents[half:])
        print(f"{name}: {bits / pixels:.4f} bpp without context")
    bits = sum(codec.bits(codec.quantized(latent, positions), positions) for latent in latents[half:])
    print(f"{codec.entropy_model.config.kind} of the codec: {bits / pixels:.4f} bpp")


def mixture_tables(values: Tensor) -> CumulativeTables:
    """The tables of a mixture for each channel, fitted by the likelihood of values, channels x count."""
    mixture = LogisticMixture(len(values))
    mixture.initialize(values.mean(1), values.std(1))
    optimizer = torch.optim.Adam(mixture.parameters(), 1e-2)
    cells, rng = torch.full((len(values), 1, 1), 1 / 16), torch.Generator().manual_seed(0)
    for _ in range(MIXTURE_STEPS):
        chosen = values[:, torch.randint(values.shape[1], (2048,), generator=rng)]
        optimizer.zero_grad()
        mixture.nats(chosen[None, :, None], cells).mean().backward()
        optimizer.step()
    places = torch.arange(-REACH * POSITIONS, REACH * POSITIONS + 1, dtype=torch.float64) - 0.5
    with torch.no_grad():
        cumulative = mixture.double().cumulative((places / POSITIONS).expand(len(values), -1))
    return joined(list(np.rint(MASS * cumulative.numpy()).astype(np.int64)))


def exactness(codec: Codec, images: Images, step: float) -> None:
    """Symbols by several numbers of threads, and pixels in float32 and float64."""
    files = codec.compress(list(images), step=step)
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append([codec.symbols(file) for file in files])
    torch.set_num_threads(1)
    same = all((a.values == b.values).all() for other in found[1:] for a, b in zip(found[0], other, strict=True))
    print(f"symbols with 1, 2 and 4 threads: {'equal' if same else 'DIFFERENT'}")
    latents = codec.dequantized(found[0])
    exact = copy.deepcopy(codec.autoencoder).double()
    with torch.no_grad():
        single = codec.autoencoder.decode(latents).clamp(-1, 1)
        double = exact.decode(latents.double()).clamp(-1, 1)
    levels = (to_uint8(single).int() - to_uint8(double).int()).abs()
    largest, differing = float((single - double).abs().max()) * 127.5, float((levels > 0).double().mean())
    print(f"float32 less float64: at most {largest:.2g} levels of 255 before rounding, {levels.max()} after, ", end="")
    print(f"{differing:.2%} of values differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--path", help="a folder to import compressai from")
    options = parser.parse_args()
    if options.path:
        sys.path.append(options.path)
    torch.set_num_threads(1)
    codec = Codec.load(options.codec)
    images = [
        middle(read_image(path, codec.autoencoder.network.image_channels), options.size) for path in options.images
    ]
    speeds(codec, images, options.step)
    entropy_models(codec, images, options.step)
    exactness(codec, torch.stack(images), options.step)


def middle(image: Tensor, size: int) -> Tensor:
    """The middle square of an image that is no smaller."""
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size]


if __name__ == "__main__":
    main()
