"""Self-attention over the positions of a feature map."""

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.convolution import group_norm, zeroed
from ldm.nn.qk_norm import QKNorm


class SelfAttention(nn.Module):
    """Multi-head attention of every position to every other, beside a skip; the output starts at zero.

    There are as many heads as divide `channels` and have at least `head_channels` each, or one. With `qk_norm` queries
    and keys are normalized.
    """

    def __init__(self, channels: int, head_channels: int, *, qk_norm: bool = False):
        super().__init__()
        most = max(channels // head_channels, 1)
        self.heads = next(heads for heads in range(most, 0, -1) if channels % heads == 0)
        self.norm = group_norm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.qk_norm = QKNorm(channels // self.heads) if qk_norm else None
        self.to_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = self.to_qkv(self.norm(x)).view(batch, 3, self.heads, channels // self.heads, height * width)
        qkv = parts.permute(1, 0, 2, 4, 3)
        if prefers_contiguous(qkv):
            qkv = qkv.contiguous()
        query, key, value = qkv.unbind()
        if self.qk_norm is not None:
            query, key = self.qk_norm(query, key)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.to_out(attended.transpose(2, 3).reshape(batch, channels, height, width))


def prefers_contiguous(qkv: Tensor) -> bool:
    """Whether attention is faster on a contiguous copy of queries, keys and values, which alone has fused kernels.

    On GPUs it is. On CPUs it was measured faster in float32 (up to a third at 32 x 32 positions, even at 16 x 16), and
    slower in bfloat16 where the CPU has instructions for that.
    """
    return qkv.is_cuda or qkv.dtype.itemsize >= 4
