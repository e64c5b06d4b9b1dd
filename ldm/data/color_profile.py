"""Color profiles (ICC): pixels that a file says to be of another color space are converted to sRGB."""

import io
import struct
from functools import lru_cache
from typing import IO

import numpy as np
from PIL import Image, ImageCms

# What a profile of an image of this mode describes. Modes of more than 8 bits are missing, and those without one.
DESCRIBED = {"1": "L", "L": "L", "LA": "L", "La": "L", "P": "RGB", "PA": "RGB", "CMYK": "CMYK", "YCbCr": "RGB"}
DESCRIBED |= dict.fromkeys(("RGB", "RGBA", "RGBa", "RGBX"), "RGB")
STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # the same with alpha divided out
SAME = 1  # levels of 256 that a color of an sRGB profile may move by, as its curve is a table


def to_srgb(image: Image.Image) -> Image.Image:
    """The image as RGB or RGBA of the color space sRGB; the image itself where its profile is none or sRGB.

    Conversion is relative colorimetric with black point compensation, at 8 bits. A profile that is broken or of
    another kind than the pixels is ignored, and deeper pixels are left as they are.
    """
    profile, described = image.info.get("icc_profile"), DESCRIBED.get(image.mode)
    transform = srgb_transform(profile, described) if isinstance(profile, bytes) and profile and described else None
    if transform is None:
        return image
    image = image.convert(STRAIGHT.get(image.mode, image.mode))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = ImageCms.applyTransform(image.convert(described), transform)
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def jpeg2000_profile(file: IO[bytes]) -> bytes | None:
    """The profile in the header of a JP2 file, which Pillow does not give; None if there is none."""
    place = file.seek(0)
    while len(head := file.read(8)) == 8:
        size, box = struct.unpack(">I4s", head)
        if box == b"colr" and file.read(3)[:1] == b"\2":  # followed by precedence and approximation, and the profile
            return file.read(size - 11)
        if size < 8 or box == b"jp2c":  # the pixels
            return None
        place = file.seek(place + (8 if box == b"jp2h" else size))  # jp2h is entered, all others are passed over
    return None


@lru_cache(maxsize=16)  # a folder of photographs has one profile or a few, and building a transform takes a while
def srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What converts pixels of `mode` (L, RGB or CMYK) to sRGB; None for a profile that is sRGB or cannot be used."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform if mode == "CMYK" or _changes_colors(transform, mode) else None


def _changes_colors(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a color of a grid, or a gray, moves by more than rounding does."""
    levels = np.linspace(0, 255, 6).round()
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    grays = np.repeat(np.arange(256)[:, None], 3, axis=1)
    colors = (grays if mode == "L" else np.concatenate([grid, grays])).astype(np.uint8)[None]
    converted = ImageCms.applyTransform(Image.fromarray(colors).convert(mode), transform)
    return int(np.abs(np.asarray(converted).astype(int) - colors).max()) > SAME
