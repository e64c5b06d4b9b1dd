"""Export of an autoencoder to diffusers, CompVis or ComfyUI, read again and compared."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ldm.autoencoder.formats import compvis, diffusers
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.saving import to_diffusers
from ldm.checkpoint import write_folder_atomically
from ldm.errors import CheckpointError, ConfigError
from ldm.export import model_card
from ldm.export.load_run import COMPARED_IMAGES, load_run
from ldm.shapes import Images

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

TOLERANCE = 1e-4  # the largest difference of a re-loaded export's images and latents, over their largest value
HOSTS_SCALE = 0.18215  # what ComfyUI and A1111 multiply the latents of every 4-channel Stable Diffusion 1 or 2 VAE by


@dataclass(frozen=True)
class ExportRequest:
    """What `ldm export` is asked for."""

    source: str  # a run of train_vae.py, an AutoencoderKL folder, a CompVis-keyed file or a hub id
    out: Path
    format: str  # one of FORMATS
    latent_scale: float | str | None = None  # "source": as trained; None: what the hosts of the format expect
    step: int | None = None  # None: the finished run, or else its newest checkpoint
    ema: str | None = None  # None: as the run says
    force: bool = False
    command: str = ""  # for the record


def export(request: ExportRequest) -> dict[str, Any]:
    """Write the autoencoder in the form that was asked for, read it again, compare, and only then put it in place.

    Returns what export.json records, with the two largest differences. Raises ConfigError for a form that cannot hold
    the network, CheckpointError where there is none or the comparison fails.
    """
    out = request.out.absolute()
    if out.exists():
        if not request.force:
            raise ConfigError(
                f"--out {request.out} exists: choose another, or give --force to replace an earlier export"
            )
        if not (out / "export.json").is_file():
            raise ConfigError(f"--out {request.out} is not an earlier export, and --force replaces nothing else")
    loaded = load_run(request.source, step=request.step, ema=request.ema, raw_latents=request.latent_scale == "source")
    autoencoder = loaded.autoencoder
    if not autoencoder.is_autoencoder_kl:
        config = autoencoder.config
        kinds = f"{config.network.kind} and {config.bottleneck.kind}" if config else "another kind"
        raise ConfigError(
            f"{request.source} is an autoencoder of {kinds}, which diffusers and CompVis have no class"
            " for: use its vae/ with ldm.Autoencoder.load"
        )
    kl = to_diffusers(autoencoder)
    scale = resolved_scale(request, kl.config)
    if loaded.step is not None and scale != "source":
        images = loaded.measure()
    else:
        side = 8 * autoencoder.network.downsampling[0]
        shape = (COMPARED_IMAGES, autoencoder.network.image_channels, side, side)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if scale != "source":
        kl = diffusers.fold(kl, autoencoder.latent_mean, autoencoder.latent_std, float(scale))
    facts: dict[str, Any] = {"format": request.format, "latent_scale": scale, "step": loaded.step, "ema": loaded.ema}
    facts["command"] = model_card.without_places(request.command)

    def write(folder: Path) -> None:
        file = FORMATS[request.format](kl, folder, f"{out.name}.safetensors")
        facts.update({"file": file.name} if file != folder else {}, **differences(autoencoder, file, images))
        model_card.write(folder, out.name, loaded, facts, dict(kl.config))
        (folder / "export.json").write_text(json.dumps(facts, indent=2))
        for path in folder.iterdir():  # safetensors lets only the owner read its files, and an export is to be shared
            path.chmod((folder / "export.json").stat().st_mode)

    write_folder_atomically(out, write)
    return facts


def resolved_scale(request: ExportRequest, config: Mapping[str, Any]) -> float | str:
    """The latent scale, and ConfigError for a network that hosts of the format cannot load."""
    if request.format != "comfyui":
        return 1.0 if request.latent_scale is None else request.latent_scale
    check_comfyui(config)
    if request.latent_scale is None and config["latent_channels"] != 4:
        raise ConfigError(
            f"--latent-scale has no default for {config['latent_channels']} latent channels: give the one that the"
            " diffusion model's host multiplies by"
        )
    return HOSTS_SCALE if request.latent_scale is None else request.latent_scale


def check_comfyui(config: Mapping[str, Any]) -> None:
    """Raise ConfigError, saying what ComfyUI takes for granted and what is different here.

    It builds a fixed network, reads of the file only the number of latent channels and whether there is a fourth
    level, and then leaves weights that do not fit as they are or stops.
    """
    widths, blocks = tuple(config["block_out_channels"]), [*config["down_block_types"], *config["up_block_types"]]
    different = {
        f"{config['in_channels']} image channels": config["in_channels"] != 3,
        f"{config['latent_channels']} latent channels": config["latent_channels"] not in (4, 16),
        f"widths {', '.join(map(str, widths))}": widths not in ((128, 256, 512, 512), (128, 256, 512)),
        f"{config['layers_per_block']} block(s) per level": config["layers_per_block"] != 2,
        f"{config['norm_num_groups']} norm groups": config["norm_num_groups"] != 32,
        "no attention in the middle": not config["mid_block_add_attention"],
        "attention beside the middle": any("Attn" in block for block in blocks),
    }
    if found := [what for what, wrong in different.items() if wrong]:
        raise ConfigError(
            "ComfyUI takes it for granted that a VAE has 3 image channels, 4 or 16 latent channels, widths 128, 256,"
            " 512, 512 (or without the last, at f4), 2 blocks per level, 32 norm groups and attention in the middle"
            f" only; this one has {' and '.join(found)}: use --format diffusers or compvis"
        )


def write_folder(kl: "AutoencoderKL", folder: Path, name: str) -> Path:
    """As diffusers saves it."""
    kl.save_pretrained(str(folder), safe_serialization=True)
    return folder


def write_file(kl: "AutoencoderKL", folder: Path, name: str) -> Path:
    """One file with CompVis' names and no prefix, and the configuration that diffusers' `from_single_file` needs."""
    kl.save_config(str(folder))
    compvis.write(folder / name, kl.state_dict(), kl.config)
    return folder / name


@torch.no_grad()
def differences(autoencoder: Autoencoder, file: Path, images: Images) -> dict[str, float]:
    """How far the images and latents of what was written are from the original's, over the largest value.

    Raises CheckpointError above BOUND.
    """
    again, found = Autoencoder.load(file), {}
    pairs = {
        "reconstruction_difference": (autoencoder.reconstruct(images), again.reconstruct(images)),
        "latent_difference": (autoencoder.encode(images).mean, again.encode(images).mean),
    }
    for name, (expected, given) in pairs.items():
        found[name] = ((given - expected).abs().max() / expected.abs().max()).item()
        if not found[name] <= TOLERANCE:
            raise CheckpointError(
                f"read again, the export differs: {name.replace('_', ' ')} {found[name]:.1e} of the largest value, and"
                f" {TOLERANCE:.0e} is allowed; nothing was left behind"
            )
    return found


FORMATS: dict[str, Callable[["AutoencoderKL", Path, str], Path]] = {
    "diffusers": write_folder,
    "compvis": write_file,
    "comfyui": write_file,
}
