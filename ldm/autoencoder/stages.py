"""What trains when: the parts of an autoencoder that can be trained by themselves, and their turns in a run."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

from torch import Tensor

from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.config import StageConfig
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.networks.mlp import MLPNetwork
from ldm.errors import ConfigError
from ldm.shapes import Images, full_precision

SIDES = {"encoder": ("network.encoder.", "network.quant_conv."), "decoder": ("network.decoder.", "network.post_quant_")}


class Part(Protocol):
    """An autoencoder, or one layer of it."""

    has_code: bool  # whether what its encoder ends in is the autoencoder's code, with the bottleneck

    def below(self, images: Images) -> Tensor:
        """What the part is given."""
        ...

    def encode(self, inputs: Tensor, hidden: Tensor | None) -> tuple[Tensor, Posterior]:
        """What the encoder makes of it, and the posterior."""
        ...

    def decode(self, code: Tensor, hidden: Tensor | None = None) -> Tensor:
        """What the part gives back."""
        ...


class Whole:
    """All of an autoencoder."""

    has_code = True

    def __init__(self, autoencoder: Autoencoder):
        self.autoencoder = autoencoder

    def below(self, images: Images) -> Tensor:
        """The images."""
        return images

    def encode(self, inputs: Tensor, hidden: Tensor | None) -> tuple[Tensor, Posterior]:
        """As the autoencoder does."""
        autoencoder = self.autoencoder
        moments = autoencoder.network.encode(inputs, hidden)
        return moments, autoencoder.bottleneck(moments).standardized(autoencoder.latent_mean, autoencoder.latent_std)

    def decode(self, code: Tensor, hidden: Tensor | None = None) -> Tensor:
        """As the autoencoder does."""
        return self.autoencoder.decode(code, hidden)


class Layer:
    """One layer of a fully connected autoencoder, numbered from the image; with the bottleneck, if it is the last one.

    It gives back what it was given, or, through the layers below it, the images (Bengio et al. 2007).
    """

    def __init__(self, autoencoder: Autoencoder, layer: int, *, to_images: bool):
        self.autoencoder, self.network, self.layer, self.to_images = autoencoder, autoencoder.network, layer, to_images
        self.has_code = layer == len(self.network.encoder)

    def below(self, images: Images) -> Tensor:
        """What the layers below make of the images."""
        return full_precision(self.network.below(self.layer, images)).detach()

    def encode(self, inputs: Tensor, hidden: Tensor | None) -> tuple[Tensor, Posterior]:
        """Of the layers below the last one, the code is a point."""
        moments = self.network.encode_layer(self.layer, inputs)
        return moments, self.autoencoder.bottleneck(moments) if self.has_code else Posterior.point(
            full_precision(moments)
        )

    def decode(self, code: Tensor, hidden: Tensor | None = None) -> Tensor:
        """What was given, or an image."""
        x = self.autoencoder.unit_norm_scaled(code) if self.has_code else code
        for layer in range(self.layer, 0 if self.to_images else self.layer - 1, -1):
            x = self.network.decode_layer(layer, x)
        return full_precision(x)


class Schedule:
    """The stages of a run of `steps`, each over its share of them; without any, one that trains everything.

    Raises ConfigError for a stage that trains nothing, has no step, or names a layer that is not there.
    """

    def __init__(self, autoencoder: Autoencoder, stages: Sequence[StageConfig], steps: int):
        self.stages = list(stages) or [StageConfig()]
        whole = sum(stage.share for stage in self.stages)
        self.ends = [round(steps * share / whole) for share in accumulate(stage.share for stage in self.stages)]
        learning = {name: each for name, each in autoencoder.named_parameters() if each.requires_grad}
        self.parts: list[Part] = []
        self.learning: list[list[Any]] = []  # the parameters of each stage
        self.everything = list(learning.values())
        for number, (stage, window) in enumerate(zip(self.stages, pairwise([0, *self.ends]), strict=True)):
            self.parts.append(part_of(autoencoder, stage, f"objective.stages.{number}"))
            self.learning.append([each for name, each in learning.items() if self.trains(number, name)])
            if not self.learning[-1]:
                raise ConfigError(f"objective.stages.{number} trains nothing: its {stage.trains} is frozen or empty")
            if stages and window[0] == window[1]:
                raise ConfigError(f"objective.stages.{number} has no step of the {steps}: give it a larger share")

    def trains(self, number: int, name: str) -> bool:
        """Whether a stage trains the parameter of this name."""
        stage = self.stages[number]
        if name.startswith("head."):
            return stage.classification and not stage.layer
        if stage.layer and not name.startswith(tuple(f"{side[0]}{stage.layer - 1}." for side in SIDES.values())):
            return False
        if stage.trains == "all":
            return True
        is_encoder = name.startswith(SIDES["encoder"])
        return is_encoder == (stage.trains == "encoder")

    def number(self, step: int) -> int:
        """Which stage step number `step`, from 0, belongs to."""
        return min(bisect_right(self.ends, step), len(self.ends) - 1)

    def window(self, step: int) -> tuple[int, int]:
        """The first step of this one's stage, and the first one after it."""
        number = self.number(step)
        return ([0, *self.ends][number], self.ends[number])

    def enter(self, step: int) -> tuple[StageConfig, Part]:
        """The stage of this step and its part; what others train is frozen, and what this one trains is not."""
        number = self.number(step)
        if len(self.stages) > 1 or self.stages[0] != StageConfig():
            learning = {id(each) for each in self.learning[number]}
            for each in self.everything:
                each.requires_grad_(id(each) in learning)
        return self.stages[number], self.parts[number]


def part_of(autoencoder: Autoencoder, stage: StageConfig, name: str) -> Part:
    """What a stage is about, or ConfigError."""
    if not stage.layer:
        return Whole(autoencoder)
    if not isinstance(autoencoder.network, MLPNetwork):
        raise ConfigError(f"{name}.layer {stage.layer} needs autoencoder.network.kind linear or mlp")
    layers = len(autoencoder.network.encoder)
    if stage.layer > layers:
        raise ConfigError(f"{name}.layer {stage.layer} is not there: the network has {layers}")
    return Layer(autoencoder, stage.layer, to_images=stage.target == "images")
