"""Compression of sources whose entropy is known: rate, distortion, and their distance from the Gaussian's R(D)."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ldm.entropy.config import EntropyModelConfig
from ldm.entropy.fit import fit
from ldm.entropy.model import EntropyModel
from ldm.entropy.tables import POSITIONS
from ldm.randomness import generator
from ldm.verify.check import Check, at_least, at_most, skipped

STEPS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # in standard deviations
GAPS = (0.251, 0.255)  # bits above R(D) with centroids, at steps up to 2
CENTER_GAPS = {0.5: 0.269, 1.0: 0.312, 1.5: 0.378, 2.0: 0.442}
CORRELATION = 0.95


def checks(*, small: bool = False) -> Iterator[Check]:
    """A Gaussian source at several steps, and two correlated channels; nothing where constriction is missing."""
    if find_spec("constriction") is None:
        yield skipped("everything", "needs constriction")
        return
    yield from of_gaussian(2**16 if small else 2**20)
    yield from of_correlated_channels(200 if small else 600)


def of_gaussian(count: int) -> Iterator[Check]:
    """Fitted to samples, and measured on a source that is spread over the Gaussian as evenly as can be."""
    samples = torch.randn(1, 1, count, 1, generator=generator(0, "truth compression"))
    model = fit(samples, EntropyModelConfig(kind="factorized"), [1.0])
    even = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    source = even[torch.randperm(count, generator=generator(0, "truth compression order"))].view(1, -1, 1)
    of_rate, of_distortion, of_payload, gaps, center_gaps, curve = [], [], [], [], [], []
    for step in STEPS:
        payload, estimate, center, centroid = coded(model, source, step)
        rate, exact_center, exact_centroid = exact(step)
        of_rate.append(abs(payload / rate - 1))
        of_payload.append((abs(payload - estimate) * count - 64) / (estimate * count))
        of_distortion += [abs(center / exact_center - 1), abs(centroid / exact_centroid - 1)]
        if step <= 2:
            gaps.append(payload + 0.5 * math.log2(centroid))
        if step in CENTER_GAPS:
            center_gaps.append(abs(payload + 0.5 * math.log2(center) - CENTER_GAPS[step]))
        curve.append((payload, centroid))
    yield at_most("rate over the exact entropy, furthest from 1", max(of_rate), 0.01)
    yield at_most("squared error over the exact one, furthest from 1", max(of_distortion), 0.01)
    yield at_most("payload beside its estimate, less 64 bits, relative", max(of_payload), 0.01)
    yield at_least("gap to R(D) with centroids, steps up to 2, least bits", min(gaps), GAPS[0] - 0.0005)
    yield at_most("gap to R(D) with centroids, steps up to 2, most bits", max(gaps), GAPS[1] + 0.0005)
    yield at_most("gap to R(D) at centers, furthest from known", max(center_gaps), 0.001)
    falls = min(finer[0] - coarser[0] for finer, coarser in pairwise(curve))
    rises = min(coarser[1] - finer[1] for finer, coarser in pairwise(curve))
    yield at_least("fall of the rate from one step to the next, least bits", falls, 0.1)
    yield at_least("rise of the squared error from one step to the next, least", rises, 0.01)


def of_correlated_channels(steps: int) -> Iterator[Check]:
    """Two Gaussian channels that resemble each other: what the second costs once the first is known."""
    first, second = torch.randn(2, 64, 1, 16, 16, generator=generator(0, "truth compression channels"))
    latents = torch.cat([first, CORRELATION * first + math.sqrt(1 - CORRELATION**2) * second], dim=1)
    config = EntropyModelConfig(kind="channel", width=16, radius=0, steps=steps)
    model, step = fit(latents[:48], config, [1.0, 1.0]), 0.25
    payload = sum(coded(model, latent, step)[0] for latent in latents[48:]) / 16
    # At fine steps the entropy is the differential one less log2 of the cell; the sample's own, as it is small.
    centered = latents[48:].transpose(0, 1).flatten(1).double()
    determinant = float(torch.linalg.det(centered @ centered.T / centered.shape[1]))
    entropy = 0.5 * math.log2(2 * math.pi * math.e) + 0.25 * math.log2(determinant) - math.log2(step)
    yield at_most("two correlated channels: rate over the exact entropy", payload / entropy, 1.02)


def coded(model: EntropyModel, source: Tensor, step: float) -> tuple[float, float, float, float]:
    """Bits per element of the payload and of the estimate, then the squared errors of centers and centroids.

    The source is decoded from its bytes.
    """
    steps = [round(step * POSITIONS)] * source.shape[0]
    values = source.double().numpy()
    symbols = np.rint(values / step).astype(np.int64)
    payload = model.encode(symbols, steps)
    channels, height, width = symbols.shape
    decoded = model.decode(payload, (channels, height, width), steps)
    moved = model.centroids(decoded, steps) / POSITIONS
    center, centroid = (float(np.square(values - decoded * step - shift).mean()) for shift in (0, moved))
    return 8 * len(payload) / symbols.size, model.bits(symbols, steps) / symbols.size, center, centroid


def exact(step: float) -> tuple[float, float, float]:
    """Entropy of a unit Gaussian's uniform quantizer in bits, and its squared error at centers and at centroids."""
    centers = step * torch.arange(-math.ceil(20 / step), math.ceil(20 / step) + 1, dtype=torch.float64)
    lower, upper = centers - step / 2, centers + step / 2
    density = [torch.exp(-0.5 * each.square()) / math.sqrt(2 * math.pi) for each in (lower, upper)]
    # In the upper half by the complement, which does not cancel.
    sign = torch.where(centers > 0, -1.0, 1.0)
    tails = [torch.special.erfc(-sign * each / math.sqrt(2)) / 2 for each in (lower, upper)]
    masses = (tails[1] - tails[0]).abs()
    first = density[0] - density[1]
    second = masses + lower * density[0] - upper * density[1]
    entropy = -torch.special.xlogy(masses, masses).sum() / math.log(2)
    center = (second - 2 * centers * first + centers.square() * masses).sum()
    centroid = 1 - (first.square() / masses).sum()
    return float(entropy), float(center), float(centroid)
