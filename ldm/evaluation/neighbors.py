"""Nearest neighbors among training images, and the nearest of another group: exact, a part of the images at a time."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

ROWS = 1024  # whose distances to a part of the training images are held at once


@dataclass(frozen=True, eq=False)
class Neighbors:
    """For each query its nearest row, and how far the nearest row of another group is.

    Rows of one group are alike: variants of a picture, or a picture and its mirror image. The second nearest row would
    often be one of them, and says nothing; that of another group says how far a *different* picture is.
    """

    places: Tensor  # int64: which row is the nearest
    groups: Tensor  # int64: of that row
    distances: Tensor  # float64, Euclidean
    seconds: Tensor  # the distance of the nearest row of another group, infinite where there is none

    def joined(self, later: "Neighbors") -> "Neighbors":
        """The neighbors among the rows of both; of two at the same distance it is the earlier one."""
        is_later = later.distances < self.distances
        names = [field.name for field in fields(self)]
        winner, other = (
            Neighbors(*(torch.where(chosen, getattr(later, name), getattr(self, name)) for name in names))
            for chosen in (is_later, ~is_later)
        )
        nearest_of_other = torch.where(other.groups == winner.groups, other.seconds, other.distances)
        return Neighbors(winner.places, winner.groups, winner.distances, winner.seconds.minimum(nearest_of_other))

    def __getitem__(self, queries: slice) -> "Neighbors":
        """Those of some of the queries."""
        return Neighbors(*(getattr(self, field.name)[queries] for field in fields(self)))

    @property
    def ratios(self) -> Tensor:
        """The distance of the nearest row as a part of that of the nearest of another group, from 0 to 1.

        1 where both are 0, and the two cannot be told apart; not a number where there is no other group.
        """
        ratios = torch.where(self.seconds > 0, self.distances / self.seconds, torch.ones_like(self.seconds))
        return torch.where(self.seconds.isfinite(), ratios, torch.full_like(ratios, torch.nan))


def nearest_rows(queries: Tensor, rows: Tensor, groups: Tensor, *, first: int = 0) -> Neighbors:
    """The neighbors of queries, n x d, among rows, m x d, which are numbered from `first` on; `groups` are theirs.

    In float64. They are found by products of matrices, and the distances of those that are found are computed directly,
    so that the distance of two equal rows is 0.
    """
    parts, rows = [], rows.double()
    squares = rows.square().sum(1)
    for part in queries.split(ROWS):
        part = part.double()
        found = squares - 2 * part @ rows.T  # and the square of the query, which is the same for every row
        places = found.argmin(1)
        own = groups[places]
        found.masked_fill_(groups == own[:, None], torch.inf)
        least, others = found.min(1)
        distances, seconds = ((part - rows[chosen]).norm(dim=1) for chosen in (places, others))
        seconds = torch.where(least.isfinite(), seconds, torch.inf)
        parts.append((places + first, own, distances, seconds))
    return Neighbors(*(torch.cat(each) for each in zip(*parts, strict=True)))


def distinct_groups(pixels: Iterable[Tensor], groups: Sequence[str], *, mirrored: bool) -> Tensor:
    """The number of each image's group, where groups that have the very same image, or its mirror image, are one.

    `pixels` are the images, as integers.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    above = list(range(len(numbers)))  # a group that each one is the same as, or itself
    seen: dict[bytes, int] = {}
    for image, name in zip(pixels, groups, strict=True):
        views = [image, image.flip(-1)] if mirrored else [image]
        digest = min(hashlib.sha256(view.contiguous().numpy().tobytes()).digest() for view in views)
        one, other = (_root(above, number) for number in (seen.setdefault(digest, numbers[name]), numbers[name]))
        above[max(one, other)] = min(one, other)
    return torch.tensor([_root(above, numbers[name]) for name in groups])


def _root(above: Sequence[int], number: int) -> int:
    while above[number] != number:
        number = above[number]
    return number
