"""Class-balanced sampling: the order in which rare classes are seen more often than their sizes say."""

import numpy as np
import torch

from ldm.randomness import generator


class BalancedOrder:
    """Training samples drawn class by class, in proportion to size^(1 - balance); a function of seed and position.

    A round is as many positions as there are samples. Up to the end of any round each class has come as often as its
    share says, to within one; inside a round the classes are shuffled. Within a class the samples come in shuffled
    passes, so that each is seen before any is repeated. `balance` 1 has every class equally often.
    """

    def __init__(self, labels: np.ndarray, balance: float, seed: int):
        self.labels, self.seed = labels, seed
        self.classes, sizes = np.unique(labels, return_counts=True)
        self.members = [np.flatnonzero(labels == label) for label in self.classes]
        self.cumulative = np.cumsum(sizes.astype(np.float64) ** (1 - balance))
        self._round = (-1, labels, labels)  # the one in which a position was asked for last
        self._passes: dict[int, tuple[int, np.ndarray]] = {}  # the same for each class

    def place(self, position: int) -> tuple[int, int]:
        """Which pass over its class a position belongs to, and which sample it is."""
        number, offset = divmod(position, len(self.labels))
        if self._round[0] != number:
            self._round = (number, *self.round(number))
        _, classes, occurrences = self._round
        which = int(classes[offset])
        epoch, step = divmod(int(occurrences[offset]), len(self.members[which]))
        if self._passes.get(which, (-1,))[0] != epoch:
            self._passes[which] = (epoch, self.shuffled_members(which, epoch))
        return epoch, int(self._passes[which][1][step])

    def counts_before(self, number: int) -> np.ndarray:
        """How often each class comes before a round: the whole part of where its share of all positions ends."""
        ends = np.floor(number * len(self.labels) * self.cumulative / self.cumulative[-1]).astype(np.int64)
        ends[-1] = number * len(self.labels)
        return np.diff(ends, prepend=0)

    def round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The class of each position in a round, and how often that class came before the position."""
        before, after = self.counts_before(number), self.counts_before(number + 1)
        order = torch.randperm(len(self.labels), generator=generator(self.seed, "classes", number)).numpy()
        classes = np.repeat(np.arange(len(before)), after - before)[order]
        occurrences = np.empty_like(classes)
        counted = [np.arange(*ends) for ends in zip(before, after, strict=True)]
        occurrences[np.argsort(classes, kind="stable")] = np.concatenate(counted)
        return classes, occurrences

    def shuffled_members(self, which: int, epoch: int) -> np.ndarray:
        """The samples of a class in the order of one pass."""
        members, label = self.members[which], int(self.classes[which])
        order = torch.randperm(len(members), generator=generator(self.seed, "order in class", label, epoch))
        return members[order.numpy()]
