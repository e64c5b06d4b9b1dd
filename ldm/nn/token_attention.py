"""Attention of a transformer's tokens, to each other and to the words of a text."""

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.positions import rotated
from ldm.nn.qk_norm import QKNorm


class TokenAttention(nn.Module):
    """Multi-head attention, batch x positions x width, to other tokens or, where none are given, to each other.

    `angles` are those of `rotary_angles`: they turn queries and keys by their positions.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, source_channels: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width if source_channels is None else source_channels, 2 * width)
        self.qk_norm = QKNorm(width // heads) if qk_norm else None
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor | None = None, angles: Tensor | None = None) -> Tensor:
        key, value = self.to_key_value(x if source is None else source).chunk(2, dim=-1)
        query, key, value = (self.by_head(part) for part in (self.to_query(x), key, value))
        if self.qk_norm is not None:
            query, key = self.qk_norm(query, key)
        if angles is not None:
            query, key = rotated(query, angles), rotated(key, angles)
        attended = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return out

    def by_head(self, x: Tensor) -> Tensor:
        """batch x positions x width -> batch x heads x positions x channels of a head."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
