"""constriction's categorical distribution of integer weights, exactly.

constriction takes probabilities as floats, adds the least weight to each symbol's share of the rest, and rounds down:
of the weights less one, which sum to 2^24 less the number of symbols, it makes these very weights again. All numbers on
the way are integers below 2^24, which float64 and float32 hold, so that nothing is rounded. A reference coder in the
tests agrees word for word.
"""

from typing import Any

import numpy as np

from ldm.errors import ConfigError

TOTAL = 2**24  # of the weights: the precision of constriction's coders


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
