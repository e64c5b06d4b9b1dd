"""Export of a diffusion model: the pipeline folder of diffusers alone, with a model card, sampled from and compared."""

from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.checkpoint import write_folder_atomically
from ldm.config.yaml_file import read_yaml
from ldm.errors import CheckpointError, ConfigError
from ldm.export import diffusion_card, model_card
from ldm.export.autoencoder import ExportRequest, check_out, finish_folder
from ldm.export.diffusers_pipeline import save_pipeline
from ldm.export.round_trip import DTYPES, variant_of
from ldm.pictures import grid, save_png, upscaled
from ldm.pipeline import LatentDiffusion
from ldm.shapes import Images
from ldm.training.devices import choose_device

SAMPLES = 16  # on the card
COMPARED = 4  # of them, drawn again from what was written
# The largest difference of a pixel, over the range from black to white; half precision is a change of every step.
SAMPLE_TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}


def is_diffusion_model(source: str) -> bool:
    """Whether it is a run of train_diffusion.py, finished or not, or what an earlier export wrote."""
    folder = Path(source)
    if (folder / "unet" / "config.json").is_file():
        return True
    if not (folder / "config.yaml").is_file() or (folder / "config.json").is_file():
        return False
    given = read_yaml(folder / "config.yaml")
    return isinstance(given, dict) and "denoiser" in given


def export_diffusion_model(request: ExportRequest) -> dict[str, Any]:
    """Write the denoiser and its autoencoder as one pipeline folder, read it again, sample, and only then put it there.

    Returns what export.json records. Raises ConfigError for another form than diffusers' and for settings of an
    autoencoder, CheckpointError where there is no model or its samples are others.
    """
    check_request(request)
    out = check_out(request)
    device = choose_device(None)
    model = LatentDiffusion.load(request.source, device)
    images = drawn(model, SAMPLES)
    facts: dict[str, Any] = {"format": request.format, "kind": "diffusion model", "dtype": request.dtype}
    facts["tolerance"] = tolerance = SAMPLE_TOLERANCES[request.dtype]
    facts |= {"samples": {"num": SAMPLES, "steps": model.config.sampling.steps, "seed": 0}}
    facts["command"] = model_card.without_places(request.command)

    def write(folder: Path) -> None:
        dtype, variant = DTYPES[request.dtype], variant_of(request.dtype)
        parts = (model.autoencoder, model.denoiser, model.config)
        save_pipeline(folder, *parts, prompts=model.prompts, dtype=dtype, variant=variant)
        again = drawn(LatentDiffusion.load(folder, device), COMPARED)
        facts["sample_difference"] = (again - images[:COMPARED]).abs().max().item() / 2
        if not facts["sample_difference"] <= tolerance:
            raise CheckpointError(
                f"read again, the export differs: samples by {facts['sample_difference']:.1e} of the range of a pixel,"
                f" and {tolerance:.0e} is allowed; nothing was left behind"
            )
        save_png(upscaled(grid(images, columns=round(SAMPLES**0.5))), folder / "samples.png")
        diffusion_card.write(folder, out.name, Path(request.source), model, facts)
        finish_folder(folder, facts)

    write_folder_atomically(out, write)
    return facts


def check_request(request: ExportRequest) -> None:
    """Raise ConfigError for what a diffusion model has no place for."""
    if request.format != "diffusers":
        raise ConfigError(
            f"{request.source} is a diffusion model, whose denoiser {request.format} has no class for: use --format"
            f" diffusers, or export its autoencoder, {request.source}/vae"
        )
    given = {
        "--latent-scale": request.latent_scale,
        "--latent-shift": request.latent_shift,
        "--host": request.host,
        "--checkpoint": request.step,
        "--ema": request.ema,
    }
    for flag, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{flag} {value} is for autoencoders, and {request.source} is a diffusion model: it is written as its"
                f" run ended; export {request.source}/vae for its autoencoder alone"
            )


def drawn(model: LatentDiffusion, count: int) -> Images:
    """The first samples of seed 0."""
    with tqdm(total=model.config.sampling.steps, desc="sampling", unit="step", delay=1) as bar:
        return model.sample(count, seed=0, on_step=bar.update)
