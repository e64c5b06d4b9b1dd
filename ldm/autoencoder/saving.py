"""Loads and saves autoencoders: runs, diffusers folders, CompVis-keyed files, TAESD files, folders of our own."""

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors

from ldm.autoencoder.bottleneck import GaussianBottleneck
from ldm.autoencoder.config import GaussianConfig, TAESDNetworkConfig
from ldm.autoencoder.formats import diffusers, ours, taesd
from ldm.autoencoder.model import Autoencoder, create
from ldm.autoencoder.networks.kl import AutoencoderKLNetwork
from ldm.autoencoder.networks.taesd import TAESDNetwork
from ldm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny


def load(source: str | Path) -> Autoencoder:
    """The autoencoder in a finished run, in a folder of diffusers' AutoencoderKL or AutoencoderTiny, in a CompVis-keyed
    .safetensors file, in TAESD's files, or under a hub id; on the CPU.

    Raises CheckpointError if there is none. The scaling and shift of an AutoencoderKL become the statistics.
    """
    if taesd.is_taesd(Path(source)):
        return load_taesd(Path(source))
    folder = diffusers.resolve_path(source)
    if diffusers.is_ours(folder):
        return load_ours(folder)
    return load_taesd(folder) if taesd.is_taesd(folder) else from_diffusers(diffusers.read(source))


def load_taesd(place: Path) -> Autoencoder:
    """An autoencoder of TAESD's family, or CheckpointError; its latents are standardized as its config says, if any."""
    try:
        found = taesd.read(place)
        autoencoder = create(found.config, image=found.image)
        rest = {name: value for name, value in autoencoder.state_dict().items() if not name.startswith("network.")}
        autoencoder.load_state_dict(rest | found.tensors)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{place} does not hold an autoencoder of TAESD's family ({reason})") from error
    autoencoder.standardize(found.mean, found.std)
    return autoencoder.eval()


def load_ours(folder: Path) -> Autoencoder:
    """The autoencoder in a folder of our own format, or CheckpointError."""
    try:
        saved = ours.read(folder)
        autoencoder = create(saved.config, image=saved.image, classes=saved.classes)
        autoencoder.load_state_dict(saved.tensors)
        autoencoder.decodes_images = saved.decodes_images
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, ConfigError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"the autoencoder in {folder} cannot be read: {reason}") from error
    return autoencoder.eval()


def save(autoencoder: Autoencoder, folder: Path) -> None:
    """Write what `load` reads, and diffusers too where it has a class for it.

    It is then a stock AutoencoderKL folder with the statistics folded in; otherwise, a folder of our own.
    """
    if autoencoder.is_autoencoder_kl:
        kl = diffusers.fold(to_diffusers(autoencoder), autoencoder.latent_mean, autoencoder.latent_std)
        kl.save_pretrained(str(folder), safe_serialization=True)
    else:
        config, image = autoencoder.config, autoencoder.image
        assert config is not None and image is not None
        ours.write(folder, ours.Saved(config, image, autoencoder.decodes_images, autoencoder.state_dict()))


def from_diffusers(kl: "AutoencoderKL") -> Autoencoder:
    """Any AutoencoderKL of diffusers as an autoencoder of ours, around the same weights."""
    channels = kl.config["latent_channels"]
    autoencoder = Autoencoder(AutoencoderKLNetwork(kl), GaussianBottleneck(GaussianConfig(channels=channels)))
    autoencoder.standardize(*diffusers.statistics(kl.config))
    return autoencoder.to(kl.device).eval()


def to_diffusers(autoencoder: Autoencoder) -> "AutoencoderKL":
    """A copy in diffusers' own class, on the CPU in float32, its latents not standardized."""
    network: object = autoencoder.network
    assert isinstance(network, AutoencoderKLNetwork) and autoencoder.is_autoencoder_kl
    bottleneck: object = autoencoder.bottleneck
    if isinstance(bottleneck, GaussianBottleneck) and bottleneck.noise is not None:
        tensors = diffusers.with_constant_logvar(network.state_dict(), bottleneck.code_std, bottleneck.noise)
        return diffusers.build(network.kl_config, tensors)
    return network.to_diffusers()


def to_tiny(autoencoder: Autoencoder) -> "AutoencoderTiny":
    """A copy in diffusers' AutoencoderTiny; ConfigError for what that class has no place for.

    Its latents are those of the network. Where one scale and one shift standardize every channel, the config says them.
    """
    network, config, image = autoencoder.network, autoencoder.config, autoencoder.image
    assert isinstance(network, TAESDNetwork) and config is not None and image is not None
    assert isinstance(config.network, TAESDNetworkConfig)
    if config.bottleneck.kind != "identity":
        raise ConfigError(
            f"diffusers' AutoencoderTiny has no posterior, and this one has bottleneck.kind {config.bottleneck.kind}:"
            " it is for identity; use its vae/ with ldm.Autoencoder.load"
        )
    if config.network.latent_norm:
        raise ConfigError(
            "diffusers' AutoencoderTiny has no group norms, and this one has (autoencoder.network.latent_norm): use its"
            " vae/ with ldm.Autoencoder.load"
        )
    mean, std = autoencoder.latent_mean.flatten(), autoencoder.latent_std.flatten()
    same = bool((mean == mean[0]).all() and (std == std[0]).all())
    facts = {
        **{"in_channels": image[0], "out_channels": image[0], "latent_channels": autoencoder.latent_channels},
        **{"scaling_factor": 1 / std[0].item() if same else 1.0, "shift_factor": mean[0].item() if same else 0.0},
    }
    return taesd.to_diffusers(config.network, network.state_dict(), facts)
