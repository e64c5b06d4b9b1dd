"""Range coding with integer weights, by constriction, and universal codes for what no table holds.

constriction takes probabilities as floats, adds the least weight to each symbol's share of the rest, and rounds down:
of the weights less one, which sum to 2^24 less the number of symbols, it makes these very weights again. All numbers on
the way are integers below 2^24, which float64 and float32 hold, so that nothing is rounded. A reference coder in the
tests agrees word for word.
"""

from typing import Any

import numpy as np

from ldm.entropy.tables import TOTAL, WeightTable
from ldm.errors import CodecError, ConfigError

LONGEST_ESCAPE = 30  # bits


def import_constriction() -> Any:
    """The package, or ConfigError with what to install."""
    try:
        import constriction
    except ImportError as error:
        raise ConfigError(
            "compression needs the package constriction: pip install 'latent-diffusion-trainer[compression]'"
        ) from error
    return constriction


def categorical(weights: np.ndarray) -> Any:
    """constriction's model of exactly these weights."""
    if weights.dtype != np.int64 or len(weights) < 2 or weights.min() < 1 or weights.sum() != TOTAL:
        raise ValueError(f"weights must be positive integers that sum to {TOTAL}")
    model = import_constriction().stream.model.Categorical
    return model((weights - 1).astype(np.float64), perfect=False, lazy=False)


class SymbolWriter:
    """Symbols to bytes."""

    def __init__(self) -> None:
        self.encoder = import_constriction().stream.queue.RangeEncoder()
        self.coin = categorical(np.full(2, TOTAL // 2))

    def write(self, symbols: np.ndarray, table: WeightTable) -> None:
        """Append symbols of one table, and then what those cost that are beyond it."""
        last = table.last
        outside = np.abs(symbols) > last
        self.encoder.encode(np.where(outside, 2 * last + 1, symbols + last).astype(np.int32), table.model)
        for symbol in symbols[outside].tolist():
            excess = 2 * (abs(symbol) - last - 1) + (symbol < 0) + 1  # Elias' gamma code of a positive number
            length = excess.bit_length()
            if length > LONGEST_ESCAPE:
                raise ValueError(f"symbol {symbol} is out of the range of the code")
            bits = [0] * (length - 1) + [excess >> place & 1 for place in reversed(range(length))]
            self.encoder.encode(np.array(bits, dtype=np.int32), self.coin)

    def finish(self) -> bytes:
        """All that was written, in as few bytes as tell it: a reader takes what is missing for zeros."""
        words = [int(word) for word in self.encoder.get_compressed()]
        if not words:
            return b""
        # The last word may be any that leads into the coder's interval: take the one with the most zeros at its end.
        _, (lower, width) = self.encoder.pos()
        above = (words[-1] << 32) - lower & 2**64 - 1  # the word of constriction, above the lower end
        highest = min(words[-1] + (width - above - 1 >> 32), 2**32 - 1) if above < width else words[-1]
        kept = 4
        for dropped in (1, 2, 3, 4):
            candidate = -(-words[-1] >> 8 * dropped) << 8 * dropped
            if candidate <= highest:
                kept, words[-1] = 4 - dropped, candidate
        return b"".join(word.to_bytes(4, "big") for word in words)[: 4 * (len(words) - 1) + kept]


class SymbolReader:
    """The same bytes to the same symbols; whatever else they are is CodecError."""

    def __init__(self, payload: bytes) -> None:
        words = np.frombuffer(payload + bytes(-len(payload) % 4), dtype=">u4").astype(np.uint32)
        self.decoder = import_constriction().stream.queue.RangeDecoder(words)
        self.coin = categorical(np.full(2, TOTAL // 2))
        self.payload, self.again = payload, SymbolWriter()

    def read(self, count: int, table: WeightTable) -> np.ndarray:
        """The next symbols, of one table."""
        symbols = self._decoded(table.model, count).astype(np.int64) - table.last
        for place in np.flatnonzero(symbols > table.last).tolist():
            length = 1
            while not self._decoded(self.coin, 1)[0]:
                length += 1
                if length > LONGEST_ESCAPE:
                    raise CodecError("the file is damaged: a symbol of it is out of the range of the code")
            excess = 1
            for bit in self._decoded(self.coin, length - 1).tolist():
                excess = 2 * excess + bit
            beyond = table.last + 1 + (excess - 1) // 2
            symbols[place] = -beyond if (excess - 1) % 2 else beyond
        self.again.write(symbols, table)
        return symbols

    def check_end(self) -> None:
        """Raise CodecError unless these are the bytes that a writer makes of the symbols that were read: no others."""
        if self.again.finish() != self.payload:
            raise CodecError("the file is damaged: no encoder writes its symbols so")

    def _decoded(self, model: Any, count: int) -> np.ndarray:
        try:
            found: np.ndarray = self.decoder.decode(model, count)
        except (AssertionError, ValueError) as error:  # what constriction raises for words that no encoder wrote
            raise CodecError("the file is damaged: its symbols cannot be decoded") from error
        return found
