"""The entropy model: symbols of a latent to bytes and back, and what they cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldm.entropy.categorical import TOTAL
from ldm.entropy.config import ENTROPY_MODELS, EntropyModelConfig
from ldm.entropy.integer_network import SCALES, IntegerNetwork, inputs_of
from ldm.entropy.range_coder import SymbolReader, SymbolWriter
from ldm.entropy.tables import LARGEST_STEP, OFFSETS, CumulativeTables, WeightTable
from ldm.errors import CheckpointError

NETWORK = ("hidden", "hidden_bias", "linear", "output", "output_bias")
LARGEST_SYMBOL = 2**24


@dataclass(frozen=True)
class Prediction:
    """What is known of some symbols before they are read: how far they are shifted, and their tables.

    `channel`, `row` and `column` say where they are; `groups` are the indices into these of the symbols of one table.
    """

    channel: np.ndarray
    row: np.ndarray
    column: np.ndarray
    shift: np.ndarray
    groups: list[tuple[WeightTable, np.ndarray]]

    def places(self, indices: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where in a latent these are."""
        return self.channel[indices], self.row[indices], self.column[indices]


@dataclass(frozen=True)
class EntropyModel:
    """Distributions of the elements of a latent, in integers, given the elements before them.

    A symbol is an element in units of the step, rounded; `steps` has the step of each channel in positions
    (`tables.POSITIONS` to a standard deviation). A table belongs to a channel, and, where a network predicts it, to a
    scale of that channel.
    """

    config: EntropyModelConfig
    channels: int
    tables: CumulativeTables
    network: IntegerNetwork | None = None

    def __post_init__(self) -> None:
        self.tables.check()
        facts = ENTROPY_MODELS[self.config.kind]
        if (self.network is not None) != facts.has_context:
            raise CheckpointError(
                f"an entropy model {self.config.kind} has {'a' if facts.has_context else 'no'} network"
            )
        if self.network is not None:
            self.network.check(self.config, self.channels, facts.parities)
        if len(self.tables.reaches) != self.channels * (SCALES if facts.has_context else 1):
            raise CheckpointError(f"the entropy model has not the tables of {self.channels} channels")

    def encode(self, symbols: np.ndarray, steps: Sequence[int]) -> bytes:
        """The symbols of one latent, channels x h x w of integers, as bytes."""
        writer = SymbolWriter()
        self.write(writer, symbols, steps)
        return writer.finish()

    def write(self, writer: SymbolWriter, symbols: np.ndarray, steps: Sequence[int]) -> None:
        """Append the symbols of one latent to others."""

        def write(predicted: Prediction) -> np.ndarray:
            found: np.ndarray = symbols[predicted.places()]
            for table, indices in predicted.groups:
                writer.write((found - predicted.shift)[indices], table)
            return found

        self._traverse(symbols.shape, steps, write)

    def decode(self, payload: bytes, shape: tuple[int, int, int], steps: Sequence[int]) -> np.ndarray:
        """The same symbols, on any machine; CodecError for bytes that `encode` does not write."""
        reader = SymbolReader(payload)
        symbols = self.read(reader, shape, steps)
        reader.check_end()
        return symbols

    def read(self, reader: SymbolReader, shape: tuple[int, int, int], steps: Sequence[int]) -> np.ndarray:
        """The symbols of the next latent."""

        def read(predicted: Prediction) -> np.ndarray:
            found = predicted.shift.copy()
            for table, indices in predicted.groups:
                found[indices] += reader.read(len(indices), table)
            return found

        return self._traverse(shape, steps, read)

    def sample(self, shape: tuple[int, int, int], steps: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """Symbols drawn from the model: what a decoder makes of random bytes. Beyond its table is just beyond it."""

        def draw(predicted: Prediction) -> np.ndarray:
            found = predicted.shift.copy()
            for table, indices in predicted.groups:
                drawn = rng.integers(TOTAL, size=len(indices))
                found[indices] += np.searchsorted(np.cumsum(table.weights), drawn, side="right") - table.last
            return found

        return self._traverse(shape, steps, draw)

    def bits(self, symbols: np.ndarray, steps: Sequence[int]) -> float:
        """What the symbols cost, without what the coder adds."""
        total = 0.0

        def count(predicted: Prediction) -> np.ndarray:
            nonlocal total
            found: np.ndarray = symbols[predicted.places()]
            for table, indices in predicted.groups:
                shifted = (found - predicted.shift)[indices]
                outside = np.abs(shifted) > table.last
                total += float(table.bits[np.where(outside, -1, shifted + table.last)].sum())
                excess = 2 * (np.abs(shifted[outside]) - table.last - 1) + (shifted[outside] < 0) + 1
                total += sum(2 * int(each).bit_length() - 1 for each in excess)
            return found

        self._traverse(symbols.shape, steps, count)
        return total

    def centroids(self, symbols: np.ndarray, steps: Sequence[int]) -> np.ndarray:
        """The mean of what falls into each symbol's cell, less the cell's center, in positions."""
        moved = np.zeros(symbols.shape)

        def look(predicted: Prediction) -> np.ndarray:
            found: np.ndarray = symbols[predicted.places()]
            for table, indices in predicted.groups:
                shifted = (found - predicted.shift)[indices]
                inside = np.abs(shifted) <= table.last
                moved[predicted.places(indices[inside])] = table.centroids[shifted[inside] + table.last]
            return found

        self._traverse(symbols.shape, steps, look)
        return moved

    def _traverse(
        self, shape: tuple[int, ...], steps: Sequence[int], visit: Callable[[Prediction], np.ndarray]
    ) -> np.ndarray:
        """The passes in order: `visit` is told what is predicted of some symbols, and says what they are."""
        if len(steps) != self.channels or not all(1 <= step <= LARGEST_STEP for step in steps):
            raise ValueError(f"steps must be {self.channels} integers from 1 to {LARGEST_STEP}")
        symbols = np.zeros(shape, dtype=np.int64)
        known = np.zeros(shape, dtype=np.int64)
        for members in ENTROPY_MODELS[self.config.kind].passes(self.channels):
            for predicted in list(self._predictions(members, known, steps)):
                found = visit(predicted)
                symbols[predicted.places()] = found
                step = np.asarray(steps)[predicted.channel]
                known[predicted.places()] = np.clip(found, -LARGEST_SYMBOL, LARGEST_SYMBOL) * step
        return symbols

    def _predictions(
        self, members: Sequence[tuple[int, int]], known: np.ndarray, steps: Sequence[int]
    ) -> Iterator[Prediction]:
        """For each (channel, parity) of a pass, all from what is known before it."""
        parities = ENTROPY_MODELS[self.config.kind].parities
        _, height, width = known.shape
        rows, columns = np.divmod(np.arange(height * width), width)
        inputs = None
        for channel, parity in members:
            chosen = np.flatnonzero((rows + columns) % parities == parity)
            step = steps[channel]
            mean, table = np.zeros(len(chosen), dtype=np.int64), np.full(len(chosen), channel)
            if self.network is not None:
                if inputs is None:
                    inputs = inputs_of(known, step, self.config.radius)
                inputs[:, -1] = min(step, 8 * 256 - 1)
                mean, scale = self.network.predict(channel * parities + parity, inputs[chosen])
                table = channel * SCALES + scale
            yield self._prediction(np.full(len(chosen), channel), rows[chosen], columns[chosen], mean, table, step)

    def _prediction(
        self,
        channel: np.ndarray,
        row: np.ndarray,
        column: np.ndarray,
        mean: np.ndarray,
        table: np.ndarray,
        step: int,
    ) -> Prediction:
        shift = (2 * mean + step) // (2 * step)
        fraction = (2 * (mean - shift * step) * OFFSETS + step) // (2 * step)
        keys = table * (2 * OFFSETS) + fraction + OFFSETS
        order = np.argsort(keys, kind="stable")
        found, starts = np.unique(keys[order], return_index=True)
        groups = []
        for key, indices in zip(found.tolist(), np.split(order, starts[1:]), strict=False):
            offset = (2 * (key % (2 * OFFSETS) - OFFSETS) * step + OFFSETS) // (2 * OFFSETS)
            groups.append((self.tables.at(key // (2 * OFFSETS), offset, step), indices))
        return Prediction(channel, row, column, shift, groups)

    def tensors(self) -> dict[str, np.ndarray]:
        """All its numbers by name, as integers of 64 bits."""
        found = {"reaches": self.tables.reaches, "values": self.tables.values}
        if self.network is not None:
            found |= {name: getattr(self.network, name).astype(np.int64) for name in NETWORK}
        return found

    @classmethod
    def from_tensors(
        cls, config: EntropyModelConfig, channels: int, tensors: Mapping[str, np.ndarray]
    ) -> "EntropyModel":
        """The model of these numbers; CheckpointError if they are not of one."""
        names = {"reaches", "values"} | (set(NETWORK) if ENTROPY_MODELS[config.kind].has_context else set())
        if set(tensors) != names or any(value.dtype != np.int64 for value in tensors.values()):
            raise CheckpointError(f"an entropy model is made of integers called {', '.join(sorted(names))}")
        tables = CumulativeTables(tensors["reaches"], tensors["values"])
        network = None
        if ENTROPY_MODELS[config.kind].has_context:
            network = IntegerNetwork(**{name: tensors[name].astype(np.float64) for name in NETWORK})
        return cls(config, channels, tables, network)
