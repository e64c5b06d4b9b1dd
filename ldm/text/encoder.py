"""The contract of text encoders, and which one a reference means."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ldm.errors import CheckpointError
from ldm.text.static_encoder import StaticEncoder, is_static, open_static, open_wordllama
from ldm.text.transformers_encoder import open_transformers

WORDLLAMA = "wordllama"


class TextEncoder(Protocol):
    """A frozen text encoder."""

    @property
    def width(self) -> int:
        """Of a token."""

    @property
    def sha256(self) -> str:
        """Of all that its tokens depend on."""

    @property
    def is_small(self) -> bool:
        """Whether an export brings it along."""

    def tokens(self, text: str, length: int) -> Tensor:
        """At most `length` tokens of a text that is not empty, float32, tokens x width; they depend on it alone."""

    def to(self, device: torch.device) -> "TextEncoder":
        """The same, on a device if it computes anything."""

    def save(self, folder: Path) -> None:
        """Write what `open_encoder` opens again."""


def open_encoder(reference: str) -> TextEncoder:
    """The encoder of that name, in that folder, or of that id on the Hugging Face hub.

    ConfigError if it cannot be reached, which says what to install.
    """
    if reference == WORDLLAMA:
        return open_wordllama()
    folder = Path(reference).expanduser()
    return open_static(folder) if is_static(folder) else open_transformers(reference)


def encoded(encoder: TextEncoder, texts: Sequence[str], length: int) -> Tensor:
    """The tokens of texts, texts x length x width in float16, NaN behind the last one; an empty text has none.

    CheckpointError for numbers that are not finite there.
    """
    found = torch.full((len(texts), length, encoder.width), torch.nan, dtype=torch.float16)
    for row, text in zip(found, texts, strict=True):
        if text.strip():
            tokens = encoder.tokens(text, length).half().cpu()
            if not tokens.isfinite().all():
                raise CheckpointError(f"the text encoder gives numbers for {text!r:.80} that float16 cannot hold")
            row[: len(tokens)] = tokens
    return found


__all__ = ["WORDLLAMA", "StaticEncoder", "TextEncoder", "encoded", "open_encoder"]
