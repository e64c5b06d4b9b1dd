"""The diffusers pipeline of a run: saves a folder that DiffusionPipeline.from_pretrained opens, and `sample.py` too.

The folder brings the code along, written out from this package, which need not be installed. (What version 0.1 wrote
imports the three classes from here.)
"""

from pathlib import Path

import torch
from diffusers import EDMDPMSolverMultistepScheduler

from ldm.autoencoder.formats.autoencoder_model import AutoencoderModel
from ldm.autoencoder.formats.diffusers import is_ours
from ldm.autoencoder.model import Autoencoder
from ldm.checkpoint import read_json, write_folder_atomically
from ldm.component.weights_file import convert_weights
from ldm.diffusion.config import SamplingConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.model import DiffusionModelConfig
from ldm.export.pipeline.denoiser_model import DenoiserModel
from ldm.export.pipeline.latent_diffusion_pipeline import LatentDiffusionPipeline, class_of, write_index
from ldm.text.prompts import PromptEncoders

__all__ = ["AutoencoderModel", "DenoiserModel", "LatentDiffusionPipeline", "save_pipeline"]


def save_pipeline(
    folder: Path,
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    config: DiffusionModelConfig,
    *,
    prompts: PromptEncoders | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> None:
    """Write all that diffusers and `sample.py` need into `folder`; what else lies there is left alone.

    `prompts` are the text encoders, found by the references in the config if they are left out. The weights are in
    float32, or in `dtype`; a `variant` (fp16) is part of the names of their files.
    """
    unet = DenoiserModel.around(denoiser, config)
    unet.prompts = prompts or unet.prompts

    def save_vae(new: Path) -> None:
        autoencoder.save(new)
        convert_weights(new, dtype, variant)

    def save_unet(new: Path) -> None:
        unet.save_pretrained(new)
        convert_weights(new, dtype, variant)

    write_folder_atomically(folder / "vae", save_vae)
    write_folder_atomically(folder / "unet", save_unet)
    scheduler = scheduler_of(config.sampling)
    scheduler.save_pretrained(str(folder / "scheduler"))
    write_index(folder, {"vae": class_in(folder / "vae"), "unet": class_of(unet), "scheduler": class_of(scheduler)})


def scheduler_of(sampling: SamplingConfig) -> EDMDPMSolverMultistepScheduler:
    """diffusers' description of a model's noise levels."""
    grid = {name: getattr(sampling, name) for name in ("sigma_min", "sigma_max", "rho")}
    return EDMDPMSolverMultistepScheduler(**grid, sigma_data=1.0)


def class_in(vae: Path) -> list[str]:
    """Where diffusers finds the class of the autoencoder in a folder."""
    facts = read_json(vae / "config.json")
    if is_ours(vae):
        return list(facts["auto_map"]["AutoModel"].split("."))
    return ["diffusers", facts["_class_name"]]
