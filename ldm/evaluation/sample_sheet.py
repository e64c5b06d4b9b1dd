"""A sheet of real images, of what an autoencoder makes of them, and of samples; and all of them as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.errors import ConfigError
from ldm.evaluation.generation import RealImages
from ldm.evaluation.image_sets import ImageSet
from ldm.evaluation.report_files import MARK
from ldm.evaluation.saved_images import file_names
from ldm.pictures import MODES, grid, picture, save_png, upscaled
from ldm.shapes import to_float

COLUMNS, ROWS = 12, 2
CAPTION = 16  # pixels of its height


def draw_sheet(real: RealImages, samples: ImageSet, path: Path) -> None:
    """Save two rows of each set under its name; reconstructions are those of the held-out images above them."""
    sets = {"held-out images": (real.held_out, ROWS)}
    if "reconstructions" in real.others:
        sets["the same through the autoencoder"] = real.others["reconstructions"], ROWS
    sets["samples"] = samples, 2 * ROWS
    if "gaussian" in real.others:
        sets["samples of the Gaussian of the latents"] = real.others["gaussian"], ROWS
    shown = {name: images.evenly_spaced(COLUMNS * rows).pixels for name, (images, rows) in sets.items()}
    save_png(captioned(shown), path, MARK)


def captioned(sets: Mapping[str, Tensor]) -> Image.Image:
    """Sets of images, uint8, one below the other in rows of twelve, each below its name."""
    blocks = [block(pixels, caption) for caption, pixels in sets.items()]
    width, height = max(each.width for each in blocks), sum(each.height for each in blocks)
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for each in blocks:
        sheet.paste(each, (0, top))
        top += each.height
    return sheet


def block(pixels: Tensor, caption: str) -> Image.Image:
    """Rows of images below a caption."""
    tiles = upscaled(grid(to_float(pixels), COLUMNS).convert("RGB"))
    found = Image.new("RGB", (tiles.width, tiles.height + CAPTION), "white")
    found.paste(tiles, (0, CAPTION))
    ImageDraw.Draw(found).text((3, 1), caption, fill="black", font=ImageFont.load_default(CAPTION - 4))
    return found


def check_savable(channels: int) -> None:
    """Raise ConfigError for images that PNG files cannot hold."""
    if channels not in MODES:
        raise ConfigError(
            f"--save-images writes PNG files, of 1 to {max(MODES)} channels, and these images have {channels}: leave it"
            " out"
        )


def save_image_sets(real: RealImages, samples: ImageSet, folder: Path) -> None:
    """Write `samples/`, `training/` and `held-out/` with PNG files, of 8 bits, as they were measured."""
    names, classes = real.data.training.dataset.names, real.data.classes
    numbered = [f"{number:05d}" for number in range(len(samples))]
    if classes and len(samples.labels):
        numbered = [f"{stem}-{classes[label]}" for stem, label in zip(numbered, samples.labels.tolist(), strict=True)]
    save(samples, file_names(numbered), folder / "samples")
    for images, name in ((real.training, "training"), (real.held_out, "held-out")):
        save(images, file_names([names[index] for index in images.indices]), folder / name)


def save(images: ImageSet, names: Sequence[str], folder: Path) -> None:
    """Write one set."""
    for pixels, name in zip(images.pixels, names, strict=True):
        save_png(picture(pixels), folder / f"{name}.png")
