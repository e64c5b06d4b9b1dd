"""The round trip of an export: written, read again as another program reads it, and compared with the original."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldm.autoencoder.formats import compvis, diffusers
from ldm.autoencoder.model import Autoencoder
from ldm.errors import CheckpointError, ConfigError
from ldm.export import compvis_network
from ldm.export.hosts import read_compvis_config, write_compvis_config
from ldm.shapes import Images

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

    from ldm.autoencoder.formats.autoencoder_model import AutoencoderModel

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}  # the largest difference allowed, over the largest value


@dataclass(frozen=True)
class WrittenAutoencoder:
    """What another program makes of the files: a module, and its functions from images to latents and back."""

    place: Path
    module: nn.Module
    encode: Callable[[Images], Tensor]
    decode: Callable[[Tensor], Images]


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """The model in a floating-point format of DTYPES, in place; ConfigError if that has no number for a weight."""
    tensors = {
        name: value.to(DTYPES[dtype]) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    for name, value in model.state_dict().items():
        if not tensors[name].isfinite().all():
            raise ConfigError(
                f"--dtype {dtype} cannot hold {name}, whose largest value is {value.abs().max().item():.3g}: use bf16"
            )
    model.load_state_dict(tensors, assign=True)
    return model


def variant_of(dtype: str) -> str | None:
    """What diffusers calls the files of a floating-point format; float32 has no name."""
    return None if dtype == "fp32" else dtype


def write_diffusers(kl: "AutoencoderKL", folder: Path, name: str, dtype: str) -> WrittenAutoencoder:
    """As diffusers saves it, and reads it."""
    kl.save_pretrained(str(folder), safe_serialization=True, variant=variant_of(dtype))
    again = diffusers.read(folder)
    return WrittenAutoencoder(
        folder,
        again,
        lambda images: again.encode(images).latent_dist.mean,
        lambda latents: again.decode(latents).sample,
    )


def write_tiny(tiny: "AutoencoderTiny", folder: Path, name: str, dtype: str) -> WrittenAutoencoder:
    """An AutoencoderTiny, as diffusers saves it and reads it."""
    from diffusers import AutoencoderTiny

    tiny.save_pretrained(str(folder), safe_serialization=True, variant=variant_of(dtype))
    again = AutoencoderTiny.from_pretrained(str(folder), use_safetensors=True, variant=variant_of(dtype)).float().eval()
    return WrittenAutoencoder(
        folder, again, lambda images: again.encode(images).latents, lambda latents: again.decode(latents).sample
    )


def write_own(model: "AutoencoderModel", folder: Path, name: str, dtype: str) -> WrittenAutoencoder:
    """A folder of our own format, as the code in it reads it, which is what diffusers' AutoModel runs."""
    model.save_pretrained(folder, variant=variant_of(dtype))
    own = imported(folder / f"{model.code().module}.py")
    again = getattr(own, type(model).__name__).from_pretrained(folder, variant=variant_of(dtype))
    return WrittenAutoencoder(
        folder,
        again,
        lambda images: again.encode(images).latent_dist.mean,
        lambda latents: again.decode(latents).sample,
    )


def imported(file: Path) -> ModuleType:
    """The module in a file of Python, which was just written by us."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(
        spec
    )  # by this name its swappable parts are found
    spec.loader.exec_module(module)
    return module


def write_file(kl: "AutoencoderKL", folder: Path, name: str) -> Path:
    """One file with CompVis' names and no prefix, and the configuration that diffusers' `from_single_file` needs."""
    kl.save_config(str(folder))
    compvis.write(folder / f"{name}.safetensors", kl.state_dict(), kl.config)
    return folder / f"{name}.safetensors"


def write_compvis(kl: "AutoencoderKL", folder: Path, name: str, dtype: str) -> WrittenAutoencoder:
    """One file and a YAML, as CompVis' program reads both."""
    file = write_file(kl, folder, name)
    write_compvis_config(folder / f"{name}.yaml", kl.config)
    again = compvis_network.load(file, read_compvis_config(folder / f"{name}.yaml"))
    return WrittenAutoencoder(file, again, again.encode, again.decode)


def write_comfyui(kl: "AutoencoderKL", folder: Path, name: str, dtype: str) -> WrittenAutoencoder:
    """One file, as ComfyUI reads it."""
    file = write_file(kl, folder, name)
    again = compvis_network.load(file)
    return WrittenAutoencoder(file, again, again.encode, again.decode)


@torch.no_grad()
def differences(
    autoencoder: Autoencoder,
    written: WrittenAutoencoder,
    statistics: tuple[Tensor, Tensor],
    images: Images,
    dtype: str,
) -> dict[str, float]:
    """How far the images and latents of what was written are from the original's, over the largest value.

    `statistics` are mean and standard deviation per channel of the latents as they were written. Raises
    CheckpointError above the tolerance of `dtype`, ConfigError where numbers inside the network are too large for fp16.
    """
    mean, std = (each.view(-1, 1, 1) for each in statistics)
    with largest_activation(written.module) as largest:
        raw = written.encode(images)
        reconstruction = written.decode(raw)
    pairs = {
        "reconstruction_difference": (autoencoder.reconstruct(images), reconstruction),
        "latent_difference": (autoencoder.encode(images).mean, (raw - mean) / std),
    }
    found = {
        name: ((given - expected).abs().max() / expected.abs().max()).item()
        for name, (expected, given) in pairs.items()
    }
    for name, difference in found.items():
        if not difference <= TOLERANCES[dtype]:
            raise CheckpointError(
                f"read again, the export differs: {name.replace('_', ' ')} {difference:.1e} of the largest value, and"
                f" {TOLERANCES[dtype]:.0e} is allowed in {dtype}; nothing was left behind"
            )
    if dtype == "fp16" and not largest[0] <= torch.finfo(torch.float16).max:
        raise ConfigError(
            f"--dtype fp16 ends at {torch.finfo(torch.float16).max:,.0f}, and inside the network numbers reach"
            f" {largest[0]:,.0f}: use bf16 or fp32"
        )
    return found


@contextmanager
def largest_activation(module: nn.Module) -> Iterator[list[float]]:
    """The largest absolute value that any layer gives meanwhile, as a list of one number."""
    largest = [0.0]

    def note(layer: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            largest[0] = max(largest[0], output.abs().max().item())

    hooks = [layer.register_forward_hook(note) for layer in module.modules()]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()
