"""Several images in one file: one header and one stream of symbols, for small images, without random access.

Headers are paid once, names are deflated together, and the range coder ends once. An image can be read only after all
that stand before it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.compression.codec import Codec, Refinement, Symbols
from ldm.compression.container import MOST_NAMES, are_names, pack_solid, unpack_solid
from ldm.compression.step_search import Target
from ldm.entropy.range_coder import SymbolReader, SymbolWriter
from ldm.entropy.tables import steps_of
from ldm.errors import CodecError, DataError
from ldm.evaluation.metrics import psnr
from ldm.shapes import rounded


def compress_solid(codec: Codec, images: Sequence[Tensor], names: Sequence[str], target: Target) -> bytes:
    """The images as one file, with one step for all: at most a rate over them all, or at least a PSNR on average.

    A name is a path of this image relative to some folder, with `/` between its parts, and no two are the same.
    """
    if not are_names(names) or len("\n".join(names).encode()) > MOST_NAMES:
        raise DataError(
            f"names must be different paths inside a folder, in one line each, of {MOST_NAMES:,} bytes at most"
        )
    encoded = list(codec.encoded(images))
    pixels = sum(image[0].numel() for image in images)

    def symbols(step: int) -> list[Symbols]:
        return [
            Symbols(codec.header((image.shape[1], image.shape[2]), step), codec.quantized(latent, step))
            for image, latent in encoded
        ]

    def file(step: int) -> bytes:
        writer, found = SymbolWriter(), symbols(step)
        for each in found:
            codec.entropy_model.write(writer, each.values, steps_of(step, codec.ratios))
        return pack_solid([each.header for each in found], names, writer.finish())

    def decibels(step: int) -> float:
        pairs = zip(encoded, codec.images(symbols(step)), strict=True)
        each = [psnr(image[None].float(), rounded(decoded)[None]) for (image, _), decoded in pairs]
        return float(torch.cat(each).mean())

    return file(target.chosen(lambda step: 8 * len(file(step)) / pixels, decibels))


def solid_symbols(codec: Codec, file: bytes) -> Iterator[tuple[str, Symbols]]:
    """Name and symbols of each image in turn; CodecError at the first, or once all are read, if the file is damaged."""
    headers, names, payload = unpack_solid(file)
    shapes, reader = codec.shapes(headers, payload), SymbolReader(payload)
    for name, header, shape in zip(names, headers, shapes, strict=True):
        yield name, Symbols(header, codec.entropy_model.read(reader, shape, steps_of(header.step, codec.ratios)))
    reader.check_end()


def decompress_solid(codec: Codec, file: bytes, refine: Refinement | None = None) -> dict[str, Tensor]:
    """Each image by its name, in [-1, 1]; CodecError for a file that is not of this codec, or damaged anywhere."""
    found = dict(solid_symbols(codec, file))
    return dict(zip(found, codec.images(list(found.values()), refine), strict=True))


def verify_solid(codec: Codec, images: Sequence[Tensor], file: bytes) -> list[Tensor]:
    """The images of a file that was just made of `images`; CodecError if its symbols are not those of the images."""
    decoded = [symbols for _, symbols in solid_symbols(codec, file)]
    for (_, latent), found in zip(codec.encoded(images), decoded, strict=True):
        if not np.array_equal(found.values, codec.quantized(latent, found.header.step)):
            raise CodecError("it does not decode to the symbols that were coded")
    return codec.images(decoded)
