"""QK normalization of attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QKNorm(nn.Module):
    """Queries and keys of each head divided by their root mean square, and scaled by channel (Henry et al. 2020).

    Their products are bounded then, and attention cannot saturate (Dehghani et al. 2023, for vision transformers). They
    come as ... x positions x channels of a head.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query_scale, self.key_scale = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.ones(channels))

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return rms_normed(query, self.query_scale), rms_normed(key, self.key_scale)


def rms_normed(x: Tensor, scale: Tensor) -> Tensor:
    """RMS norm in the precision of `x`: under autocast the scale is wider, and fused kernels take no such pair."""
    return F.rms_norm(x, scale.shape, scale.to(x.dtype), 1e-6)
