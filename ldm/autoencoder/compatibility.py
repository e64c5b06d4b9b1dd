"""Whether what is asked of an autoencoder can be asked of it: what two sections of a config must agree on."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from ldm.autoencoder.config import ReconstructionObjectiveConfig, StageConfig
from ldm.corruption import Mask, incompatibility
from ldm.errors import ConfigError


def check_compatibility(autoencoder: Any, config: ReconstructionObjectiveConfig, classes: int) -> None:
    """Raise ConfigError, in one line, for the first thing that does not fit."""
    image = autoencoder.saved_config.get("image")
    for problem in problems(autoencoder, config, classes, tuple(image) if image else None):
        raise ConfigError(problem)


def problems(
    autoencoder: Any, config: ReconstructionObjectiveConfig, classes: int, image: tuple[int, int, int] | None
) -> Iterator[str]:
    """What does not fit, in words; without an `image` shape, only what can be known without one."""
    yield from problems_of_corruptions(autoencoder, config, image)
    for name, penalty in config.penalties.chosen.items():
        if wrong := penalty.incompatibility(autoencoder, classes):
            yield f"objective.penalties.{name} {wrong}"
    yield from problems_of_losses(autoencoder.network, config)
    yield from problems_of_stages(autoencoder, config)
    if config.target == "normalized-patches" and autoencoder.is_autoencoder_kl:
        yield (
            "objective.target normalized-patches makes an autoencoder that gives no images, and an AutoencoderKL is"
            " expected to: use another autoencoder.network.kind, or a bottleneck other than gaussian"
        )
    if image and copies(autoencoder, config, image):
        numbers = math.prod(autoencoder.numbers(image[1:]))
        yield (
            f"the code of {numbers} numbers holds all {math.prod(image)} of the image, so that copying is the best"
            f" answer: lower autoencoder.bottleneck.channels {autoencoder.latent_channels} (or k), or give a corruption"
            " or a penalty"
        )


def problems_of_corruptions(
    autoencoder: Any, config: ReconstructionObjectiveConfig, image: tuple[int, int, int] | None
) -> Iterator[str]:
    """Corruptions that these images, layers or latents cannot undergo."""
    network = autoencoder.network
    places = [("objective", StageConfig(corruption=config.corruption))]
    places += [(f"objective.stages.{number}", stage) for number, stage in enumerate(config.stages)]
    for name, stage in places:
        corruption = stage.corruption
        if (
            image
            and corruption
            and stage.layer < 2
            and (wrong := incompatibility(corruption, image[1:], network.downsampling))
        ):
            yield f"{name}.corruption.{wrong}"
        if hasattr(network, "mask_token") and (wrong := mask_problem(corruption, network.downsampling)):
            yield f"{name}.corruption {wrong}"
        if stage.layer > 1 and isinstance(corruption, Mask) and corruption.unit == "patch":
            yield f"{name}.corruption.unit patch is for images, and layer {stage.layer} has none: use element"
    is_sigmoid = getattr(autoencoder.bottleneck, "activation", "") == "sigmoid"
    if hasattr(network, "mask_token") and is_sigmoid and hides_patches(config):
        yield "autoencoder.bottleneck.activation sigmoid is 0.5, and not 0, where kind vit hides a patch: use relu"
    latent = autoencoder.latent_shape(image[1:]) if image else (0, 0, 0)
    if latent[1] and (wrong := incompatibility(config.latent_corruption, latent[1:], (1, 1))):
        yield f"objective.latent_corruption.{wrong}"
    if config.emphasis is None:
        return
    if not any(stage.corruption for _, stage in places):
        yield "objective.emphasis is for elements that a corruption touched, and objective.corruption is null"
    elif not any(getattr(stage.corruption, "is_local", False) for _, stage in places):
        yield "objective.emphasis is for corruptions that touch some elements only: mask and salt-and-pepper"
    if any(stage.layer > 1 and stage.target == "images" for _, stage in places):
        yield "objective.emphasis is for what was corrupted, and a layer that gives images back was given none"


def problems_of_stages(autoencoder: Any, config: ReconstructionObjectiveConfig) -> Iterator[str]:
    """Stages that would not do what they say."""
    kind = autoencoder.saved_config.get("network", {}).get("kind", "stock")
    tied = getattr(autoencoder.network.config, "tied", False) if hasattr(autoencoder.network, "settings") else False
    for number, stage in enumerate(config.stages):
        name = f"objective.stages.{number}"
        if tied and stage.trains != "all":
            yield f"{name}.trains {stage.trains} cannot be: autoencoder.network.tied makes one matrix of both sides"
        if config.distance == "gaussian" and stage.layer > 1 and stage.target == "below":
            yield f"objective.distance gaussian is for images, and {name}.layer {stage.layer} gives none: use mse"
    if config.stages and kind != "stock" and all(stage.trains == "decoder" for stage in config.stages):
        yield "objective.stages would leave the encoder as random as it begins: one of them must train it"


def problems_of_losses(network: Any, config: ReconstructionObjectiveConfig) -> Iterator[str]:
    """Judges of images where there are none, or where they cannot judge them."""
    normalized, sees = config.target == "normalized-patches", config.perceptual or config.discriminator
    if normalized and sees:
        yield "objective.perceptual and .discriminator judge images, and normalized patches are none: leave them out"
    if normalized and math.prod(network.downsampling) * network.image_channels < 2:
        yield "objective.target normalized-patches needs patches of more than one value"
    if any(stage.layer for stage in config.stages) and sees:
        yield "objective.perceptual and .discriminator judge images, and a stage about one layer has none: leave them out"
    if (
        config.discriminator is not None
        and config.discriminator.adaptive
        and not isinstance(network.output_layer, nn.Conv2d)
    ):
        yield "objective.discriminator.adaptive needs a convolution that makes the image: set it to false"
    if config.equivariance is None:
        return
    if hasattr(network, "image") or hasattr(network, "mask_token"):
        yield "objective.equivariance needs a convolutional network, which has a latent for a smaller image"
    if config.emphasis is not None or config.penalties.aux_k:
        yield "objective.equivariance changes the image that is asked for: leave out .emphasis and .penalties.aux_k"


def hides_patches(config: ReconstructionObjectiveConfig) -> bool:
    """Whether some corruption of images is a mask of patches."""
    corruptions = [config.corruption, *(stage.corruption for stage in config.stages if stage.layer < 2)]
    return any(isinstance(each, Mask) and each.unit == "patch" for each in corruptions)


def mask_problem(corruption: Any, downsampling: tuple[int, int]) -> str | None:
    """Why a vision transformer cannot leave out what this corruption hides, if it is a mask of patches."""
    if not isinstance(corruption, Mask) or corruption.unit != "patch":
        return None
    if corruption.patch_sides(downsampling) != downsampling:
        return f"hides patches of {corruption.patch}, and autoencoder.network.patch is {downsampling[0]}"
    if isinstance(corruption.fraction, tuple) or corruption.whole:
        return "must hide as many patches of every image: give one fraction, and no whole images"
    return None


def copies(autoencoder: Any, config: ReconstructionObjectiveConfig, image: tuple[int, int, int]) -> bool:
    """Whether the identity would be the best that could be learned, and could be."""
    numbers, penalties = math.prod(autoencoder.numbers(image[1:])), config.penalties
    holding: list[Any] = [config.corruption, config.latent_corruption, config.equivariance]
    holding += [stage.corruption for stage in config.stages]
    holding += [penalties.l1, penalties.kl_sparsity, penalties.jacobian]
    holding += [autoencoder.bottleneck.is_distribution and config.kl > 0]
    return numbers >= math.prod(image) and not any(holding)
