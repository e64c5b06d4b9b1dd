"""Cross-section checks of the config: raises ConfigError when network, bottleneck, corruptions, stages and losses do
not fit together.
"""

import math
from collections.abc import Iterator

from torch import nn

from ldm.autoencoder.config import BOTTLENECKS, DISTANCES, ReconstructionObjectiveConfig, StageConfig
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.corruption import Corruption, Mask
from ldm.errors import ConfigError

SHAPE_CODE = ("l1", "kl_sparsity", "jacobian")  # penalties with nothing to do where no encoder is trained


def check_compatibility(autoencoder: Autoencoder, config: ReconstructionObjectiveConfig, classes: int) -> None:
    """Raise ConfigError, in one line, for the first thing that does not fit."""
    for problem in problems(autoencoder, config, classes):
        raise ConfigError(problem)


def problems(autoencoder: Autoencoder, config: ReconstructionObjectiveConfig, classes: int) -> Iterator[str]:
    """What does not fit, in words; without a known image shape, only what can be told without one."""
    image = autoencoder.image
    yield from problems_of_corruptions(autoencoder, config, image)
    for name, penalty in config.penalties.chosen.items():
        if wrong := penalty.incompatibility(autoencoder, classes):
            yield f"objective.penalties.{name} {wrong}"
    yield from problems_of_frozen_encoder(autoencoder, config)
    yield from problems_of_losses(autoencoder.network, config)
    yield from problems_of_stages(autoencoder, config)
    if config.target == "normalized-patches" and autoencoder.is_autoencoder_kl:
        yield (
            "objective.target normalized-patches makes an autoencoder that gives no images, and an AutoencoderKL is"
            " expected to: use another autoencoder.network.kind, or a bottleneck other than gaussian"
        )
    if image and identity_is_optimal(autoencoder, config, image):
        numbers = math.prod(autoencoder.active_shape(image[1:]))
        yield (
            f"the code of {numbers} numbers holds all {math.prod(image)} of the image, so that copying is the best"
            f" answer: lower autoencoder.bottleneck.channels {autoencoder.latent_channels} (or k), or give a corruption"
            " or a penalty"
        )


def problems_of_frozen_encoder(autoencoder: Autoencoder, config: ReconstructionObjectiveConfig) -> Iterator[str]:
    """What an encoder would have to learn that stays as it starts, or as it was trained."""
    is_pretrained = autoencoder.config is not None and autoencoder.config.freeze_encoder
    if not is_pretrained and not autoencoder.network.freezes_encoder:
        return
    frozen, instead = "the encoder, which autoencoder.network.encoder_lr_factor 0 keeps as it starts", "set that to 1"
    if is_pretrained:
        frozen, instead = "the encoder, which autoencoder.freeze_encoder keeps as it is", "leave one of the two out"
    losses = [f"objective.penalties.{name}" for name in SHAPE_CODE if name in config.penalties.chosen]
    losses += ["objective.equivariance"] if config.equivariance is not None else []
    for name in losses:
        yield f"{name} shapes {frozen}: {instead}"
    if not is_pretrained and autoencoder.bottleneck.is_stochastic and autoencoder.bottleneck.noise is None:
        yield f"autoencoder.bottleneck.noise null is a variance learned by {frozen}: set one of the two"


def problems_of_corruptions(
    autoencoder: Autoencoder, config: ReconstructionObjectiveConfig, image: tuple[int, int, int] | None
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
            and (wrong := corruption.incompatibility(image[1:], network.downsampling))
        ):
            yield f"{name}.corruption.{wrong}"
        if network.can_skip_patches and (wrong := mask_problem(corruption, network.downsampling)):
            yield f"{name}.corruption {wrong}"
        if stage.layer > 1 and isinstance(corruption, Mask) and corruption.unit == "patch":
            yield f"{name}.corruption.unit patch is for images, and layer {stage.layer} has none: use element"
    if network.can_skip_patches and autoencoder.bottleneck.gives_rates and config.hides_patches:
        yield "autoencoder.bottleneck.activation sigmoid is 0.5, and not 0, where kind vit hides a patch: use relu"
    latent_sides = autoencoder.latent_shape(image[1:])[1:] if image else None
    corruption = config.latent_corruption
    if latent_sides and corruption and (wrong := corruption.incompatibility(latent_sides, (1, 1))):
        yield f"objective.latent_corruption.{wrong}"
    if config.emphasis is None:
        return
    if not any(stage.corruption for _, stage in places):
        yield "objective.emphasis is for elements that a corruption changed, and objective.corruption is null"
    elif not any(stage.corruption and stage.corruption.is_local for _, stage in places):
        yield "objective.emphasis is for corruptions that change some elements only: mask and salt-and-pepper"
    if any(stage.layer > 1 and stage.target == "images" for _, stage in places):
        yield "objective.emphasis is for what was corrupted, and a layer that gives images back was given none"


def problems_of_stages(autoencoder: Autoencoder, config: ReconstructionObjectiveConfig) -> Iterator[str]:
    """Stages that would not do what they say."""
    is_pretrained = autoencoder.config is None or autoencoder.config.network.kind == "pretrained"
    is_random = not is_pretrained and not autoencoder.network.starts_from_data
    for number, stage in enumerate(config.stages):
        name = f"objective.stages.{number}"
        if autoencoder.network.is_tied and stage.trains != "all":
            yield f"{name}.trains {stage.trains} cannot be: autoencoder.network.tied makes one matrix of both sides"
        if DISTANCES[config.distance].learns_variance and stage.layer > 1 and stage.target == "input":
            yield f"objective.distance {config.distance} is for images, and {name}.layer {stage.layer} has none"
    if config.stages and is_random and all(stage.trains == "decoder" for stage in config.stages):
        yield "objective.stages would leave the encoder as random as it begins: one of them must train it"


def problems_of_losses(network: AutoencoderNetwork, config: ReconstructionObjectiveConfig) -> Iterator[str]:
    """Losses on images where there are none, or where they cannot be computed."""
    normalized, sees_images = config.target == "normalized-patches", config.perceptual or config.discriminator
    if normalized and sees_images:
        yield "objective.perceptual and .discriminator are for images, and normalized patches are none: leave them out"
    if normalized and math.prod(network.downsampling) * network.image_channels < 2:
        yield "objective.target normalized-patches needs patches of more than one value"
    if any(stage.layer for stage in config.stages) and sees_images:
        yield "objective.perceptual and .discriminator are for images, and a layer stage has none: leave them out"
    is_adaptive = config.discriminator is not None and config.discriminator.adaptive
    if is_adaptive and not isinstance(network.output_layer, nn.Conv2d):
        yield "objective.discriminator.adaptive needs a convolution that makes the image: set it to false"
    if config.equivariance is None:
        return
    if not network.is_convolutional:
        yield "objective.equivariance needs a convolutional network, which has a latent for a smaller image"
    if config.emphasis is not None or config.penalties.aux_k:
        yield "objective.equivariance changes the image that is asked for: leave out .emphasis and .penalties.aux_k"


def mask_problem(corruption: Corruption | None, downsampling: tuple[int, int]) -> str | None:
    """Why a vision transformer cannot leave out what this corruption hides, if it is a mask of patches."""
    if not isinstance(corruption, Mask) or corruption.unit != "patch":
        return None
    if corruption.patch_sides(downsampling) != downsampling:
        return f"hides patches of {corruption.patch}, and autoencoder.network.patch is {downsampling[0]}"
    if isinstance(corruption.fraction, tuple) or corruption.p_clean:
        return "must hide as many patches of every image: give one fraction, and no p_clean"
    return None


def identity_is_optimal(
    autoencoder: Autoencoder, config: ReconstructionObjectiveConfig, image: tuple[int, int, int]
) -> bool:
    """Whether the identity would be the best that could be learned, and could be."""
    numbers, penalties = math.prod(autoencoder.active_shape(image[1:])), config.penalties
    holding: list[object] = [config.corruption, config.latent_corruption, config.equivariance]
    holding += [stage.corruption for stage in config.stages]
    holding += [penalties.l1, penalties.kl_sparsity, penalties.jacobian]
    facts = BOTTLENECKS[autoencoder.bottleneck.config.kind]
    holding += [facts.stochastic and config.kl > 0, facts.has_rate and config.rate > 0]
    return numbers >= math.prod(image) and not any(holding)
