"""Memorization: how many samples are copies of training images, and whether they are more than by chance.

The nearest training image of each sample is found in several spaces: pixels, latents, features. The sample is a copy
of it if the nearest training image of another group is more than three times as far away (Yoon et al. 2023, "Diffusion
Probabilistic Models Generalize when They Fail to Memorize", with the second nearest of any group). Beside each figure
stands that of held-out images, which are no copies: theirs is what chance gives, and pictures that are alike.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.evaluation.neighbors import Neighbors, nearest_rows
from ldm.shapes import Images
from ldm.training.processes import Processes

COPY_RATIO = 1 / 3  # of the distances of the nearest training image and the nearest of another group: less is a copy
QUANTILE = 0.05  # of the held-out images' nearest distances: nearer is suspicious
FALSE_ALARMS = 1e-3  # how often samples that are like held-out images are flagged, over all spaces, at most
PAIRS = 12  # that are listed and drawn, the worst ones
MAX_PIXELS = 3 * 64 * 64  # numbers of an image that are compared
PART = 512  # training images whose rows are held at once


Rows = Mapping[str, Tensor]  # images as rows of numbers, by space


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

    def pair_images(self, name: str, samples: Tensor, training_image: Callable[[int], Tensor]) -> Tensor:
        """The worst pairs of a space: a row of samples and below them their nearest training images, blank at the end.

        All are pictures, uint8, channels x height x width.
        """
        chosen, count = self.worst(name), len(self.names)
        places = [int(self.samples[name].places[sample]) for sample in chosen]
        images = [training_image(place % count) for place in places]
        nearest = [image.flip(-1) if place >= count else image for place, image in zip(places, images, strict=True)]
        blank = [torch.full_like(samples[0], 255)] * (PAIRS - len(chosen))
        return torch.stack([*(samples[sample] for sample in chosen), *blank, *nearest, *blank])


def find_neighbors(
    samples: Rows,
    held_out: Rows,
    training: Callable[[slice], Iterable[Rows]],
    names: Sequence[str],
    groups: Tensor,
    processes: Processes,
    *,
    mirrored: bool = False,
    on_part: Callable[[], object] = lambda: None,
) -> Memorization:
    """Look for the nearest training image of every sample and held-out image; the same on every process.

    `names` and `groups` are those of the training images. `training` gives the rows of some of them and, where mirror
    images were trained on, those of their mirror images, which a space may leave out. `on_part` is called after each of
    the `parts_of` them.
    """
    queries = {name: torch.cat([rows, held_out[name]]) for name, rows in samples.items()}
    parts = parts_of(len(names))

    def compare(number: int) -> dict[str, Neighbors]:
        found: dict[str, Neighbors] = {}
        for side, rows in enumerate(training(parts[number])):
            first = side * len(names) + parts[number].start
            for name, own in rows.items():
                neighbors = nearest_rows(queries[name], own, groups[parts[number]], first=first)
                found[name] = found[name].joined(neighbors) if name in found else neighbors
        return found

    nearest: dict[str, Neighbors] = {}
    for found in processes.map(len(parts), compare):
        nearest = {name: nearest[name].joined(each) for name, each in found.items()} if nearest else found
        on_part()
    count = len(next(iter(samples.values())))
    return Memorization(
        names,
        mirrored,
        {name: neighbors[:count] for name, neighbors in nearest.items()},
        {name: neighbors[count:] for name, neighbors in nearest.items()},
        {name: rows.shape[1] for name, rows in samples.items()},
    )


def parts_of(images: int) -> list[slice]:
    """The parts of so many training images whose rows are held at once."""
    return [slice(start, min(start + PART, images)) for start in range(0, images, PART)]


def memorization_table(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    protocol, spaces = report["protocol"], report["spaces"]
    heading = f"copies of {protocol['training_images']} training images" + (
        " and their mirror images" if protocol["mirror_images"] else ""
    )
    rows = [(heading, "samples", "held-out images")]
    for figure, title in (("copies", "  in"), ("near", f"nearer than {1 - QUANTILE:.0%} of held-out images, in")):
        for name, space in spaces.items():
            held_out = space["held_out"] or {figure: None}
            rows.append((f"{title} {name}", format_share(space[figure]), format_share(held_out[figure])))
    width = max(len(title) for title, *_ in rows)
    lines = [f"{title:{width}}{own:>16}{reference:>18}" for title, own, reference in rows]
    return "\n".join([*lines, verdict(report)])


def format_share(share: float | None) -> str:
    """Percent."""
    return "not defined" if share is None else f"{share:.1%}".replace("%", " %")


def verdict(report: dict[str, Any]) -> str:
    """What the report says, in a line."""
    if report["flagged"] is None:
        missing = "two groups of training images" if report["protocol"]["held_out_images"] else "held-out images"
        return f"memorization: cannot be told without {missing}"
    if not report["flagged"]:
        return "memorization: none found; copies are no more frequent than among held-out images, beyond chance"
    name, space = min(report["spaces"].items(), key=lambda each: each[1]["p_value"])
    return (
        f"memorization: FOUND; {format_share(space['copies'])} of the samples are copies in {name}, of"
        f" {space['copied_images']} training images: docs/memorization.md says what to do"
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
