"""The model card (README.md) of an exported diffusion model: what it draws, how to load it, what it was trained on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.config import reader
from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.diffusers_format import config_of_diffusers
from ldm.errors import LDMError
from ldm.export.model_card import commands, images_of
from ldm.pipeline import LatentDiffusion
from ldm.script_configs import TrainDiffusionConfig
from ldm.shapes import format_size

HEAD = """---
license: unknown  # yours to choose; the license of the training images, or of the weights begun from, may decide it
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [latent-diffusion, image-generation]
---
"""
LOADING = """```python
{needs_torch}from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("this/folder", trust_remote_code=True{half})
pipe(16).images[0].save("sample.png"){labels}
```

The folder brings the code that the pipeline needs: nothing but diffusers has to be installed. The package it comes
from, `latent-diffusion-trainer` (imported as `ldm`), opens it too:

```python
from ldm import LatentDiffusion

images = LatentDiffusion.load("this/folder").sample(16, seed=0)  # B C H W in [-1, 1]
```

`vae/` by itself is an autoencoder: `ldm.Autoencoder.load("this/folder")`, or in diffusers
`{vae}`.{unet}"""
STOCK = """

`unet/` is diffusers' own `UNet2DModel`, for its `EDMEulerScheduler`, whose settings are in `scheduler/`: it is called
as `unet(scheduler.scale_model_input(latents, t), t)`, and needs no code of this folder."""


def write(folder: Path, name: str, run: Path, model: LatentDiffusion, facts: dict[str, Any]) -> None:
    """Write README.md beside samples.png; of the run it says what config.yaml and command.txt do, if they are there."""
    classes = model.classes
    labels = f'\npipe(4, ["{classes[0]}"]).images  # classes by name or number' if classes else ""
    torch_name = {"fp16": "float16", "bf16": "bfloat16"}.get(facts["dtype"])
    half = f', variant="{facts["dtype"]}", dtype=torch.{torch_name}' if torch_name else ""
    stock = model.autoencoder.is_autoencoder_kl
    vae, trust = ("AutoencoderKL", "") if stock else ("AutoModel", ", trust_remote_code=True")
    vae = f'{vae}.from_pretrained("this/folder/vae"{trust}{half})'
    is_stock = config_of_diffusers(model.denoiser, model.config.denoiser, model.config.schema) is not None
    loading = LOADING.format(
        labels=labels,
        half=half,
        needs_torch="import torch\n" if torch_name else "",
        vae=vae,
        unet=STOCK if is_stock else "",
    )
    sections = [
        f"# {name}\n\n{description(model)}",
        "![Samples of seed 0](samples.png)",
        f"## Loading it\n\n{loading}",
        f"## Sampling\n\n{sampling(model, facts['samples']['steps'])}",
        *origin(run, facts),
    ]
    text = HEAD + "\n" + "\n\n".join(sections) + "\n"
    (folder / "README.md").write_bytes(text.encode("utf-8", "replace"))  # a class's name may be any bytes


def description(model: LatentDiffusion) -> str:
    """What it is, of what size its images are, and which classes it knows."""
    count = sum(parameter.numel() for parameter in model.denoiser.parameters())
    latent, network = model.config.latent_shape, model.autoencoder.network
    sides = tuple(side * factor for side, factor in zip(latent[1:], network.downsampling, strict=True))
    classes = model.classes
    known = f"It knows {len(classes)} classes: {', '.join(classes)}." if classes else "It is unconditional."
    return (
        f"A latent diffusion model: a denoiser of {count:,} parameters over latents of"
        f" {' x '.join(map(str, latent))}, and the autoencoder that makes images of {format_size(sides)} pixels and"
        f" {network.image_channels} channels of them. {known}"
    )


def sampling(model: LatentDiffusion, steps: int) -> str:
    """The noise levels it was trained for, and the settings of the picture above."""
    grid = model.config.sampling
    guided = model.classes and model.config.trained_with_condition_dropout
    guidance = "classifier-free guidance 2" if guided else "no guidance"
    method = "multistep consistency sampling" if SAMPLERS[grid.sampler].consistency else "Heun's method"
    return (
        f"Noise levels from {grid.sigma_max:g} down to {grid.sigma_min:g} (ρ = {grid.rho:g}), in units of the latents'"
        f" standard deviation. The picture is of seed 0, with {method}, {steps} steps and {guidance}."
    )


def origin(run: Path, facts: dict[str, Any]) -> Iterator[str]:
    """The data, the steps and the commands."""
    is_run = (run / "config.yaml").is_file()
    if is_run:
        try:
            config = reader.load(TrainDiffusionConfig, run / "config.yaml", {})
        except LDMError:  # of another version; the model itself was read
            config = None
        if config is not None and config.data is not None:
            steps, batch = config.run.steps, config.run.batch_size
            yield f"## Training\n\n{steps:,} steps of {batch} images. Images: {images_of(config.data)}."
    yield commands(run if is_run else None, facts["command"])
