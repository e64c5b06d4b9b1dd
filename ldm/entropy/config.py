"""Entropy models by name, what is known of each, and the settings of fitting one.

(Without torch: what is imported here answers a command line.)
"""

from dataclasses import dataclass
from typing import Annotated

from ldm.config.bounds import AtLeast, Between, Checked, OneOf


@dataclass(frozen=True)
class EntropyModelFacts:
    """What an element of the latent is predicted from, beside its own channel.

    `by_channel`: channel after channel, each from those before it (Minnen and Singh 2020).
    `by_checkerboard`: in two passes, the black squares of a checkerboard and then the white ones from their black
    neighbors (He et al. 2021).
    """

    by_channel: bool
    by_checkerboard: bool

    @property
    def has_context(self) -> bool:
        """Whether a network predicts anything at all."""
        return self.by_channel or self.by_checkerboard

    @property
    def parities(self) -> int:
        """How many passes there are over the positions of a channel."""
        return 2 if self.by_checkerboard else 1

    def passes(self, channels: int) -> list[list[tuple[int, int]]]:
        """The (channel, parity) that are coded together, in the order of coding."""
        whole = [[(channel, parity) for channel in range(channels)] for parity in range(self.parities)]
        if not self.by_channel:
            return whole
        return [[(channel, parity)] for channel in range(channels) for parity in range(self.parities)]


ENTROPY_MODELS = {
    "factorized": EntropyModelFacts(by_channel=False, by_checkerboard=False),
    "channel": EntropyModelFacts(by_channel=True, by_checkerboard=False),
    "checkerboard": EntropyModelFacts(by_channel=False, by_checkerboard=True),
    "channel-checkerboard": EntropyModelFacts(by_channel=True, by_checkerboard=True),
}


@dataclass(frozen=True)
class EntropyModelConfig(Checked):
    """An entropy model and how it is fitted."""

    kind: Annotated[str, OneOf(ENTROPY_MODELS)] = "channel-checkerboard"
    width: Annotated[int, Between(1, 256)] = 32  # hidden units of the network of each channel
    radius: Annotated[int, Between(0, 4)] = 1  # positions to each side that the network sees
    steps: Annotated[int, AtLeast(1)] = 1000  # of the optimizer
    lr: Annotated[float, Between(0, 1, low_is_open=True)] = 5e-3  # peak learning rate
    seed: int = 0
