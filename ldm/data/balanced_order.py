"""Class-balanced sampling: the order in which rare classes are seen more often than their sizes say."""

import numpy as np

from ldm.data.order import MOST_SHUFFLED, Order, order_of


class BalancedOrder:
    """Training samples drawn class by class, in proportion to size^(1 - balance); a function of seed and position.

    A round is as many positions as there are samples, and at most 1,048,576. Up to the end of any round each class has
    come as often as its share says, to within one; inside a round the classes are shuffled. Within a class the samples
    come in shuffled passes, so that each is seen before any is repeated. `balance` 1 has every class equally often.
    """

    def __init__(self, labels: np.ndarray, balance: float, seed: int):
        self.labels, self.seed = labels, seed
        self.length = min(len(labels), MOST_SHUFFLED)  # of a round
        self.classes, sizes = np.unique(labels, return_counts=True)
        sorted_by_class = np.argsort(labels, kind="stable").astype(np.uint32)
        self.members = np.split(sorted_by_class, np.cumsum(sizes)[:-1])  # the samples of each class, in their order
        self.cumulative = np.cumsum(sizes.astype(np.float64) ** (1 - balance))
        self._round = (-1, labels, labels)  # the one in which a position was asked for last
        self._passes: dict[int, tuple[int, Order]] = {}  # the same for each class

    def place(self, position: int) -> tuple[int, int]:
        """Which pass over its class a position belongs to, and which sample it is."""
        number, offset = divmod(position, self.length)
        if self._round[0] != number:
            self._round = (number, *self.round(number))
        _, classes, occurrences = self._round
        which = int(classes[offset])
        members = self.members[which]
        epoch, step = divmod(int(occurrences[offset]), len(members))
        if self._passes.get(which, (-1,))[0] != epoch:
            label = int(self.classes[which])
            self._passes[which] = (epoch, order_of(len(members), self.seed, "order in class", label, epoch))
        return epoch, int(members[self._passes[which][1][step]])

    def counts_before(self, number: int) -> np.ndarray:
        """How often each class comes before a round: the whole part of where its share of all positions ends."""
        ends = np.floor(number * self.length * self.cumulative / self.cumulative[-1]).astype(np.int64)
        ends[-1] = number * self.length
        return np.diff(ends, prepend=0)

    def round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The class of each position in a round, and how often that class came before the position."""
        before, after = self.counts_before(number), self.counts_before(number + 1)
        order = order_of(self.length, self.seed, "classes", number)[np.arange(self.length)]
        classes = np.repeat(np.arange(len(before)), after - before)[order]
        occurrences = np.empty_like(classes)
        counted = [np.arange(*ends) for ends in zip(before, after, strict=True)]
        occurrences[np.argsort(classes, kind="stable")] = np.concatenate(counted)
        return classes, occurrences
