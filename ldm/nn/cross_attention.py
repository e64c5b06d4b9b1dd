"""Attention to the tokens of a text: among themselves, and from the positions of a feature map."""

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.convolution import group_norm, zeroed
from ldm.nn.positions import PlaceEmbedding, rotary_angles_of_line
from ldm.nn.token_attention import TokenAttention


class CrossAttention(nn.Module):
    """Multi-head attention of every position of a feature map to every token, beside a skip; the output starts at zero.

    What asks is the normalized feature map plus the embedding of its places. There are as many heads as divide
    `channels` and have at least `head_channels` each, or one.
    """

    def __init__(self, channels: int, token_channels: int, head_channels: int):
        super().__init__()
        self.heads = heads_of(channels, head_channels)
        self.norm = group_norm(channels)
        self.place = PlaceEmbedding(channels)
        self.to_q = nn.Conv2d(channels, channels, 1)
        self.to_kv = nn.Linear(token_channels, 2 * channels)
        self.to_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        places = self.place((height, width)).T.reshape(channels, height, width)
        query = self.to_q(self.norm(x) + places).flatten(2).transpose(1, 2)
        key, value = self.to_kv(tokens).chunk(2, dim=-1)
        attended = attention(query, key, value, self.heads)
        return x + self.to_out(attended.transpose(1, 2).reshape(batch, channels, height, width))


class TokenBlock(nn.Module):
    """A transformer block: self-attention of tokens and a two-layer network, each behind a norm and beside a skip.

    Attention knows of the order of the tokens by rotary positions.
    """

    def __init__(self, channels: int, head_channels: int = 64):
        super().__init__()
        heads = heads_of(channels // 2, head_channels // 2)  # whose channels turn in pairs
        self.head_channels = channels // heads
        self.norms = nn.ModuleList([nn.LayerNorm(channels), nn.LayerNorm(channels)])
        self.attention = TokenAttention(channels, heads, qk_norm=True)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        angles = rotary_angles_of_line(tokens.shape[1], self.head_channels, tokens.device)
        tokens = tokens + self.attention(self.norms[0](tokens), angles=angles)
        mixed: Tensor = tokens + self.mlp(self.norms[1](tokens))
        return mixed


def heads_of(channels: int, head_channels: int) -> int:
    """The most heads that divide `channels` and have at least `head_channels` each, or one."""
    return next(heads for heads in range(max(channels // head_channels, 1), 0, -1) if channels % heads == 0)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention: batch x length x channels, whose channels are cut into heads."""
    split = (each.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous() for each in (query, key, value))
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
