"""Training stages: which part of an autoencoder trains when, for greedy layer-wise training and fine-tuning."""

from collections.abc import Hashable, Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from ldm.autoencoder.bottleneck import Code, Posterior
from ldm.autoencoder.config import StageConfig
from ldm.autoencoder.model import Autoencoder
from ldm.errors import ConfigError
from ldm.randomness import StepRandom
from ldm.shapes import Images, full_precision

SIDES = {"encoder": ("network.encoder.", "network.quant_conv."), "decoder": ("network.decoder.", "network.post_quant_")}


class Stage:
    """A stage that trains the autoencoder as a whole; its subclass trains one layer.

    `has_code` says whether its encoder ends in the autoencoder's code, `reads_classes` whether the classification head
    is trained.
    """

    has_code = True

    def __init__(self, config: StageConfig, autoencoder: Autoencoder):
        self.config, self.autoencoder = config, autoencoder
        self.is_whole = config.layer == 0
        self.reads_classes = config.classification and self.is_whole

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width, in elements of the stage's input, of what is hidden together as a patch."""
        return (1, 1) if self.config.layer > 1 else self.autoencoder.network.downsampling

    def input(self, images: Images) -> Tensor:
        """What the stage is trained on: the images, or what the layers below make of them."""
        return images

    def encode(self, inputs: Tensor, hidden: Tensor | None, rng: StepRandom) -> tuple[Tensor, Code]:
        """The encoder's output and the code."""
        moments = self.autoencoder.network.encode(self.autoencoder.cast(inputs), hidden)
        return moments, self.autoencoder.code(moments, rng)

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The reconstruction of the stage's input, or of the images."""
        return self.autoencoder.decode(latents, hidden)

    def trains(self, name: str) -> bool:
        """Whether it trains the parameter of this name."""
        if name.startswith("head."):
            return self.reads_classes
        if self.config.trains == "all":
            return True
        return name.startswith(SIDES["encoder"]) == (self.config.trains == "encoder")


class LayerStage(Stage):
    """A stage about one layer of a fully connected autoencoder, numbered from the image; the last has the bottleneck.

    It gives back its own input, or, through the layers below it, the images (Bengio et al. 2007).
    """

    def __init__(self, config: StageConfig, autoencoder: Autoencoder):
        super().__init__(config, autoencoder)
        self.network, self.layer = autoencoder.network, config.layer
        self.has_code = self.layer == self.network.layers

    def input(self, images: Images) -> Tensor:
        return full_precision(self.network.layer_input(self.layer, self.autoencoder.cast(images))).detach()

    def encode(self, inputs: Tensor, hidden: Tensor | None, rng: StepRandom) -> tuple[Tensor, Code]:
        moments = self.network.encode_layer(self.layer, self.autoencoder.cast(inputs))
        if self.has_code:
            return moments, self.autoencoder.bottleneck(moments, rng)
        output = full_precision(moments)
        return moments, Code(output, Posterior(output))

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = self.autoencoder.cast(self.autoencoder.unit_norm_scaled(latents) if self.has_code else latents)
        lowest = 1 if self.config.target == "images" else self.layer
        for layer in range(self.layer, lowest - 1, -1):
            x = self.network.decode_layer(layer, x)
        return full_precision(x)

    def trains(self, name: str) -> bool:
        own = tuple(f"{side[0]}{self.layer - 1}." for side in SIDES.values())
        return name.startswith(own) and super().trains(name)


class StageSchedule:
    """The stages of a run of `steps`, each over its fraction of them; without any, one that trains everything.

    Raises ConfigError for a stage that trains nothing, has no step, or names a layer that is not there.
    """

    def __init__(self, autoencoder: Autoencoder, configs: Sequence[StageConfig], steps: int):
        self.autoencoder = autoencoder
        self.stages = [
            create_stage(config, autoencoder, f"objective.stages.{number}")
            for number, config in enumerate(configs or [StageConfig()])
        ]
        fractions = [stage.config.fraction for stage in self.stages]
        self.ends = [round(steps * sum_so_far / sum(fractions)) for sum_so_far in accumulate(fractions)]
        self.trainable = {name: each for name, each in autoencoder.named_parameters() if each.requires_grad}
        self.freezes = list(configs) not in ([], [StageConfig()])
        for number, (stage, (first, end)) in enumerate(zip(self.stages, pairwise([0, *self.ends]), strict=True)):
            if not any(stage.trains(name) for name in self.trainable):
                raise ConfigError(
                    f"objective.stages.{number} trains nothing: its {stage.config.trains} is frozen or empty"
                )
            if configs and first == end:
                raise ConfigError(f"objective.stages.{number} has no step of the {steps}: give it a larger fraction")

    def number(self, step: int) -> int:
        """Which stage step number `step`, from 0, belongs to."""
        return min(sum(end <= step for end in self.ends), len(self.ends) - 1)

    def at(self, step: int) -> Stage:
        """The stage of a step."""
        return self.stages[self.number(step)]

    def window(self, step: int) -> tuple[int, int]:
        """The first step of this one's stage, and the first one after it: the learning rate's schedule."""
        number = self.number(step)
        return ([0, *self.ends][number], self.ends[number])

    def phase(self, step: int) -> Hashable:
        """Its stage."""
        return self.number(step)

    def begin_step(self, step: int) -> None:
        """Freeze what other stages train, thaw what this one trains; at its first step all units count as alive."""
        stage = self.at(step)
        if self.freezes:
            for name, parameter in self.trainable.items():
                parameter.requires_grad_(stage.trains(name))
        if stage.has_code and step == self.window(step)[0]:
            self.autoencoder.bottleneck.reset_usage(step)


def create_stage(config: StageConfig, autoencoder: Autoencoder, name: str) -> Stage:
    """The stage that a config describes, or ConfigError."""
    if not config.layer:
        return Stage(config, autoencoder)
    layers = autoencoder.network.layers
    if not layers:
        raise ConfigError(f"{name}.layer {config.layer} needs autoencoder.network.kind linear or mlp")
    if config.layer > layers:
        raise ConfigError(f"{name}.layer {config.layer} is not there: the network has {layers}")
    return LayerStage(config, autoencoder)
