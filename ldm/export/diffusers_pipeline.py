"""The diffusers pipeline: a run of train_diffusion.py opens with DiffusionPipeline.from_pretrained, offline.

The run holds files of one line each, `pipeline.py`, `unet/denoiser.py` and, where diffusers does not know the
autoencoder, `vae/autoencoder.py`, which import the classes of this one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, EDMDPMSolverMultistepScheduler, ImagePipelineOutput
from torch import Tensor, nn

from ldm.autoencoder.formats.diffusers import is_ours
from ldm.autoencoder.model import Autoencoder
from ldm.batch import Condition
from ldm.checkpoint import write_atomically, write_folder_atomically
from ldm.diffusion.denoiser import Denoiser
from ldm.pictures import picture
from ldm.pipeline import DiffusionModelConfig, LatentDiffusion, load_denoiser, save_denoiser
from ldm.shapes import to_uint8


class DiffusersComponent(nn.Module):
    """What diffusers asks every component of a pipeline."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class DenoiserModel(DiffusersComponent):
    """A denoiser together with its config, in the manner of a diffusers component."""

    def __init__(self, denoiser: Denoiser, config: DiffusionModelConfig):
        super().__init__()
        self.denoiser, self.model_config = denoiser, config

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> Self:
        """Read the `unet` folder of a run; diffusers' further arguments do not apply."""
        return cls(*load_denoiser(Path(folder)))

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write a `unet` folder."""
        save_denoiser_model(self.denoiser, self.model_config, Path(folder))

    def forward(self, noisy: Tensor, sigma: Tensor, condition: Condition | None = None) -> Tensor:
        """The denoised latents."""
        denoised: Tensor = self.denoiser(noisy, sigma, condition)
        return denoised


class AutoencoderModel(DiffusersComponent):
    """An autoencoder that is not an AutoencoderKL, in the manner of a diffusers component."""

    def __init__(self, autoencoder: Autoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> Self:
        """Read the `vae` folder of a run; diffusers' further arguments do not apply."""
        return cls(Autoencoder.load(folder))

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write a `vae` folder."""
        self.autoencoder.save(Path(folder))


class LatentDiffusionPipeline(DiffusionPipeline):
    """Class labels to images. `scheduler` describes the noise levels for other tools; ours come with the denoiser."""

    def __init__(
        self, vae: AutoencoderKL | AutoencoderModel, unet: DenoiserModel, scheduler: EDMDPMSolverMultistepScheduler
    ):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)

    def __call__(
        self,
        num_images: int = 16,
        labels: Sequence[int | str] | None = None,
        *,
        num_inference_steps: int = 18,
        sampler: str = "heun",
        guidance_scale: float | None = None,
        seed: int = 0,
    ) -> ImagePipelineOutput:
        """`num_images` Pillow images: the same as LatentDiffusion.sample gives for these arguments."""
        vae = self.vae
        autoencoder = vae.autoencoder if isinstance(vae, AutoencoderModel) else Autoencoder.from_diffusers(vae)
        model = LatentDiffusion(autoencoder, self.unet.denoiser, self.unet.model_config)
        with self.progress_bar(total=num_inference_steps * -(-num_images // 64)) as bar:
            images = model.sample(
                num_images,
                labels,
                steps=num_inference_steps,
                sampler=sampler,
                guidance=guidance_scale,
                seed=seed,
                on_step=bar.update,
            )
        return ImagePipelineOutput(images=[picture(image) for image in to_uint8(images)])

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder like that of a run, which opens again; diffusers by itself would leave the denoiser out."""
        folder = Path(save_directory)
        self.vae.save_pretrained(str(folder / "vae"))
        self.unet.save_pretrained(folder / "unet")
        save_index(folder, self.unet.model_config)


def save_pipeline(folder: Path, autoencoder: Autoencoder, denoiser: Denoiser, config: DiffusionModelConfig) -> None:
    """Write all that diffusers and `sample.py` need into `folder`; what else lies there is left alone."""
    write_folder_atomically(folder / "vae", autoencoder.save)
    write_folder_atomically(folder / "unet", lambda new: save_denoiser_model(denoiser, config, new))
    save_index(folder, config)


def save_denoiser_model(denoiser: Denoiser, config: DiffusionModelConfig, folder: Path) -> None:
    """The `unet` folder: config, weights, and the line by which diffusers finds the class."""
    save_denoiser(denoiser, config, folder)
    (folder / "denoiser.py").write_text("from ldm.export.diffusers_pipeline import DenoiserModel\n")


def save_index(folder: Path, config: DiffusionModelConfig) -> None:
    """`model_index.json`, `pipeline.py` and `scheduler/` beside `vae/` and `unet/`."""
    sampling = config.sampling
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, sigma_data=1.0, rho=sampling.rho
    )
    scheduler.save_pretrained(str(folder / "scheduler"))
    if own := is_ours(folder / "vae"):
        (folder / "vae" / "autoencoder.py").write_text("from ldm.export.diffusers_pipeline import AutoencoderModel\n")
    index = {
        "_class_name": ["pipeline", "LatentDiffusionPipeline"],
        "vae": ["autoencoder", "AutoencoderModel"] if own else ["diffusers", "AutoencoderKL"],
        "unet": ["denoiser", "DenoiserModel"],
        "scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"],
    }
    (folder / "pipeline.py").write_text("from ldm.export.diffusers_pipeline import LatentDiffusionPipeline\n")
    write_atomically(folder / "model_index.json", json.dumps(index, indent=2).encode())
