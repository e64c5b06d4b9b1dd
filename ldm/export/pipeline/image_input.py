"""Images and masks as diffusers' users give them: pictures of Pillow, arrays, tensors, or lists of these."""

from collections.abc import Sequence
from typing import Any

from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from torch import Tensor

from ldm.errors import RequestError
from ldm.pictures import MODES
from ldm.shapes import Images


def images_given(given: Any, shape: Sequence[int]) -> Images:
    """A batch in [-1, 1] of `shape`, channels x height x width.

    Pictures are scaled and cropped to it, arrays and tensors, in [0, 1], must be of it.
    """
    channels, height, width = shape
    if pictures := pictures_in(given):
        mode = MODES.get(channels, "RGB")
        opaque = [laid_on_white(each) if channels in (1, 3) else each for each in pictures]
        given = [ImageOps.fit(each.convert(mode), (width, height), Image.Resampling.BICUBIC) for each in opaque]
    processor = VaeImageProcessor(do_resize=False)
    images = batch_of("image", processor.preprocess(given).float(), (channels, height, width))
    if not bool((images.abs() <= 1.01).all()):  # bytes, most often
        raise RequestError("image", "holds numbers outside [0, 1], for arrays and tensors: divide bytes by 255")
    return images


def hidden_given(given: Any, shape: Sequence[int]) -> Tensor:
    """A batch of booleans, x 1 x height x width, true where a mask is white; pictures are scaled and cropped."""
    _, height, width = shape
    if pictures := pictures_in(given):
        given = [ImageOps.fit(each.convert("L"), (width, height), Image.Resampling.NEAREST) for each in pictures]
    options = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    processor = VaeImageProcessor(do_resize=False, **options)
    return batch_of("mask_image", processor.preprocess(given).float(), (1, height, width)) >= 0.5


def pictures_in(given: Any) -> list[Image.Image]:
    """The pictures of Pillow, or none if there is anything else."""
    listed = list(given) if isinstance(given, list | tuple) else [given]
    return listed if all(isinstance(each, Image.Image) for each in listed) else []


def laid_on_white(picture: Image.Image) -> Image.Image:
    """A picture without transparency."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def batch_of(name: str, batch: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The same; RequestError if the images in it are not of a shape."""
    if tuple(batch.shape[1:]) != shape:
        raise RequestError(name, f"of shape {list(batch.shape)} should be of {['batch', *shape]}")
    return batch
