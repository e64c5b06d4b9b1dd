"""The held-out split: which images are kept out of training."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

TOLERANCE = 0.02  # how far the held-out share may lie from the one that was asked for


def split_groups(
    groups: Sequence[str], fraction: float, seed: int, labels: Sequence[int] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training images and of the held-out images; `groups` names the group of each image.

    A group is never divided, and one group of each class, as `labels` number them, always stays for training. Groups
    are held out in an order that depends on `seed` and their names alone, until `fraction` of the images is reached,
    so the order of the list does not matter. Where that ends far from `fraction`, as with one group much larger than
    the others, those groups are held out whose sizes add up closest to it. Above 0 at least one group is held out if
    one may be.
    """
    sizes, wanted = Counter(groups), wanted_count(len(groups), fraction)
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode(errors="surrogateescape")).digest())
    classes = _groups_of_classes(order, groups, labels)
    kept = {members[-1] for members in classes}
    chosen, count = [], 0
    for group in order:
        if count >= wanted:
            break
        if group not in kept:
            chosen.append(group)
            count += sizes[group]
    if not is_as_asked(count, len(groups), fraction):
        kept = {max(members, key=lambda group: sizes[group]) for members in classes}
        others = _closest([group for group in order if group not in kept], sizes, wanted)
        fewer = sum(sizes[group] for group in others)
        if others and (abs(fewer - wanted), fewer) < (abs(count - wanted), count):  # a tie leaves more for training
            chosen = others
    in_chosen = set(chosen)
    held_out = np.array([group in in_chosen for group in groups], dtype=bool)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def wanted_count(images: int, fraction: float) -> int:
    """How many of so many images are to be held out: one at least, if any."""
    return max(1, round(fraction * images)) if fraction > 0 else 0


def is_as_asked(count: int, images: int, fraction: float) -> bool:
    """Whether `count` held-out images are `fraction` of all, to the image or within 2 points."""
    near = count > 0 and abs(count - fraction * images) <= TOLERANCE * images
    return near or count == wanted_count(images, fraction)


def explain_split(groups: Sequence[str], fraction: float, held_out: Sequence[int]) -> str:
    """One sentence on why other than `fraction` of the images is held out; empty if that is what was asked for."""
    images, count = len(groups), len(held_out)
    if is_as_asked(count, images, fraction):
        return ""
    sizes = Counter(groups)
    (largest, most), *_ = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    found = f"data.held_out {fraction:g}: {count} of {images} images ({count / images:.0%}) are held out"
    if len(sizes) == 1 < images:
        return f'{found}, for all of them are of one group, "{largest}"'
    if most == 1:
        return f"{found}, for one image of each class stays for training"
    alone = f'group "{largest}" alone is {most / images:.0%} of the images'
    return f"{found}, for groups stay whole and one of each class stays for training; {alone}"


def _groups_of_classes(
    order: Sequence[str], groups: Sequence[str], labels: Sequence[int] | np.ndarray | None
) -> list[list[str]]:
    """The groups of each class in the order given; without labels all are of one class."""
    if labels is None:
        return [list(order)] if order else []
    found: dict[str, set[int]] = {}
    for group, label in zip(groups, np.asarray(labels).tolist(), strict=True):
        found.setdefault(group, set()).add(label)
    members: dict[int, list[str]] = {}
    for group in order:
        for label in found[group]:
            members.setdefault(label, []).append(group)
    return list(members.values())


def _closest(candidates: Sequence[str], sizes: Counter[str], wanted: int) -> list[str]:
    """The groups whose sizes add up closest to `wanted`, earlier ones rather than later ones; one at least, if any.

    A subset sum: `last[s]` is the group at which the sum s was first reached, and the sum without it was reached
    before.
    """
    if not candidates:
        return []
    most = max(2 * wanted, min(sizes[group] for group in candidates))  # whatever is larger is no closer
    last = np.full(most + 1, -1)
    last[0], total = len(candidates), 0
    for number, group in enumerate(candidates):
        size, total = sizes[group], min(total + sizes[group], most)
        reached = last[size : total + 1]
        reached[(reached < 0) & (last[: max(total + 1 - size, 0)] >= 0)] = number
        if last[wanted] >= 0:
            break
    sums = np.flatnonzero(last >= 0)[1:]
    rest, chosen = int(sums[np.abs(sums - wanted).argmin()]), []
    while rest:
        chosen.append(candidates[last[rest]])
        rest -= sizes[chosen[-1]]
    return chosen
