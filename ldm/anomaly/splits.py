"""Parts of the normal images: for what is fitted, for what is standardized, and for the threshold.

The guarantee of the threshold needs calibration images that are exchangeable with new normal ones: nothing before may
have seen them. So they are none that the model was trained on, none that a density was fitted to, and none that the
scores were put on a common scale with; and images of one group never lie in two parts.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from ldm.checkpoint import read_json
from ldm.data.datasets import Subset
from ldm.data.split import split_groups
from ldm.errors import DataError
from ldm.script_configs import data_of_run

FITTING = 0.5  # share of the images that densities and principal components are fitted to
STANDARDIZATION = 1 / 3  # of the others; the threshold has the rest
FEWEST = 8  # images that a scale is taken from


@dataclass(frozen=True)
class NormalParts:
    """The normal images by what they are for."""

    fitting: Subset  # what is fitted and may know these images from others afterwards
    standardization: Subset  # means, variances and tails of scores
    calibration: Subset  # the threshold


def split_normal(normal: Subset, source: str, *, fits: bool, seed: int) -> NormalParts:
    """The parts, by group, in an order that depends on the seed and the names of the groups alone.

    Images that the run in `source` was trained on are fitted to, and nothing else, where that is needed. `fits` says
    whether it is; if not, the other images are calibrated with.
    """
    seen = trained_on(source, normal)
    fitting = Subset(normal.dataset, [index for index in normal.indices if index in seen])
    others = Subset(normal.dataset, [index for index in normal.indices if index not in seen])
    if not len(others):
        raise DataError(
            f"{source} was trained on all {len(normal)} normal images, and a threshold from these would be too low:"
            " give others with --normal, or train with data.held_out"
        )
    if fits and not len(fitting):
        others, fitting = divided(others, FITTING, seed, "fitting")
    if len(others) <= FEWEST:
        raise DataError(
            f"{len(others)} of {len(normal)} normal images are left to standardize scores with, which takes {FEWEST},"
            " and to set the threshold: give more that the model was not trained on"
        )
    calibration, standardization = divided(others, max(STANDARDIZATION, FEWEST / len(others)), seed, "standardization")
    return NormalParts(fitting, standardization, calibration)


def divided(images: Subset, fraction: float, seed: int, purpose: str) -> tuple[Subset, Subset]:
    """The images in two, the second part being about `fraction` of them; no group is divided."""
    groups = [f"{purpose}/{images.dataset.groups[index]}" for index in images.indices]
    parts = split_groups(groups, fraction, seed)
    first, second = (Subset(images.dataset, [images.indices[place] for place in part]) for part in parts)
    return first, second


def trained_on(source: str, images: Subset) -> set[int]:
    """Which of the images, by index, the run in `source` was trained on, as far as its folder tells.

    It does where these are its own data, read at the same size. Of other data there is no telling.
    """
    folder = Path(source)
    if folder.name == "vae" and not (folder / "environment.json").is_file():
        folder = folder.parent
    if not (folder / "environment.json").is_file() or not (folder / "config.yaml").is_file():
        return set()
    environment, data = read_json(folder / "environment.json"), data_of_run(str(folder))
    if data is None or images.dataset.fingerprint not in (environment.get("images"), environment.get("data")):
        return set()
    config = replace(images.dataset.config, held_out=data.held_out, split_seed=data.split_seed)
    training, _ = replace(images.dataset, config=config).split()
    return set(training.indices)
