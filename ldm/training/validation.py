"""Validation: the held-out loss over a run, since when the model overfits, and the weights where it was lowest."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.checkpoint import Checkpoint
from ldm.errors import ConfigError

STANDARD_ERRORS = 3.0  # by which a rise of the held-out loss exceeds chance
RISE = 0.01  # of the lowest loss, at least: training itself makes a loss go up and down by less
PATIENCE = 2  # such validations in a row
KEPT = ("lowest_step", "rises", "overfitting_since", "was_said", "last")  # of a validation, in a checkpoint's JSON


class HeldOutLosses(Protocol):
    """The loss of each held-out image, with the same noise every time."""

    @property
    def groups(self) -> Sequence[str]:
        """The group of each image; none where nothing is held out."""
        ...

    def losses(self, model: Any, /) -> Mapping[str, Tensor]:
        """The loss of each image, by the name that its mean has in the log."""
        ...


class Validation:
    """The held-out loss of a run so far: where it was lowest, and whether it has risen since.

    Every image has the same noise each time, so two steps are compared image by image. The mean of the differences has
    a standard error, for which the images of one group count as one: they are alike. A rise by more than three
    standard errors and by more than one percent, twice in a row, is overfitting, and it began where the loss was
    lowest.
    """

    def __init__(self, *, keeps_best: bool):
        self.keeps_best = keeps_best
        self.lowest = torch.zeros(0, dtype=torch.float64)  # the loss of each image where the mean was lowest
        self.lowest_step = 0  # where that was; 0: nowhere yet
        self.rises = 0  # validations in a row, up to the last one, with a loss that is higher beyond chance
        self.overfitting_since = 0  # a step; 0: never
        self.was_said = False
        self.best: dict[str, Tensor] = {}  # the weights of that step, if they are kept
        self.last: dict[str, float] = {}  # the means of the last validation, by name

    def check(self, images: int) -> None:
        """Raise ConfigError if the best model is to be kept, and there are no held-out images to tell which it is."""
        if self.keeps_best and not images:
            raise ConfigError(
                "run.keep best needs held-out images, by whose loss models are compared, and data.held_out is 0: hold"
                " some out, or set run.keep last"
            )

    def update(
        self, step: int, losses: Mapping[str, Tensor], groups: Sequence[str], weights: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Take in the losses of each image after `step`, by noise level; returns what is to be logged.

        `weights` are those of the model that was measured.
        """
        each = torch.stack([*losses.values()]).double().cpu().mean(0)
        means = {name: loss.double().mean().item() for name, loss in losses.items()} | {
            "held_out_loss": each.mean().item()
        }
        self.last = {name: mean for name, mean in means.items() if math.isfinite(mean)}
        if "held_out_loss" not in self.last:
            return self.last
        if not self.lowest_step or each.mean() < self.lowest.mean():
            self.lowest, self.lowest_step, self.rises, self.overfitting_since = each, step, 0, 0
            if self.keeps_best:
                self.best = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}
            return self.last
        rise, error = mean_and_standard_error(each - self.lowest, groups)
        has_risen = rise > STANDARD_ERRORS * error and rise > RISE * self.lowest.mean().item()
        self.rises = self.rises + 1 if has_risen else 0
        if self.rises < PATIENCE or self.overfitting_since:
            return self.last
        self.overfitting_since = self.lowest_step
        return self.last | {"overfitting_since": self.lowest_step}

    def warning(self) -> str | None:
        """That the model overfits, the first time that it does."""
        if self.was_said or not self.overfitting_since:
            return None
        self.was_said = True
        ways = "its model is kept" if self.keeps_best else "run.keep best would export its model"
        return (
            f"overfitting since step {self.overfitting_since}: the held-out loss was"
            f" {self.lowest.mean().item():.4g} there and is {self.last['held_out_loss']:.4g} now; {ways}, and"
            " more images, dropout or fewer steps help"
        )

    def report(self) -> dict[str, Any]:
        """What the end of a run says of it; empty where nothing is held out."""
        if not self.lowest_step:
            return {}
        return {
            **self.last,
            "lowest_held_out_loss": self.lowest.mean().item(),
            "lowest_held_out_step": self.lowest_step,
            "overfitting_since": self.overfitting_since or None,
        }

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file and name."""
        losses = {"validation": {"lowest": self.lowest}} if self.lowest_step else {}
        return losses | ({"best": self.best} if self.best else {})

    def host_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        if not self.lowest_step:
            return {}
        return {"validation": {name: getattr(self, name) for name in KEPT}}

    def load(self, found: Checkpoint) -> None:
        """Take back what a checkpoint holds; those of earlier versions hold nothing of it."""
        if "validation" in found.state:
            for name in KEPT:
                setattr(self, name, found.state["validation"][name])
            self.lowest = found.tensors["validation"]["lowest"]
            self.best = found.tensors.get("best", {})


def mean_and_standard_error(values: Tensor, groups: Sequence[str]) -> tuple[float, float]:
    """The mean, and its standard error where only values of different groups are independent (cluster-robust).

    Without two groups the error is infinite.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    members = torch.tensor([numbers[group] for group in groups])
    mean, count = values.mean(), len(numbers)
    if count < 2:
        return mean.item(), float("inf")
    sums = torch.zeros(count, dtype=values.dtype).index_add_(0, members, values - mean)
    variance = sums.square().sum() / len(values) ** 2 * count / (count - 1)
    return mean.item(), variance.sqrt().item()
