"""Decoded images of which only some fit into memory, kept as they are met, and shared by the workers of a loader."""

import mmap
from math import prod
from typing import Any

import numpy as np


class KeptImages:
    """Room for `places` of `count` images of one shape, evenly spaced over the data set.

    Nothing is decoded for it: an image that has a place is put there when it is met first. The memory is shared with
    forked children, so that what one worker of a data loader has decoded is there for all; it is taken page by page.
    """

    def __init__(self, count: int, places: int, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self.count, self.places = count, places
        self.pixels = np.frombuffer(_shared(places * prod(shape) * dtype.itemsize), dtype).reshape(places, *shape)
        self.is_there = np.frombuffer(_shared(places), np.bool_)

    def place(self, index: int) -> int | None:
        """Where an image belongs; None if it has no place."""
        place = -(-index * self.places // self.count)
        return place if place < self.places and place * self.count // self.places == index else None

    def get(self, index: int) -> np.ndarray | None:
        """An image that was put here."""
        place = self.place(index)
        return None if place is None or not self.is_there[place] else self.pixels[place]

    def put(self, index: int, pixels: np.ndarray) -> None:
        """Keep an image, if it has a place."""
        if (place := self.place(index)) is not None:
            self.pixels[place] = pixels
            self.is_there[place] = True

    def __reduce__(self) -> tuple[Any, ...]:
        """In a process that is not forked it begins anew."""
        return KeptImages, (self.count, self.places, self.pixels.shape[1:], self.pixels.dtype)


def _shared(size: int) -> mmap.mmap:
    return mmap.mmap(-1, max(size, 1))
