"""A denoiser with all that is needed to create it, and the folder that holds both."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from ldm.batch import ConditionSchema
from ldm.component.weights_file import load_weights, save_weights
from ldm.config.plain import from_plain
from ldm.config.reader import to_dict
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.diffusion.config import DENOISER_NETWORKS, SAMPLERS, DenoiserConfig, SamplingConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.diffusers_format import (
    config_of_diffusers,
    our_config_in,
    our_weights,
    their_weights,
    with_our_config,
)
from ldm.diffusion.gaussian import LatentGaussian, rank_of
from ldm.diffusion.network import DenoiserNetwork
from ldm.errors import CheckpointError, ConfigError

FORMAT = 2  # of the folder of a denoiser; 1 was that of version 0.1


@dataclass(frozen=True)
class DiffusionModelConfig:
    """All that is needed to create a denoiser and to sample from it; saved as its config.json."""

    latent_shape: tuple[int, int, int]  # channels, height, width
    schema: ConditionSchema  # what it is conditioned on
    denoiser: DenoiserConfig
    sampling: SamplingConfig
    trained_with_condition_dropout: bool = True  # without it there is nothing for classifier-free guidance
    format: int = FORMAT


def check_latent_shape(config: DenoiserConfig, latent_shape: tuple[int, int, int]) -> None:
    """Raise ConfigError, before any image is encoded, if the network cannot take latents of this shape."""
    DENOISER_NETWORKS[config.network.kind].load().check(config.network, latent_shape)


def create_denoiser(config: DiffusionModelConfig) -> Denoiser:
    """An untrained denoiser."""
    network_config = config.denoiser.network
    network_class: type[DenoiserNetwork] = DENOISER_NETWORKS[network_config.kind].load()
    text = {"token_channels": config.schema.token_channels} if config.schema.token_channels else {}
    if text and not network_class.takes_tokens:
        raise ConfigError(f"denoiser.network.kind {network_config.kind} takes no text: use unet or dit, or no text")
    network = network_class.create(network_config, latent_shape=config.latent_shape, **text)
    embedding = ConditionEmbedding(config.schema, network.vector_channels)
    skip, gaussian = config.denoiser.skip, None
    if skip.kind == "gaussian":
        gaussian = LatentGaussian(config.latent_shape, rank_of(config.latent_shape, skip.rank))
    return Denoiser(
        network,
        embedding,
        parametrization=config.denoiser.parametrization,
        gaussian=gaussian,
        consistency=SAMPLERS[config.sampling.sampler].consistency,
    )


def save_denoiser(denoiser: Denoiser, config: DiffusionModelConfig, folder: Path, variant: str | None = None) -> None:
    """Write `config.json` and the weights as safetensors; as diffusers' own class has them, if it has one for it."""
    folder.mkdir(parents=True, exist_ok=True)
    saved, weights = to_dict(config), denoiser.state_dict()
    theirs = config_of_diffusers(denoiser, config.denoiser, config.schema)
    if theirs is not None:
        saved, weights = with_our_config(theirs, saved), their_weights(weights)
    (folder / "config.json").write_text(json.dumps(saved, indent=2))
    save_weights(folder, weights, variant, of_diffusers=theirs is not None)


def load_denoiser(folder: Path, variant: str | None = None) -> tuple[Denoiser, DiffusionModelConfig]:
    """What `save_denoiser` wrote."""
    if not (folder / "config.json").is_file():
        lacking = "it has no unet/config.json" if folder.parent.exists() else "it does not exist"
        raise CheckpointError(f"{folder.parent} is not a finished run of train_diffusion.py: {lacking}")
    try:
        entries = json.loads((folder / "config.json").read_text())
        saved = our_config_in(entries)
        check_format(saved, folder.parent)
        config: DiffusionModelConfig = from_plain(DiffusionModelConfig, saved)
        denoiser, weights = create_denoiser(config), load_weights(folder, variant)
        if saved is not entries:
            weights = our_weights(weights, config.schema)
        check_positions(weights, folder)
        denoiser.load_state_dict(weights)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError, ConfigError) as error:
        raise CheckpointError(f"the denoiser in {folder} cannot be read: {error}") from error
    return denoiser.eval(), config


def check_positions(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Raise CheckpointError for a denoiser of texts whose words had learned positions, before they were rotary."""
    if any(key.startswith("embedding.texts.") and key.endswith(".positions") for key in weights):
        raise CheckpointError(
            f"the denoiser in {folder} is of an earlier version, whose texts had other positions: train it again"
        )


def check_format(saved: Any, run: Path) -> None:
    """Raise CheckpointError for the denoiser of a run of another version."""
    version = saved.get("format", 1) if isinstance(saved, dict) else FORMAT
    if version != FORMAT:
        older = "an earlier" if version == 1 else "another"
        raise CheckpointError(
            f"{run} is a diffusion model of {older} version of ldm: sample from it with that version, or train again on"
            f" {run / 'vae'}, which is still read"
        )
