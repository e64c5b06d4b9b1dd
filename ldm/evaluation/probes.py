"""Probes: kNN and linear classifiers on frozen features."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.shapes import Images, Latents

NEIGHBORS = 20
PENALTY = 1e-2  # of the squared weights
MAX_PIXELS = 4096  # numbers of an image that are looked at
MIN_STD = 1e-6  # standard deviation beside the largest value: less is rounding
ROWS = 1024  # compared with all training rows at once


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, neighbors: int = NEIGHBORS
) -> float:
    """Share of the test rows, from 0 to 1, whose class is that of most of their nearest training rows.

    `train` is n x features and `test` m x features, both floating, with n and m class indices. The nearest are those
    of the largest cosine similarity, each with one vote (Wu et al. 2018, section 3.4, without their weights); where
    classes have as many votes, the one with the nearest row wins. With fewer training rows than `neighbors`, all vote.
    """
    train, test = F.normalize(train), F.normalize(test)
    right = 0
    for rows, labels in zip(test.split(ROWS), test_labels.split(ROWS), strict=True):
        nearest = (rows @ train.T).topk(min(neighbors, len(train))).indices
        voters = train_labels[nearest]  # rows x neighbors, the nearest first
        votes = voters.new_zeros(len(rows), int(train_labels.max()) + 1)
        votes.scatter_add_(1, voters, torch.ones_like(voters))
        support = votes.gather(1, voters)
        winner = (support == support.amax(1, keepdim=True)).byte().argmax(1, keepdim=True)  # the first of the largest
        right += int((voters.gather(1, winner)[:, 0] == labels).sum())
    return right / len(test)


def linear_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    penalty: float = PENALTY,
    iterations: int = 500,
) -> float:
    """Share of the test rows, from 0 to 1, that multinomial logistic regression on the training rows puts right.

    `train` is n x features and `test` m x features, with n and m class indices. Features are standardized by the mean
    and the standard deviation of the training rows; one that hardly varies there is left out. The weights minimize

        mean cross-entropy + penalty / 2 · ‖weights‖²,

    biases being free: scikit-learn's LogisticRegression with C = 1 / (penalty · n). In float64, by L-BFGS (Liu and
    Nocedal 1989) from 0: nothing is random.
    """
    mean, std = train.mean(0, dtype=torch.float64), train.double().std(0, correction=0)
    kept = std > MIN_STD * train.abs().amax(0)

    def standardized(rows: Tensor) -> Tensor:
        return (rows[:, kept].double() - mean[kept]) / std[kept]

    rows = standardized(train)
    weight = rows.new_zeros(int(train_labels.max()) + 1, rows.shape[1], requires_grad=True)
    bias = rows.new_zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(rows, weight, bias), train_labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    with torch.no_grad():
        found = [F.linear(standardized(part), weight, bias).argmax(1) for part in test.split(ROWS)]
    return (torch.cat(found) == test_labels).double().mean().item()


@dataclass(frozen=True)
class ProbeInputs:
    """What probes are given of some images: a row of numbers for each latent, and the pixels as images."""

    latents: Tensor
    pixels: Images

    @classmethod
    def joined(cls, parts: Sequence["ProbeInputs"], device: torch.device) -> "ProbeInputs":
        """All parts as one."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]).to(device) for name in ("latents", "pixels")))


def probe_inputs(latents: Latents, images: Images, kind: str) -> ProbeInputs:
    """What probes are given: all numbers of a latent (`flat`), or the mean of each channel over positions (`mean`).

    Of the images it is the means over squares, if they have more than 4,096 numbers; over what there is of a square at
    the lower and right borders. On the CPU.
    """
    rows = latents.flatten(1) if kind == "flat" else latents.mean((2, 3))
    channels, height, width = images.shape[1:]
    return ProbeInputs(rows.cpu(), F.avg_pool2d(images, square_for((channels, height, width)), ceil_mode=True).cpu())


def square_for(shape: tuple[int, int, int]) -> int:
    """The side of those squares in pixels for images of channels, height, width: the smallest that does, from 1 on."""
    channels, *sides = shape
    squares = range(1, max(sides) + 1)
    fits = (s for s in squares if channels * math.prod(math.ceil(side / s) for side in sides) <= MAX_PIXELS)
    return next(fits, squares[-1])


def standardized_channels(train: Images, test: Images) -> tuple[Tensor, Tensor]:
    """Both as rows, each channel with mean 0 and variance 1 over the training images, as it is in latents."""
    std, mean = torch.std_mean(train.double(), (0, 2, 3), correction=0, keepdim=True)
    varies = std > MIN_STD * train.abs().amax((0, 2, 3), keepdim=True)
    std = torch.where(varies, std, torch.ones_like(std))
    rows = [((images - mean) / std).to(images.dtype).flatten(1) for images in (train, test)]
    return rows[0], rows[1]


def accuracy(probe: str, train: ProbeInputs, train_labels: Tensor, test: ProbeInputs, test_labels: Tensor) -> float:
    """The accuracy of one of PROBES."""
    of_pixels, classify = PROBES[probe]
    rows = standardized_channels(train.pixels, test.pixels) if of_pixels else (train.latents, test.latents)
    return classify(rows[0], train_labels, rows[1], test_labels)


def protocol_entry(kind: str, train: ProbeInputs, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What there is to know about the probes of images of channels, height, width, for a protocol."""
    square = square_for(shape)
    averages = f", averaged over squares of {square} x {square}" if square > 1 else ""
    return {
        "features": kind,
        "dimensions": train.latents.shape[1],
        "training_images": len(train.latents),
        "neighbors": min(NEIGHBORS, len(train.latents)),
        "knn": "majority of the nearest by cosine similarity, ties to the nearest",
        "linear": f"multinomial logistic regression on standardized features, L2 penalty {PENALTY}",
        "pixels": f"not rounded, standardized per channel{averages}",
        "pixel_dimensions": train.pixels[0].numel(),
    }


PROBES: dict[str, tuple[bool, Callable[[Tensor, Tensor, Tensor, Tensor], float]]] = {
    "knn_accuracy": (False, knn_accuracy),
    "linear_accuracy": (False, linear_accuracy),
    "pixel_knn_accuracy": (True, knn_accuracy),
    "pixel_linear_accuracy": (True, linear_accuracy),
}
