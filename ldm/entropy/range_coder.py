"""Range coding with integer weights, by constriction, and universal codes for what no table holds."""

from typing import Any

import numpy as np

from ldm.entropy.categorical import TOTAL, categorical, import_constriction
from ldm.entropy.tables import WeightTable
from ldm.errors import CodecError

LONGEST_ESCAPE = 30  # bits


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
