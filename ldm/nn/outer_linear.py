"""The linear layers at the ends of a network."""

from torch import nn


class OuterLinear(nn.Linear):
    """A linear layer that faces latents, noise level or condition: Muon leaves it to AdamW, however wide it is."""
