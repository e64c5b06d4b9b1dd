"""`ldm export`: write an autoencoder, or a diffusion model, in the form that other tools load, and compare it."""

import math
import shlex
from pathlib import Path

from ldm.config.command_line import Parser
from ldm.errors import ConfigError

HOSTS = ("sd15", "sdxl", "x4", "sd3", "flux")
DTYPES = ("fp32", "fp16", "bf16")


def main(arguments: list[str]) -> None:
    """Read the command line, then export."""
    options = parser().read(arguments)
    if options.checkpoint is not None and options.checkpoint < 1:
        raise ConfigError(f"--checkpoint {options.checkpoint} must be the number of a step, from 1")
    scale = None if options.latent_scale is None else latent_scale(options.latent_scale)
    if options.latent_shift is not None and not math.isfinite(options.latent_shift):
        raise ConfigError(f"--latent-shift {options.latent_shift} must be a finite number")

    # Imported here, so that --help and a mistyped flag are answered at once.
    from ldm.export.autoencoder import ExportRequest, export
    from ldm.export.diffusion_model import export_diffusion_model, is_diffusion_model

    request = ExportRequest(
        source=options.run,
        out=Path(options.out),
        format=options.format,
        latent_scale=scale,
        latent_shift=options.latent_shift,
        host=options.host,
        dtype=options.dtype,
        step=options.checkpoint,
        ema=options.ema,
        force=options.force,
        command=shlex.join(["ldm", "export", *arguments]),
    )
    is_diffusion = is_diffusion_model(options.run)
    facts = export_diffusion_model(request) if is_diffusion else export(request)
    allowed = "" if options.dtype == "fp32" else f" ({facts['tolerance']:g} is allowed in {options.dtype})"
    if is_diffusion:
        worst = facts["sample_difference"]
        print(f"{options.out}: read again and sampled from, largest difference {worst:.1e}{allowed}")
        return
    worst = max(facts["reconstruction_difference"], facts["latent_difference"])
    where = Path(options.out) / facts.get("file", "")
    print(f"{where}: read again and compared, largest relative difference {worst:.1e}{allowed}")


def parser() -> Parser:
    """The flags."""
    found = Parser("ldm export", __doc__ or "")
    add = found.add_argument
    add("run", metavar="RUN", help="a run of either script, or whatever else ldm evaluate takes for an autoencoder")
    add("--format", choices=("diffusers", "compvis", "comfyui"), required=True, help="comfyui is for A1111 too")
    add("--out", metavar="PATH", required=True, help="the folder to make")
    add(
        "--latent-scale",
        metavar="NUMBER|source",
        help="what the host multiplies latents by to give them unit variance [1; comfyui: that of the host of this"
        " shape, if it has 4 channels]; source: leave latents as the network was trained",
    )
    add("--latent-shift", type=float, metavar="NUMBER", help="what the host first subtracts from latents [0]")
    add("--host", choices=HOSTS, help="the model whose latent scale and shift are meant")
    add("--dtype", choices=DTYPES, default="fp32", help="format of the weights [fp32]; diffusers' variant for others")
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
