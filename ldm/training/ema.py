"""EMA: power-function averages of the weights, whose memory is a fixed fraction of the run so far."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

SIGMA_RELS = ("0.05", "0.10")


@cache
def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """The gamma of Karras et al. 2024 (EDM2), equation 123: the power profile with this relative standard deviation."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        too_long = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > sigma_rel**2
        low, high = (middle, high) if too_long else (low, middle)
    return low


def ema_share(sigma_rel: str, number: int) -> float:
    """1 - beta_t of update number t (from 1): how much of an average are the newest weights."""
    return 1 - (1 - 1 / number) ** (gamma_from_sigma_rel(float(sigma_rel)) + 1)


def ema_shares(number: int) -> list[float]:
    """The shares of all averages in update number `number` (from 1)."""
    return [ema_share(sigma_rel, number) for sigma_rel in SIGMA_RELS]


class PowerEMA:
    """Two power-function averages (EDM2, section 3.1): average_t = beta_t average + (1 - beta_t) weights, with
    beta_t = (1 - 1/t) ** (gamma + 1).

    The first update copies the weights, so that short runs need no warm-up constant.
    """

    def __init__(self, parameters: list[Tensor]):
        self.parameters = parameters
        self.averages = {sigma_rel: [p.detach().clone() for p in parameters] for sigma_rel in SIGMA_RELS}

    @torch.no_grad()
    def update(self, shares: Sequence[float | Tensor], all_finite: Tensor) -> None:
        """Take in the newest weights with the shares of an update; nothing changes where `all_finite` is 0."""
        count = len(self.parameters)
        both = [average for sigma_rel in SIGMA_RELS for average in self.averages[sigma_rel]]
        moves = torch._foreach_sub(self.parameters * len(SIGMA_RELS), both)
        for place, share in enumerate(shares):
            share = share.to(all_finite.dtype) if isinstance(share, Tensor) else share
            torch._foreach_mul_(moves[place * count : (place + 1) * count], all_finite * share)
        torch._foreach_add_(both, moves)
