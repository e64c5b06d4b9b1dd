"""Options of sample.py for what is drawn: which images, from which images, in which order; and what goes together."""

import argparse
import re
from typing import Any

from ldm.editing.config import RESAMPLINGS, STRENGTH
from ldm.errors import ConfigError

MODES = ("image", "variations", "interpolate")
GRID, FRAMES = 16, 8  # how many images, and how many on the way between two
MOST_SEEDS = 1_000_000
LARGEST_NUMBER = 2**63 - 1  # of an image


def add_editing_options(parser: Any) -> None:
    """The flags, for a parser or a group of one."""
    add = parser.add_argument
    add(
        "--num",
        type=int,
        help=f"how many images ({GRID}, or one for each condition if there are more; {FRAMES} with --interpolate, with"
        " --image one for each condition)",
    )
    add("--seeds", metavar="LIST", help="the images with these numbers, as 0-63 or 3,7,20-29, in place of --num")
    add("--size", metavar="HxW", help="pixels of images of another size, where the networks allow it (as trained)")
    add("--image", metavar="FILE", help="start from this image (img2img)")
    strength = f"share of the steps left to --image, or distance of --variations, 0 to 1 ({STRENGTH}; 1 with --mask)"
    add("--strength", metavar="S", type=float, help=strength)
    add("--mask", metavar="FILE", help="draw anew of --image what is white in this one, keep the rest (inpainting)")
    add(
        "--resamplings",
        metavar="N",
        type=int,
        help=f"how often few steps of --mask are gone, as in RePaint ({RESAMPLINGS})",
    )
    add("--variations", metavar="FILE", help="images near this one, by mixing its noise with others")
    ends = "the way between two seeds, images (files) or conditions (class:NAME, prompt:TEXT, angle:90)"
    add("--interpolate", nargs=2, metavar=("A", "B"), help=ends)
    add("--strip", action="store_true", help="how one image forms, step by step, or the way of --interpolate, in a row")
    add("--gif", action="store_true", help="the same as an animation; --out is a .gif")


def check_modes(options: argparse.Namespace) -> None:
    """Raise ConfigError for flags that do not go together."""
    given = [f"--{name}" for name in MODES if getattr(options, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are two ways to draw: give one of them")
    if options.mask is not None and options.image is None:
        raise ConfigError("--mask says what is drawn anew of an --image, and there is none")
    if options.resamplings is not None and options.mask is None:
        raise ConfigError("--resamplings is of --mask: leave it out")
    if options.resamplings is not None and options.resamplings < 1:
        raise ConfigError(f"--resamplings {options.resamplings} must be at least 1")
    if options.strength is not None and options.image is None and options.variations is None:
        raise ConfigError("--strength is of --image and --variations: leave it out")
    if options.strength is not None and not 0 < options.strength <= 1:
        raise ConfigError(f"--strength {options.strength:g} must be above 0 and at most 1")
    if options.num is not None and options.seeds is not None:
        raise ConfigError("--num and --seeds both say how many images: give one of them")
    check_path(options)


def check_path(options: argparse.Namespace) -> None:
    """Raise ConfigError for a strip or an animation of what is no way."""
    if options.strip and options.gif:
        raise ConfigError("--strip and --gif are two pictures of one way: give one of them")
    flag = "--strip" if options.strip else "--gif"
    is_gif = options.out.suffix.lower() == ".gif"
    if options.gif != is_gif and (options.gif or not options.out.is_dir()):
        raise ConfigError(f"--out {options.out}: --gif writes a .gif, and nothing else does")
    if not (options.strip or options.gif):
        return
    if options.image is not None or options.variations is not None:
        raise ConfigError(f"{flag} shows how one image forms from noise, or --interpolate: leave the other flags out")
    if options.interpolate is None and (options.num is not None or len(numbers_of(options.seeds or "0")) != 1):
        raise ConfigError(f"{flag} is of one image: say which with --seeds N")


def numbers_of(text: str) -> list[int]:
    """The numbers in a list as 0-63 or 3,7,20-29, or ConfigError."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if found is None:
            raise ConfigError(f"--seeds {text} is not a list of numbers, as 0-63 or 3,7,20-29")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last - first >= MOST_SEEDS:
            raise ConfigError(f"--seeds {text}: {part.strip()} must go from a number up, and at most a million on")
        check_number("--seeds", last)
        numbers += range(first, last + 1)
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--seeds {text} names a number twice")
    return numbers


def check_number(flag: str, number: int) -> None:
    """Raise ConfigError for an image's number that is too large for a tensor."""
    if number > LARGEST_NUMBER:
        raise ConfigError(f"{flag} {number} is no image: their numbers end at {LARGEST_NUMBER}")
