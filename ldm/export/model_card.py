"""The model card (README.md) of an export: what it is, how good it is, how to load it, which commands made it."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.autoencoder.formats import ours
from ldm.checkpoint import read_json
from ldm.config import reader
from ldm.config.yaml_file import inline
from ldm.data.config import DataSourceConfig
from ldm.evaluation.formatting import format_metric
from ldm.export.load_run import LoadedAutoencoder

HEAD = """---
license: unknown  # yours to choose; the license of the training images, or of the weights begun from, may decide it
library_name: diffusers
tags: [autoencoder, vae, latent-diffusion]
---
"""
DIFFUSERS = """```python
{torch}from diffusers import {kind}

autoencoder = {kind}.{loading}
latents = autoencoder.encode(images).{latents} * autoencoder.config.scaling_factor
images = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample  # in [-1, 1]
```"""
OWN = """```python
{torch}from diffusers import AutoModel

autoencoder = AutoModel.{loading}
latents = autoencoder.encode(images).latent_dist.sample()  # of unit variance: the scaling factor is 1, the shift 0
images = autoencoder.decode(latents).sample  # in [-1, 1]
```

The folder brings the code for it, `{module}.py`; the package it comes from, `latent-diffusion-trainer` (imported as
`ldm`), opens it too: `ldm.Autoencoder.load("this/folder")`. Without diffusers{plain}:

```python
from {module} import load  # in this folder

autoencoder = load("this/folder")
latents = autoencoder.encode(images).mode()
images = autoencoder.decode(latents)
```{cropped}"""
CROPPED = """

An image whose sides {factor} does not divide is padded to the right and below: crop what is decoded."""
SHIFTED = (
    "\nBefore it is scaled, {what} of config.json is subtracted from a latent, as the pipelines of diffusers do.\n"
)
COMFYUI = """
ComfyUI: copy {file} to `models/vae/` and choose it in a Load VAE node. A1111: copy it to `models/VAE/`; it takes the
shape of Stable Diffusion's own only (f8, 4 latent channels).
"""
COMPVIS = """
CompVis' `ldm`: {yaml} describes the network and the scale as its configs do, for `first_stage_config`.
"""
OWN_ATTENTION = "\nIt has attention beside the middle, which `from_single_file` of diffusers does not read.\n"


def write(folder: Path, name: str, loaded: LoadedAutoencoder, facts: dict[str, Any], kl_config: dict[str, Any]) -> None:
    """Write README.md; beside it the panel of these weights and, of a finished run, its curves if there are any.

    `facts` are those of export.json, `kl_config` the configuration of the exported AutoencoderKL.
    """
    sections = [
        f"# {name}\n\n{description(loaded, facts, kl_config)}",
        f"## Loading it\n\n{loading(facts, kl_config)}",
        *origin(loaded, facts),
    ]
    if loaded.run is not None and loaded.is_final and (loaded.run / "report.json").is_file():
        report = read_json(loaded.run / "report.json")
        if facts["latent_scale"] != 1 or facts.get(
            "latent_shift"
        ):  # then the latents of the export are not those of the report
            report = {name: value for name, value in report.items() if name not in ("latent_mean", "latent_std")}
        rows = "\n".join(f"| {name} | {shown} |" for name, shown in metric_rows(report))
        sections.append(f"## Metrics\n\n| metric | value |\n|---|---|\n{rows}")
    sections += list(pictures(loaded, folder))
    text = HEAD + "\n" + "\n\n".join(sections) + "\n"
    (folder / "README.md").write_bytes(text.encode("utf-8", "replace"))  # a folder's name may be any bytes


def description(loaded: LoadedAutoencoder, facts: dict[str, Any], kl_config: dict[str, Any]) -> str:
    """What it is, and of what shape and scale its latents are."""
    if class_of(kl_config) == "AutoModel":
        return own_description(loaded, kl_config) + precision(facts)
    network, count = loaded.autoencoder.network, sum(p.numel() for p in loaded.autoencoder.network.parameters())
    scale, channels, side = kl_config["scaling_factor"], kl_config["latent_channels"], 256 // network.downsampling[0]
    kind = class_of(kl_config)
    known = "over the images it was trained on" if loaded.run else "as far as its source states their scale rightly"
    shift = f"Minus {facts['latent_shift']:g}, times" if facts.get("latent_shift") else "Times"
    unit = f"{shift} {scale:g}, latents have zero mean and unit variance per channel, {known}."
    same = f"Latents are as the network was trained, with the scaling factor {scale:g} that it began with."
    if "latent_std" in facts:
        same = (
            f"Latents are as the network was trained; export.json has their mean and standard deviation per channel,"
            f" {known}."
        )
    latent = "a Gaussian latent" if kind == "AutoencoderKL" else "a latent without noise"
    return (
        f"A convolutional autoencoder with {latent}: {kind}, {count:,} parameters, widths"
        f" {', '.join(map(str, kl_config['block_out_channels']))}. It takes images in [-1, 1] and downsamples by"
        f" {network.downsampling[0]}: {network.image_channels} x 256 x 256 becomes {channels} x {side} x {side}.\n\n"
        f"{same if facts['latent_scale'] == 'source' else unit}{precision(facts)}"
    )


def own_description(loaded: LoadedAutoencoder, config: dict[str, Any]) -> str:
    """The same of an autoencoder in our own format."""
    autoencoder, network = loaded.autoencoder, loaded.autoencoder.network
    count = sum(parameter.numel() for parameter in network.parameters())
    sides = network.fixed_size[1:] if network.fixed_size else (256, 256)
    latent = " x ".join(map(str, autoencoder.latent_shape(sides)))
    known = "over the images it was trained on" if loaded.run else "over the images that its source was trained on"
    noise = autoencoder.bottleneck.noise
    bottleneck = f"bottleneck {config['bottleneck']['kind']}{'' if noise is None else f' with noise {noise:g}'}"
    image = " x ".join(map(str, (network.image_channels, *sides)))
    return (
        f"An autoencoder: network {config['network']['kind']}, {bottleneck}, {count:,} parameters. It takes images in"
        f" [-1, 1]: {image} becomes {latent}.\n\nLatents have zero mean and unit variance per channel, {known}."
    )


def class_of(config: dict[str, Any]) -> str:
    """The class of diffusers that a configuration is of; AutoModel where the folder brings its own."""
    if "bottleneck" in config:
        return "AutoModel"
    return "AutoencoderTiny" if "num_decoder_blocks" in config else "AutoencoderKL"


def precision(facts: dict[str, Any]) -> str:
    """What is to be known of weights in half precision."""
    if facts["dtype"] == "fp32":
        return ""
    off = max(facts["reconstruction_difference"], facts["latent_difference"])
    return (
        f"\n\nThe weights are in {facts['dtype']}: images and latents differ from the original's by up to {off:.1e} of"
        f" the largest value ({facts['tolerance']:g} was allowed)."
    )


def loading(facts: dict[str, Any], kl_config: dict[str, Any]) -> str:
    """The lines that load it, in diffusers and, for one file, in ComfyUI."""
    kind, half = class_of(kl_config), facts["dtype"] != "fp32"
    dtype = f", torch_dtype=torch.{'float16' if facts['dtype'] == 'fp16' else 'bfloat16'}" if half else ""
    if facts["format"] == "diffusers":
        variant = f', variant="{facts["dtype"]}"' if half else ""
        trust = ", trust_remote_code=True" if kind == "AutoModel" else ""
        call = f'from_pretrained("this/folder"{trust}{variant}{dtype})'
    else:
        call = f'from_single_file("this/folder/{facts["file"]}", config="this/folder"{dtype})'
    if kind == "AutoModel":
        return own_loading(kl_config, "import torch\n" if half else "", call)
    latents = "latent_dist.sample()" if kind == "AutoencoderKL" else "latents"
    text = DIFFUSERS.format(torch="import torch\n" if half else "", kind=kind, loading=call, latents=latents)
    named = [what for what in ("shift_factor", "latents_mean") if kl_config.get(what)]
    text += "".join(SHIFTED.format(what=f"`{what}`") for what in named)
    if facts["format"] == "compvis":
        text += COMPVIS.format(yaml=f"`{Path(facts['file']).with_suffix('.yaml')}`")
        text += OWN_ATTENTION if any("Attn" in block for block in kl_config["down_block_types"]) else ""
    return text + (COMFYUI.format(file=f"`{facts['file']}`") if facts["format"] == "comfyui" else "")


def own_loading(config: dict[str, Any], torch: str, call: str) -> str:
    """The lines that load an autoencoder in our own format."""
    network, factor = config["network"]["kind"], config["downsampling"]
    cropped = CROPPED.format(factor=factor) if isinstance(factor, int) and factor > 1 else ""
    plain = "" if network == "kl" else ", with torch and safetensors alone"
    module = ours.code(network, config["bottleneck"]["kind"]).module
    return OWN.format(torch=torch, loading=call, module=module, plain=plain, cropped=cropped)


def origin(loaded: LoadedAutoencoder, facts: dict[str, Any]) -> Iterator[str]:
    """The data and the commands."""
    if loaded.run is not None and loaded.config is not None:
        steps = loaded.config.run.steps
        step = f" after {steps if loaded.step is None else loaded.step:,} of {steps:,} steps"
        average = "the weights in training" if loaded.ema == "none" else f"the average of relative length {loaded.ema}"
        yield f"## Training\n\n{average[0].upper()}{average[1:]}{step}. Images: {images_of(loaded.config.data)}."
    yield commands(loaded.run, facts["command"])


def images_of(config: DataSourceConfig) -> str:
    """The settings of the training images; of where they lie the last name alone."""
    data = reader.to_dict(config)
    shown = ", ".join(f"{key} {inline(value)}" for key, value in data.items() if key not in ("path", "root"))
    return shown + (f", folder `{Path(data['path']).name}`" if "path" in data else "")


def commands(run: Path | None, last: str) -> str:
    """The section with the commands of a run, if it is one, and the `last` one, of the export."""
    record = None if run is None else run / "command.txt"
    found = record.read_text("utf-8", "replace").splitlines() if record is not None and record.is_file() else []
    lines = [*dict.fromkeys(map(without_places, found)), last]
    return "## Commands\n\n" + "\n".join(f"    {line}" for line in lines)


def without_places(command: str) -> str:
    """A command with the last name alone of every absolute path: where things lie is their owner's business."""

    def bare(word: str) -> str:
        flag, equals, value = word.rpartition("=")
        return f"{flag}{equals}{Path(value).name or 'PATH'}" if value.startswith(("/", "~")) else word

    try:
        return shlex.join(map(bare, shlex.split(command)))
    except ValueError:  # cut short
        return "(a command that cannot be read)"


def metric_rows(report: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The metrics of a report, by dotted name, as a person reads them."""
    for name, value in report.items():
        if isinstance(value, dict):
            yield from metric_rows(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, ", ".join(format_metric(number) for number in value)
        else:
            yield prefix + name, format_metric(value)


def pictures(loaded: LoadedAutoencoder, folder: Path) -> Iterator[str]:
    """Copy the panel of these very weights, and the curves if they end with them, and show them."""
    if loaded.run is None or loaded.config is None:
        return
    step = loaded.config.run.steps if loaded.step is None else loaded.step
    panel = loaded.run / "samples" / f"step-{step:08d}.png"
    for file, name, caption, is_theirs in (
        (panel, "panel.png", "Input, reconstruction, four times the difference", loaded.is_own_average),
        (loaded.run / "curves.png", "curves.png", "The course of the training", loaded.is_final),
    ):
        if is_theirs and file.is_file():
            shutil.copyfile(file, folder / name)
            yield f"![{caption}]({name})"
