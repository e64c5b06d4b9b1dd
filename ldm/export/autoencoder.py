"""Export of an autoencoder to diffusers, CompVis or ComfyUI, read again as these read it and compared."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.autoencoder.formats import diffusers
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.networks.taesd import TAESDNetwork
from ldm.autoencoder.saving import to_diffusers, to_tiny
from ldm.checkpoint import write_folder_atomically
from ldm.errors import ConfigError
from ldm.export import model_card
from ldm.export.hosts import check_comfyui, check_compvis, with_all_layers
from ldm.export.load_run import COMPARED_IMAGES, LoadedAutoencoder, load_run
from ldm.export.round_trip import (
    TOLERANCES,
    WrittenAutoencoder,
    cast,
    differences,
    write_comfyui,
    write_compvis,
    write_diffusers,
    write_own,
    write_tiny,
)
from ldm.shapes import Images

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

    from ldm.autoencoder.formats.autoencoder_model import AutoencoderModel


@dataclass(frozen=True)
class LatentScale:
    """What a host does to latents before its diffusion model sees them: (latent - shift) * scale."""

    scale: float
    shift: float = 0.0
    channels: int = 4  # of the latents that it does this to
    downsampling: int = 8


HOSTS = {
    "sd15": LatentScale(0.18215),  # Stable Diffusion 1 and 2
    "sdxl": LatentScale(0.13025),
    "x4": LatentScale(0.08333, downsampling=4),  # Stable Diffusion's upscaler
    "sd3": LatentScale(1.5305, 0.0609, channels=16),
    "flux": LatentScale(0.3611, 0.1159, channels=16),
}


@dataclass(frozen=True)
class ExportRequest:
    """What `ldm export` is asked for."""

    source: str  # a run of train_vae.py, an AutoencoderKL folder, a CompVis-keyed file or a hub id
    out: Path
    format: str  # one of FORMATS
    latent_scale: float | str | None = None  # "source": as trained; None: what the hosts of the format expect
    latent_shift: float | None = None  # None: that of `host`, or 0
    host: str | None = None  # one of HOSTS, whose scale and shift are meant
    dtype: str = "fp32"  # one of TOLERANCES: the floating-point format of the weights
    step: int | None = None  # None: the finished run, or else its newest checkpoint
    ema: str | None = None  # None: as the run says
    force: bool = False
    command: str = ""  # for the record


def check_out(request: ExportRequest) -> Path:
    """The folder to make; ConfigError where there is one already that is not to be replaced."""
    out = request.out.absolute()
    if out.exists():
        if not request.force:
            raise ConfigError(
                f"--out {request.out} exists: choose another, or give --force to replace an earlier export"
            )
        if not (out / "export.json").is_file():
            raise ConfigError(f"--out {request.out} is not an earlier export, and --force replaces nothing else")
    return out


@dataclass(frozen=True)
class Prepared:
    """What is to be written, and what it is compared with."""

    model: "AutoencoderKL | AutoencoderTiny | AutoencoderModel"
    write: Callable[[Any, Path, str, str], WrittenAutoencoder]
    statistics: tuple[Tensor, Tensor]  # mean and standard deviation per channel of the model's own latents
    images: Images
    facts: dict[str, Any]  # about the scale of its latents, for export.json


def export(request: ExportRequest) -> dict[str, Any]:
    """Write the autoencoder in the form that was asked for, read it again, compare, and only then put it in place.

    Returns what export.json records, with the two largest differences. Raises ConfigError for a form that cannot hold
    the network, CheckpointError where there is none or the comparison fails.
    """
    out = check_out(request)
    loaded = load_run(request.source, step=request.step, ema=request.ema, raw_latents=request.latent_scale == "source")
    autoencoder = loaded.autoencoder
    if isinstance(autoencoder.network, TAESDNetwork):
        prepared = prepared_tiny(loaded, request)
    else:
        prepared = (prepared_kl if autoencoder.is_autoencoder_kl else prepared_own)(loaded, request)
    model = cast(prepared.model, request.dtype)
    facts: dict[str, Any] = {
        **{"format": request.format, **prepared.facts, "step": loaded.step, "ema": loaded.ema},
        **{"dtype": request.dtype, "tolerance": TOLERANCES[request.dtype]},
        "command": model_card.without_places(request.command),
    }

    def write(folder: Path) -> None:
        written = prepared.write(model, folder, out.name, request.dtype)
        facts.update({"file": written.place.name} if written.place != folder else {})
        facts.update(differences(autoencoder, written, prepared.statistics, prepared.images, request.dtype))
        model_card.write(folder, out.name, loaded, facts, dict(prepared.model.config))
        finish_folder(folder, facts)

    write_folder_atomically(out, write)
    return facts


def finish_folder(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write export.json, and let whoever may read it read every file: safetensors lets only the owner read its own."""
    (folder / "export.json").write_text(json.dumps(facts, indent=2))
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod((folder / "export.json").stat().st_mode)


def prepared_kl(loaded: LoadedAutoencoder, request: ExportRequest) -> Prepared:
    """An AutoencoderKL with the latent statistics folded in; ConfigError where it is not for the host."""
    autoencoder = loaded.autoencoder
    kl = to_diffusers(autoencoder)
    if request.format in CHECKS:
        CHECKS[request.format](kl.config)
        kl = with_all_layers(kl)
    scale = resolved_scale(request, kl.config)
    images = compared_images(loaded, measured=scale is not None)
    facts: dict[str, Any] = {"latent_scale": "source"}
    if scale is not None:
        kl = diffusers.fold(kl, autoencoder.latent_mean, autoencoder.latent_std, scale.scale, scale.shift)
        facts = {"latent_scale": scale.scale, "latent_shift": scale.shift}
    return Prepared(kl, FORMATS[request.format], diffusers.statistics(kl.config), images, facts)


def prepared_tiny(loaded: LoadedAutoencoder, request: ExportRequest) -> Prepared:
    """An AutoencoderTiny as it was trained; ConfigError for another format, or a scale, which it cannot be given."""
    if request.format != "diffusers":
        raise ConfigError(
            f"{request.source} is of TAESD's network, which {request.format} has no file for: diffusers has"
        )
    if request.latent_scale not in (None, "source") or request.latent_shift or request.host:
        raise ConfigError(
            "--latent-scale, --latent-shift and --host are not for TAESD's network: its decoder begins with a tanh,"
            " which no statistics can be folded through; its latents stay as they were trained"
        )
    autoencoder = loaded.autoencoder
    images = compared_images(loaded, measured=request.latent_scale is None)
    statistics = autoencoder.latent_mean.flatten(), autoencoder.latent_std.flatten()
    facts: dict[str, Any] = {"latent_scale": "source"}
    if loaded.run is not None:
        facts |= {"latent_mean": statistics[0].tolist(), "latent_std": statistics[1].tolist()}
    return Prepared(to_tiny(autoencoder), write_tiny, statistics, images, facts)


def prepared_own(loaded: LoadedAutoencoder, request: ExportRequest) -> Prepared:
    """An autoencoder that brings its own code; ConfigError for another format than diffusers', and for a scale."""
    from ldm.autoencoder.formats.autoencoder_model import AutoencoderModel

    autoencoder = loaded.autoencoder
    kinds = kinds_of(autoencoder)
    if request.format != "diffusers":
        raise ConfigError(
            f"{request.source} is an autoencoder of {kinds}, which {request.format} has no network for: use --format"
            " diffusers, whose AutoModel opens it, or train with autoencoder.network.kind kl and a gaussian bottleneck"
            " that learns its noise"
        )
    if request.latent_scale not in (None, 1.0) or request.latent_shift or request.host:
        raise ConfigError(
            "--latent-scale, --latent-shift and --host are for an AutoencoderKL, of autoencoder.network.kind kl:"
            f" {request.source} is of {kinds}, and its latents always have unit variance"
        )
    images = compared_images(loaded, measured=True)
    statistics = torch.zeros(autoencoder.latent_channels), torch.ones(autoencoder.latent_channels)
    facts = {"latent_scale": 1.0, "latent_shift": 0.0}
    return Prepared(AutoencoderModel.around(deepcopy(autoencoder)), write_own, statistics, images, facts)


def kinds_of(autoencoder: Autoencoder) -> str:
    """Network and bottleneck by kind."""
    assert autoencoder.config is not None
    noise = autoencoder.bottleneck.noise
    kinds = f"{autoencoder.config.network.kind} and {autoencoder.config.bottleneck.kind}"
    return kinds if noise is None else f"{kinds} with noise {noise:g}"


def compared_images(loaded: LoadedAutoencoder, *, measured: bool) -> Images:
    """Images to compare reconstructions of; where the latents of a checkpoint are `measured`, some of its run's."""
    if loaded.step is not None and measured:
        return loaded.measure()
    network = loaded.autoencoder.network
    side = 8 * network.downsampling[0]
    shape = network.fixed_size or (network.image_channels, side, side)
    return torch.rand(COMPARED_IMAGES, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def resolved_scale(request: ExportRequest, config: Mapping[str, Any]) -> LatentScale | None:
    """What the host will do to latents, None where they are to stay as trained; ConfigError if nothing tells."""
    channels, downsampling = config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)
    if request.host is not None:
        if request.latent_scale is not None or request.latent_shift is not None:
            raise ConfigError(
                f"--host {request.host} stands for a scale and a shift: leave out --latent-scale and -shift"
            )
        host = HOSTS[request.host]
        if (host.channels, host.downsampling) != (channels, downsampling):
            raise ConfigError(
                f"--host {request.host} has {host.channels} latent channels at f{host.downsampling}; this one has"
                f" {channels} at f{downsampling}"
            )
        return checked_shift(request, host)
    if request.latent_scale == "source":
        if request.latent_shift is not None:
            raise ConfigError("--latent-shift changes the latents, and --latent-scale source leaves them: give one")
        return None
    if request.latent_scale is None and request.format == "comfyui":
        fitting = [
            scale for scale in HOSTS.values() if (scale.channels, scale.downsampling) == (channels, downsampling)
        ]
        if channels != 4 or request.latent_shift is not None:
            raise ConfigError(
                f"--latent-scale has no default for {channels} latent channels{' and a shift' if channels == 4 else ''}"
                ": give --host, or the --latent-scale and --latent-shift of the diffusion model's host"
            )
        return fitting[0]
    scale = 1.0 if request.latent_scale is None else float(request.latent_scale)
    return checked_shift(request, LatentScale(scale, request.latent_shift or 0.0))


def checked_shift(request: ExportRequest, scale: LatentScale) -> LatentScale:
    """The same, or ConfigError where the host subtracts no shift."""
    if scale.shift and request.format == "compvis":
        raise ConfigError(
            f"CompVis' program has no shift to take {scale.shift:g} from latents: use --format comfyui or diffusers"
        )
    return scale


CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {"compvis": check_compvis, "comfyui": check_comfyui}
FORMATS: dict[str, Callable[["AutoencoderKL", Path, str, str], WrittenAutoencoder]] = {
    "diffusers": write_diffusers,
    "compvis": write_compvis,
    "comfyui": write_comfyui,
}
