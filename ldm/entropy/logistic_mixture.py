"""A mixture of logistic distributions per channel: a differentiable entropy model, to train with an autoencoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_SPEED = 4  # of logarithms beside other weights: Adam moves all by its learning rate


class LogisticMixture(nn.Module):
    """`components` logistic distributions for each of `channels`, whose elements are taken to be independent.

    The mass of a cell is a difference of cumulative functions, which is what its symbol costs a range coder (Ballé et
    al. 2018, appendix 6.1, with a mixture in place of their monotone network).
    """

    def __init__(self, channels: int, components: int = 3):
        super().__init__()
        spread = torch.linspace(-1, 1, components) if components > 1 else torch.zeros(1)
        self.weights = nn.Parameter(torch.zeros(channels, components))  # before the softmax
        self.means = nn.Parameter(spread.repeat(channels, 1))
        self.log_scales = nn.Parameter(spread.abs().sub(1.5).repeat(channels, 1) / LOG_SPEED)

    @property
    def scales(self) -> Tensor:
        """Of each logistic distribution, channels x components."""
        return (LOG_SPEED * self.log_scales).exp()

    def nats(self, values: Tensor, cells: Tensor) -> Tensor:
        """-log of the mass within half a cell to each side of `values`, batch x channels x h x w; `cells` as
        these, or channels x 1 x 1.

        sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): no digits cancel, and a value far outside
        still has a gradient, where a difference of cumulative functions has neither.
        """
        scales = self.scales[:, :, None, None]
        distance = (values.unsqueeze(2) - self.means[:, :, None, None]) / scales
        width = cells.unsqueeze(-3) / scales
        mass = F.logsigmoid(distance + width / 2) + F.logsigmoid(width / 2 - distance) + torch.log(-torch.expm1(-width))
        return -torch.logsumexp(mass + (LOG_SPEED * self.weights).log_softmax(1)[:, :, None, None], dim=2)

    @torch.no_grad()
    def initialize(self, mean: Tensor, std: Tensor) -> None:
        """Move and scale what is there, once, to values of this mean and standard deviation per channel."""
        self.means.mul_(std[:, None]).add_(mean[:, None])
        self.log_scales.add_(std.log()[:, None] / LOG_SPEED)

    def cumulative(self, values: Tensor) -> Tensor:
        """The probability of less than each of these values, channels x values."""
        distance = (values.unsqueeze(1) - self.means[:, :, None]) / self.scales[:, :, None]
        return (distance.sigmoid() * (LOG_SPEED * self.weights).softmax(1)[:, :, None]).sum(1)
