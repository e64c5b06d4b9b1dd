"""EMA: power-function averages of the weights, whose memory is a fixed fraction of the run so far."""

import torch
from torch import Tensor

SIGMA_RELS = ("0.05", "0.10")


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """The gamma of Karras et al. 2024 (EDM2), equation 123: the power profile with this relative standard deviation."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        too_long = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > sigma_rel**2
        low, high = (middle, high) if too_long else (low, middle)
    return low


class PowerEMA:
    """Two power-function averages (EDM2, section 3.1): average_t = beta_t average + (1 - beta_t) weights, with
    beta_t = (1 - 1/t) ** (gamma + 1).

    The first update copies the weights, so that short runs need no warm-up constant.
    """

    def __init__(self, parameters: list[Tensor]):
        self.parameters = parameters
        self.averages = {sigma_rel: [p.detach().clone() for p in parameters] for sigma_rel in SIGMA_RELS}
        self.exponents = {sigma_rel: gamma_from_sigma_rel(float(sigma_rel)) + 1 for sigma_rel in SIGMA_RELS}

    @torch.no_grad()
    def update(self, step: int, all_finite: Tensor) -> None:
        """Take in the weights after update number `step` (from 1); nothing changes where `all_finite` is 0."""
        count = len(self.parameters)
        both = [average for sigma_rel in SIGMA_RELS for average in self.averages[sigma_rel]]
        moves = torch._foreach_sub(self.parameters * len(SIGMA_RELS), both)
        for place, sigma_rel in enumerate(SIGMA_RELS):
            share = all_finite * (1 - (1 - 1 / step) ** self.exponents[sigma_rel])
            torch._foreach_mul_(moves[place * count : (place + 1) * count], share)
        torch._foreach_add_(both, moves)
