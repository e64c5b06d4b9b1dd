"""`ldm export`: write an autoencoder in the form that other tools load, and compare it with the original."""

import math
import shlex
from pathlib import Path

from ldm.config.command_line import Parser
from ldm.errors import ConfigError


def main(arguments: list[str]) -> None:
    """Read the command line, then export."""
    options = parser().read(arguments)
    if options.checkpoint is not None and options.checkpoint < 1:
        raise ConfigError(f"--checkpoint {options.checkpoint} must be the number of a step, from 1")
    scale = None if options.latent_scale is None else latent_scale(options.latent_scale)

    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.export.autoencoder import ExportRequest, export

    facts = export(
        ExportRequest(
            source=options.run,
            out=Path(options.out),
            format=options.format,
            latent_scale=scale,
            step=options.checkpoint,
            ema=options.ema,
            force=options.force,
            command=shlex.join(["ldm", "export", *arguments]),
        )
    )
    worst = max(facts["reconstruction_difference"], facts["latent_difference"])
    where = Path(options.out) / facts.get("file", "")
    print(f"{where}: read again and compared, largest relative difference {worst:.1e}")


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm export", __doc__ or "")
    add = found.add_argument
    add("run", metavar="RUN", help="a run of train_vae.py, an AutoencoderKL folder, or a CompVis-keyed .safetensors")
    add("--format", choices=("diffusers", "compvis", "comfyui"), required=True, help="comfyui is for A1111 too")
    add("--out", metavar="PATH", required=True, help="the folder to make")
    add(
        "--latent-scale",
        metavar="NUMBER|source",
        help="what the host multiplies latents by to give them unit variance [1; comfyui: Stable"
        " Diffusion's]; source: leave latents as the network was trained",
    )
    add("--checkpoint", type=int, metavar="STEP", help="of a run [the finished one, or else the newest]")
    add("--ema", choices=("0.05", "0.10", "none"), help="which average of the weights [as the run says]")
    add("--force", action="store_true", help="replace an earlier export")
    return found


def latent_scale(text: str) -> float | str:
    """A positive number, or "source"."""
    if text == "source":
        return text
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ConfigError(f"--latent-scale {text} must be a positive number or source")
    return number
