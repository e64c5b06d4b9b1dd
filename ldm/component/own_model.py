"""The base of components that diffusers has no class for, read and written as diffusers' own are."""

from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import nn

from ldm.component.code_file import CodeFile
from ldm.component.weights_file import downloaded, weights_name
from ldm.errors import ConfigError

UNUSED = {"safe_serialization": True, "push_to_hub": False, "use_safetensors": None, "quantization_config": None}
OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")  # where and how it is found there


class OwnModel(ModelMixin, ConfigMixin):
    """A component that diffusers has no class for, read and written as diffusers' own are."""

    config_name = "config.json"

    @classmethod
    def read(cls, folder: Path, variant: str | None) -> Self:
        """The component in a folder."""
        raise NotImplementedError

    def write(self, folder: Path, variant: str | None) -> None:
        """Write the config, the weights and the code into a folder."""
        raise NotImplementedError

    def code(self) -> CodeFile:
        """The file by which diffusers finds this class in a folder."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        device_map: Any = None,
        **options: Any,
    ) -> Self:
        """Read the component's folder, a run's or one on the Hugging Face hub."""
        check_options(options)
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        if not folder.is_dir():
            hub = {name: options[name] for name in OF_THE_HUB if options.get(name) is not None}
            files = (cls.config_name, weights_name(variant))
            folder = downloaded(str(pretrained_model_name_or_path), *files, subfolder=subfolder, **hub)
        return placed(cls.read(folder, variant), torch_dtype or dtype, device_map)

    def save_pretrained(self, save_directory: str | Path, *, variant: str | None = None, **options: Any) -> None:
        """Write the component's folder, with the code that it needs."""
        check_options(options)
        self.write(Path(save_directory), variant)


def check_options(options: dict[str, Any]) -> None:
    """Raise ConfigError for one of diffusers' options that these components do not have."""
    for name, only in UNUSED.items():
        if options.get(name, only) not in (only, True if name == "use_safetensors" else only):
            raise ConfigError(
                f"{name} {options[name]} is not possible: weights are one safetensors file, not quantized"
            )


def placed(component: Any, dtype: torch.dtype | None, device_map: Any) -> Any:
    """The component in a precision and, of diffusers' device maps, on the one device that it names."""
    device = device_map.get("") if isinstance(device_map, dict) else device_map
    if device is not None or dtype is not None:
        # Not its own `to`, which warns that a precision is better given to from_pretrained: here it was.
        nn.Module.to(component, device=device, dtype=dtype)
    return component
