"""Memorization: how many samples are copies of training images, and whether they are more than by chance.

The nearest training image of each sample is found in several spaces: pixels, latents, features. The sample is a copy
of it if the nearest training image of another group is more than three times as far away (Yoon et al. 2023, "Diffusion
Probabilistic Models Generalize when They Fail to Memorize", with the second nearest of any group). Beside each figure
stands that of held-out images, which are no copies: theirs is what chance gives, and pictures that are alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.evaluation.neighbors import Neighbors, nearest_rows
from ldm.pictures import grid
from ldm.shapes import Images, to_float
from ldm.training.processes import Processes

COPY_RATIO = 1 / 3  # of the distances of the nearest training image and the nearest of another group: less is a copy
QUANTILE = 0.05  # of the held-out images' nearest distances: nearer is suspicious
FALSE_ALARMS = 1e-3  # how often samples that are like held-out images are flagged, over all spaces, at most
PAIRS = 12  # that are listed and drawn, the worst ones
MAX_PIXELS = 3 * 64 * 64  # numbers of an image that are compared
PART = 512  # training images whose rows are held at once


@dataclass(frozen=True, eq=False)
class Space:
    """Images as rows of numbers, whose distances count."""

    samples: Tensor
    held_out: Tensor
    training: Callable[
        [slice, bool], Tensor
    ]  # of some of the training images or, where it is true, their mirror images
    mirrored: bool  # whether mirror images were trained on

    @property
    def sides(self) -> tuple[bool, ...]:
        """The training images, and their mirror images if they were trained on."""
        return (False, True) if self.mirrored else (False,)


@dataclass(frozen=True, eq=False)
class Memorization:
    """The nearest training images of samples and of held-out images in each space."""

    names: Sequence[str]  # of the training images
    mirrored: bool  # whether their mirror images count too
    samples: Mapping[str, Neighbors]
    held_out: Mapping[str, Neighbors]  # of no images, where nothing is held out
    dimensions: Mapping[str, int]  # of each space

    def report(self) -> dict[str, Any]:
        """All figures, ready for JSON. `flagged` is None where there is nothing to compare with."""
        spaces = {name: self.space_report(name) for name in self.samples}
        values = [space["p_value"] for space in spaces.values() if space["p_value"] is not None]
        return {
            "flagged": min(values) * len(values) < FALSE_ALARMS if values else None,
            "protocol": {
                "training_images": len(self.names),
                "mirror_images": self.mirrored,
                "samples": len(next(iter(self.samples.values())).distances),
                "held_out_images": len(next(iter(self.held_out.values())).distances),
                "copy": "nearer than a third of the nearest training image of another group",
                "near": f"nearer than the {QUANTILE:g} quantile of the held-out images",
                "distance": "root mean square difference per number; pixels are in [-1, 1]",
                "flagged": "more copies than among held-out images: Fisher's exact test, one-sided, the p-value times"
                f" the number of spaces below {FALSE_ALARMS:g}",
            },
            "spaces": spaces,
        }

    def space_report(self, name: str) -> dict[str, Any]:
        """The figures of one space."""
        samples, held_out, scale = self.samples[name], self.held_out[name], self.dimensions[name] ** -0.5
        near = held_out.distances.quantile(QUANTILE).item() if len(held_out.distances) else None
        counts = [
            (int(is_copy(each).sum()), len(each.distances)) if has_other_groups(each) else None
            for each in (samples, held_out)
        ]
        return {
            **self.shares(name, samples, near),
            "copied_images": len(set((samples.places[is_copy(samples)] % len(self.names)).tolist())),
            "held_out": self.shares(name, held_out, near) if near is not None else None,
            "near_distance": None if near is None else scale * near,
            "p_value": fisher_exact(*counts[0], *counts[1]) if counts[0] and counts[1] else None,
            "pairs": [self.pair(name, sample) for sample in self.worst(name)],
        }

    def shares(self, name: str, neighbors: Neighbors, near: float | None) -> dict[str, float | None]:
        """What share of some images are copies, what share near, and how far the nearest training image is."""
        copies = is_copy(neighbors).double().mean().item() if has_other_groups(neighbors) else None
        return {
            "copies": copies,
            "near": None if near is None else (neighbors.distances < near).double().mean().item(),
            "median_distance": self.dimensions[name] ** -0.5 * neighbors.distances.median().item(),
        }

    def worst(self, name: str) -> list[int]:
        """The samples most like copies: of the smallest ratio, or else of the smallest distance."""
        neighbors = self.samples[name]
        ratios, distances = neighbors.ratios.nan_to_num(1.0).tolist(), neighbors.distances.tolist()
        return sorted(range(len(ratios)), key=lambda sample: (ratios[sample], distances[sample], sample))[:PAIRS]

    def pair(self, name: str, sample: int) -> dict[str, Any]:
        """A sample and its nearest training image."""
        neighbors = self.samples[name]
        place, ratio = int(neighbors.places[sample]), neighbors.ratios[sample].item()
        return {
            "sample": sample,
            "training_image": self.names[place % len(self.names)],
            "mirrored": place >= len(self.names),
            "distance": self.dimensions[name] ** -0.5 * neighbors.distances[sample].item(),
            "ratio": None if math.isnan(ratio) else ratio,
        }

    def sheet(self, samples: Tensor, training: Tensor) -> Image.Image:
        """The worst pairs of each space: a row of samples, and below them their nearest training images.

        Both are pictures, uint8, images x channels x height x width.
        """
        rows, white = [], torch.full_like(samples[0], 255)
        for name, neighbors in self.samples.items():
            chosen = self.worst(name)
            places = [int(neighbors.places[sample]) for sample in chosen]
            nearest = [training[place % len(self.names)] for place in places]
            nearest = [
                image.flip(-1) if place >= len(self.names) else image
                for place, image in zip(places, nearest, strict=True)
            ]
            for row in ([samples[sample] for sample in chosen], nearest):
                rows += row + [white] * (PAIRS - len(row))
        return grid(to_float(torch.stack(rows)), columns=PAIRS)


def find_neighbors(
    spaces: Mapping[str, Space], names: Sequence[str], groups: Tensor, processes: Processes
) -> Memorization:
    """Look for the nearest training image of every sample and held-out image; the same on every process.

    `names` and `groups` are those of the training images.
    """
    parts = [range(start, min(start + PART, len(names))) for start in range(0, len(names), PART)]
    jobs = [(name, mirrored, part) for name, space in spaces.items() for mirrored in space.sides for part in parts]

    def compare(number: int) -> Neighbors:
        name, mirrored, part = jobs[number]
        places, space = slice(part.start, part.stop), spaces[name]
        rows = space.training(places, mirrored)
        first = part.start + (len(names) if mirrored else 0)
        return nearest_rows(torch.cat([space.samples, space.held_out]), rows, groups[places], first=first)

    found: dict[str, Neighbors] = {}
    for (name, *_), neighbors in zip(jobs, processes.map(len(jobs), compare), strict=True):
        found[name] = found[name].joined(neighbors) if name in found else neighbors
    count = len(next(iter(spaces.values())).samples)
    return Memorization(
        names,
        any(space.mirrored for space in spaces.values()),
        {name: neighbors[:count] for name, neighbors in found.items()},
        {name: neighbors[count:] for name, neighbors in found.items()},
        {name: space.samples.shape[1] for name, space in spaces.items()},
    )


def pixel_rows(images: Images) -> Tensor:
    """The pixels of each image in a row; of large images the means over squares."""
    numbers = math.prod(images.shape[1:])
    side = math.ceil((numbers / MAX_PIXELS) ** 0.5) if numbers > MAX_PIXELS else 1
    return F.avg_pool2d(images, side, ceil_mode=True).flatten(1)


def is_copy(neighbors: Neighbors) -> Tensor:
    """Which of the queries are copies of their nearest row; none, where there are no two groups."""
    return neighbors.ratios < COPY_RATIO


def has_other_groups(neighbors: Neighbors) -> bool:
    """Whether there are queries, and two groups of rows or more."""
    return len(neighbors.seconds) > 0 and bool(neighbors.seconds.isfinite().all())


def fisher_exact(found: int, of: int, others: int, of_others: int) -> float:
    """How probable it is that `found` of `of`, or more, are among all that were found, if there were no difference.

    Fisher's exact test, one-sided: the tail of the hypergeometric distribution.
    """
    together = found + others

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    whole = log_choose(of + of_others, together)
    terms = [
        log_choose(of, k) + log_choose(of_others, together - k) - whole
        for k in range(max(found, together - of_others), min(of, together) + 1)
    ]
    return min(sum(map(math.exp, terms)), 1.0)
