"""The weights in a component's folder: safetensors, perhaps in several variants (fp16) side by side.

They are called model.safetensors, as Transformers has it, and not as diffusers calls those of its own models: these
would open the folder, and fill in random weights where the file has none of theirs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

ENDING = ".safetensors"
NAMES = ("model", "diffusion_pytorch_model")  # the latter in version 0.1, and where a class of diffusers does open them


def save_weights(
    folder: Path, tensors: Mapping[str, Tensor], variant: str | None = None, *, of_diffusers: bool = False
) -> None:
    """Write `model.safetensors`, or `model.fp16.safetensors` for the variant fp16.

    Those `of_diffusers`, which a class of its own opens, have the name that it looks for.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    file = weights_name(variant, NAMES[1] if of_diffusers else NAMES[0])
    safetensors.torch.save_file(weights, folder / file, {"format": "pt"})


def load_weights(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    """The weights of a variant. Without one the plain file, or else the only variant that there is.

    Raises FileNotFoundError, or what safetensors raises for a damaged file.
    """
    ending = ENDING if variant is None else f".{variant}{ENDING}"
    files = [file for name in NAMES if (file := folder / f"{name}{ending}").is_file()]
    if not files and variant is None:
        files = sorted(file for name in NAMES for file in folder.glob(f"{name}.*{ENDING}"))
    if not files or (len(files) > 1 and variant is None and files[0].name.count(".") > 1):
        found = ", ".join(sorted(file.name for file in folder.glob(f"*{ENDING}"))) or "none"
        raise FileNotFoundError(f"{folder} has no {weights_name(variant)}; weights there: {found}")
    return safetensors.torch.load_file(files[0])


def weights_name(variant: str | None = None, name: str = NAMES[0]) -> str:
    """What the weights of a variant are called."""
    return f"{name}{ENDING}" if variant is None else f"{name}.{variant}{ENDING}"


def downloaded(repository: str, *files: str, **options: Any) -> Path:
    """Where files of a repository on the Hugging Face hub lie, once they are loaded from there.

    `options` are those of its `hf_hub_download`, whose errors these are.
    """
    from huggingface_hub import hf_hub_download

    places = [Path(hf_hub_download(repository, file, **options)) for file in files]
    return places[0].parent


def convert_weights(folder: Path, dtype: torch.dtype | None, variant: str | None) -> None:
    """Cast the weights of a newly written folder, whatever their file is called, and name them as of a variant."""
    for file in folder.glob(f"*{ENDING}"):
        tensors = safetensors.torch.load_file(file)
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        file.unlink()
        name = file.name if variant is None else f"{file.name.removesuffix(ENDING)}.{variant}{ENDING}"
        safetensors.torch.save_file(cast, folder / name, {"format": "pt"})
