"""Near-duplicates across the split: held-out images of which training has another version."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from ldm.data.datasets import Subset
from ldm.shapes import to_float

SIDE = 32  # of the gray thumbnails that are compared
FLAT = 2 / 127.5  # an image whose thumbnail varies less, of values from -1 to 1, has no pattern to compare
FREQUENCIES = sorted(((u, v) for u in range(9) for v in range(9)), key=lambda place: (sum(place), place))[1:65]
DISTANCE = 7  # most bits by which the hashes of near-duplicates differ
BANDS, BAND_BITS = 4, 16  # of a hash: where 7 bits differ, one band differs by a single bit at most
SIMILARITY = 0.97  # least correlation of the thumbnails of near-duplicates
CHUNK = 2**20  # candidates whose hashes are compared at once


def describe_near_duplicates(training: Subset, held_out: Subset) -> str:
    """How many held-out images have a near-duplicate in training, and what to do, in one line.

    It is for data sets in memory only: otherwise every image would be decoded for it.
    """
    if not len(held_out):
        return "no images are held out"
    if not training.dataset.is_in_memory:
        return "not looked for, as the images do not fit into data.cache_gb"
    found, flat = find_near_duplicates(training, held_out)
    left_out = f"; {flat} flat ones were not compared" if flat else ""
    if not found:
        return f"none of {len(held_out)} held-out images has one in training{left_out}"
    names = training.dataset.names
    example = " ~ ".join(names[index] for index in next(iter(found.items())))
    return (
        f"{len(found)} of {len(held_out)} held-out images have one in training, e.g. {example}{left_out}:"
        " name a group in metadata.jsonl to keep them together"
    )


def find_near_duplicates(training: Subset, held_out: Subset) -> tuple[dict[int, int], int]:
    """A near-duplicate in training of each held-out image that has one, by index, and how many are too flat to say.

    Candidates have similar perceptual hashes, and are near-duplicates if their thumbnails are correlated: encoded
    again, resized, a little brighter, but not cropped or mirrored.
    """
    shown, known = thumbnails(held_out), thumbnails(training)
    patterned, usable = (np.flatnonzero(np.std(part, axis=(1, 2), dtype=np.float32) > FLAT) for part in (shown, known))
    shown, known = shown[patterned], known[usable]
    matches = np.full(len(shown), -1)
    for rows, columns in _candidates(hashes(shown), hashes(known), matches):
        similar = _correlations(shown, rows, known, columns) >= SIMILARITY
        matches[rows[similar]] = columns[similar]
    found = np.flatnonzero(matches >= 0)
    pairs = zip(patterned[found].tolist(), usable[matches[found]].tolist(), strict=True)
    return {held_out.indices[mine]: training.indices[other] for mine, other in pairs}, len(held_out) - len(patterned)


def thumbnails(images: Subset) -> np.ndarray:
    """Small gray versions, the mean of all channels: float16 n x 32 x 32, of values from -1 to 1."""
    small = np.empty((len(images), SIDE, SIDE), dtype=np.float16)
    for place, index in enumerate(images.indices):
        gray = to_float(images.dataset.eval_view(index)).mean(dim=0).numpy().astype(np.float32)
        small[place] = np.asarray(Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return small


def hashes(gray: np.ndarray) -> np.ndarray:
    """Perceptual hashes of 64 bits: the signs of the lowest frequencies of the cosine transform but the mean."""
    places = np.arange(SIDE)
    waves = np.cos(np.pi * (2 * places + 1) * np.arange(9)[:, None] / (2 * SIDE)).astype(np.float32)
    found = np.empty(len(gray), dtype=np.uint64)
    for start in range(0, len(gray), 4096):
        spectrum = waves @ gray[start : start + 4096].astype(np.float32) @ waves.T
        bits = np.stack([spectrum[:, u, v] > 0 for u, v in FREQUENCIES], axis=1)
        found[start : start + 4096] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return found


def _candidates(mine: np.ndarray, others: np.ndarray, matches: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of places whose hashes differ by few bits, of those of `mine` that have no match yet.

    Not every pair is looked at: hashes that near have a band in common, but for one bit at most.
    """
    mask = np.uint64(2**BAND_BITS - 1)
    for shift in range(0, BANDS * BAND_BITS, BAND_BITS):
        asked, keys = (hashed >> np.uint64(shift) & mask for hashed in (mine, others))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for changed in (0, *(2**bit for bit in range(BAND_BITS))):
            first, last = (np.searchsorted(keys, asked ^ np.uint64(changed), side) for side in ("left", "right"))
            rows = np.flatnonzero((last > first) & (matches < 0))
            parts = np.cumsum(last[rows] - first[rows]) // CHUNK
            for part in np.unique(parts):
                chosen = rows[(parts == part) & (matches[rows] < 0)]
                found = [order[first[row] : last[row]] for row in chosen]
                pairs = np.repeat(chosen, [len(each) for each in found]), np.concatenate(found or [order[:0]])
                close = np.bitwise_count(mine[pairs[0]] ^ others[pairs[1]]) <= DISTANCE
                yield pairs[0][close], pairs[1][close]


def _correlations(shown: np.ndarray, rows: np.ndarray, known: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How similar the thumbnails of pairs are, whatever their brightness and contrast."""
    found = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), 4096):
        part = slice(start, start + 4096)
        one, other = (
            gray.reshape(len(gray), -1).astype(np.float32) for gray in (shown[rows[part]], known[columns[part]])
        )
        one, other = one - one.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        found[part] = (one * other).sum(axis=1) / norms
    return found
