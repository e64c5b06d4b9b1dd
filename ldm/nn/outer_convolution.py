"""The convolutions at the ends of a network."""

from torch import nn


class OuterConv2d(nn.Conv2d):
    """A convolution that faces images or latents on one of its sides: Muon leaves it to AdamW, however wide it is."""
