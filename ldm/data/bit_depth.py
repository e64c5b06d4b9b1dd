"""Converts pixels to the bit depth of a data set, and composites transparency and converts color there.

Values of depth uint8 and uint16 go from 0, black, to their largest, white; those of depth float32 from -1 to 1.
"""

import numpy as np

from ldm.data.config import DataConfig

Color = tuple[int, int, int]


def to_bit_depth(values: np.ndarray, config: DataConfig, *, bytes_too: bool = False) -> np.ndarray:
    """The values of a file at the depth of the data set, rounded to the nearest level.

    uint8 is 0 to 255. Wider integers are 16 bits, 0 to 65535. Floats lie in `config.value_range`; with `bytes_too`, and
    where that is 0 to 1, floats above 1 mean 0 to 255, except at depth float32. Raises ValueError for other values.
    """
    depth = np.dtype(config.depth)
    if values.dtype.kind == "f":
        return _of_fractions(_fractions(values, config, bytes_too), depth)
    if values.dtype != np.uint8:
        values = _sixteen_bits(values)
    if depth.kind == "f":
        return values.astype(depth) / depth.type(np.iinfo(values.dtype).max / 2) - depth.type(1)
    if depth == values.dtype:
        return values
    if depth == np.uint16:
        return values.astype(depth) * depth.type(257)
    return ((values.astype(np.uint32) + 128) // 257).astype(depth)


def with_channels(color: np.ndarray, alpha: np.ndarray | None, config: DataConfig) -> np.ndarray:
    """RGB [3, height, width] and alpha [1, height, width], or None for opaque, in the channels of the data set.

    One and three channels are laid on the background, two and four keep their alpha. Gray is the luma of ITU-R 601,
    taken after that.
    """
    if config.channels in (1, 3) and alpha is not None:
        color = _laid_on(config.background, color, alpha)
    if config.channels in (1, 2):
        color = _luma(color)
    if config.channels in (1, 3):
        return np.ascontiguousarray(color)
    opaque = 1 if color.dtype.kind == "f" else np.iinfo(color.dtype).max
    return np.concatenate([color, np.full_like(color[:1], opaque) if alpha is None else alpha])


def _fractions(values: np.ndarray, config: DataConfig, bytes_too: bool) -> np.ndarray:
    """Floats as fractions of the way from black to white."""
    low, high = config.value_range
    values = values if values.dtype.itemsize >= 4 else values.astype(np.float32)  # 65535 is infinite in float16
    least, most = values.min(), values.max()
    if bytes_too and (low, high) == (0, 1) and most > 1 and config.depth != "float32":
        high = 255.0
    if least >= low and most <= high:
        return (values - low) / (high - low)
    finite = values[np.isfinite(values)]
    found = f"from {finite.min():g} to {finite.max():g}" if finite.size else "without a finite one"
    if 0 < finite.size < values.size:
        found += ", and NaN or infinite ones"
    allowed = "0 to 1 or in 0 to 255" if high == 255 else f"data.value_range, {low:g} to {high:g}"
    raise ValueError(f"float pixels {found}; they must lie in {allowed}")


def _of_fractions(fractions: np.ndarray, depth: np.dtype) -> np.ndarray:
    if depth.kind == "f":
        return (2 * fractions - 1).astype(depth)
    return np.rint(fractions * np.iinfo(depth).max).astype(depth)


def _sixteen_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "ui" or values.dtype.itemsize < 2:
        raise ValueError(f"pixels of type {values.dtype}; uint8, uint16 and floats are read")
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"integer pixels from {low} to {high}; they must lie in 0 to 65535")
    return values.astype(np.uint16)


def _laid_on(background: Color, color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Straight alpha, α color + (1 - α) background; integers are rounded exactly, in sums of twice their bits."""
    behind = np.array(background)[:, None, None]
    if color.dtype.kind == "f":
        opacity = (alpha + 1) / 2
        return (opacity * color + (1 - opacity) * (behind / 127.5 - 1)).astype(color.dtype)
    full, wide = np.iinfo(color.dtype).max, np.dtype(f"u{2 * color.itemsize}")
    opacity, behind = alpha.astype(wide), (behind * (full // 255)).astype(wide)
    return ((color * opacity + behind * (full - opacity) + full // 2) // full).astype(color.dtype)


def _luma(color: np.ndarray) -> np.ndarray:
    """ITU-R 601: Y = 0.299 R + 0.587 G + 0.114 B, as [1, height, width]; rounded for integers."""
    if color.dtype.kind == "f":
        red, green, blue = color.astype(np.float64)
        return (0.299 * red + 0.587 * green + 0.114 * blue).astype(color.dtype)[None]
    red, green, blue = color.astype(np.uint32)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(color.dtype)[None]
