"""The range coder has exactly the weights it is given, and answers foreign bytes with one kind of error."""

import sys

import constriction
import numpy as np
import pytest

from ldm.entropy.categorical import TOTAL, categorical
from ldm.entropy.range_coder import SymbolReader, SymbolWriter
from ldm.entropy.tables import MASS, WeightTable, weights_of
from ldm.errors import CodecError, ConfigError

BITS = 24


def some_weights(rng: np.random.Generator) -> np.ndarray:
    """Of an even number of symbols, some of them very sure or hardly possible."""
    count = 2 * int(rng.integers(2, 200))
    masses = np.floor(rng.dirichlet(np.full(count, 10 ** rng.uniform(-2, 1))) * MASS).astype(np.int64)
    masses[-1] += MASS - masses.sum()
    return weights_of(masses)


def table_of(weights: np.ndarray) -> WeightTable:
    return WeightTable(weights, lambda: np.zeros(len(weights) - 1))


def reference_words(symbols: np.ndarray, weights: np.ndarray) -> list[int]:
    """An asymmetric numeral system of 64 bits with words of 32 (Duda 2013), in Python's integers."""
    starts = np.concatenate([[0], np.cumsum(weights)]).tolist()
    state, words = 0, []
    for symbol in symbols[::-1].tolist():
        weight = int(weights[symbol])
        if state >> (64 - BITS) >= weight:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // weight << BITS) + starts[symbol] + state % weight
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return words


def test_constriction_has_our_integer_weights_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        weights = some_weights(rng)
        symbols = rng.integers(0, len(weights), 100).astype(np.int32)
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, categorical(weights))
        assert coder.get_compressed().tolist() == reference_words(symbols, weights)


def test_symbols_come_back_escapes_too_and_cost_what_the_weights_say() -> None:
    rng = np.random.default_rng(1)
    for count in [0, 1, 2, 3, 50, 400] * 8:
        weights = some_weights(rng)
        table, chances = table_of(weights), weights[:-1] / weights[:-1].sum()
        symbols = rng.choice(len(weights) - 1, count, p=chances) - table.last
        bits = table.bits[symbols + table.last].sum()
        beyond = rng.integers(-(10**6), 10**6, 3) if count == 50 else np.zeros(0, dtype=np.int64)
        writer = SymbolWriter()
        writer.write(symbols, table)
        writer.write(beyond, table)
        payload = writer.finish()
        assert count == 50 or bits - 32 <= 8 * len(payload) <= bits + 40
        reader = SymbolReader(payload)
        assert reader.read(count, table).tolist() == symbols.tolist()
        assert reader.read(len(beyond), table).tolist() == beyond.tolist()
        reader.check_end()


def test_bytes_that_no_writer_wrote_are_an_error_of_the_file() -> None:
    rng = np.random.default_rng(2)
    table = table_of(some_weights(rng))
    for _ in range(300):
        reader = SymbolReader(rng.bytes(int(rng.integers(0, 40))))
        with pytest.raises(CodecError):
            reader.read(100, table)
            reader.check_end()


def test_what_is_appended_is_noticed() -> None:
    table = table_of(some_weights(np.random.default_rng(3)))
    writer = SymbolWriter()
    writer.write(np.zeros(40, dtype=np.int64), table)
    for more in (b"\0", b"\0\0\0\0", b"x" * 9):
        reader = SymbolReader(writer.finish() + more)
        reader.read(40, table)
        with pytest.raises(CodecError, match="no encoder"):
            reader.check_end()


@pytest.mark.parametrize("weights", [[TOTAL], [0, TOTAL], [-1, TOTAL + 1], [1, 1], [1.0, TOTAL - 1.0]])
def test_rust_panic_of_constriction_is_never_reached(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="positive integers"):
        categorical(np.array(weights))


def test_a_missing_constriction_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ConfigError, match=r"pip install 'latent-diffusion-trainer\[compression\]'"):
        SymbolWriter()
