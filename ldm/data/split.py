"""The held-out split: which images are kept out of training."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np


def split_groups(groups: Sequence[str], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the training images and of the held-out images; `groups` names the group of each image.

    A group is never divided. Groups are held out in an order that depends on `seed` and their names alone, until
    `fraction` of the images is reached, so the order of the list does not matter. Above 0 at least one group is held
    out; at least one always stays for training.
    """
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode(errors="surrogateescape")).digest())
    wanted = max(1, round(fraction * len(groups))) if fraction > 0 else 0
    chosen: set[str] = set()
    count = 0
    for group in order[:-1]:
        if count >= wanted:
            break
        chosen.add(group)
        count += sizes[group]
    held_out = np.array([group in chosen for group in groups], dtype=bool)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
