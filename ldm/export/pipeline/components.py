"""Denoiser and autoencoder as components of a diffusers pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from ldm.autoencoder.config import AutoencoderConfig
from ldm.autoencoder.formats import ours
from ldm.autoencoder.model import create
from ldm.batch import ClassLabels, Condition
from ldm.config.plain import from_plain
from ldm.config.reader import to_dict
from ldm.diffusion.denoiser import Denoiser, check_positive
from ldm.errors import ConfigError
from ldm.export.pipeline.own_code import CodeFile, own_code
from ldm.pipeline import FORMAT, DiffusionModelConfig, create_denoiser, load_denoiser, save_denoiser
from ldm.shapes import Images, Latents

UNUSED = {"safe_serialization": True, "push_to_hub": False, "use_safetensors": None, "quantization_config": None}


class OwnModel(ModelMixin, ConfigMixin):
    """A component that diffusers has no class for, read and written as diffusers' own are."""

    config_name = "config.json"

    @classmethod
    def read(cls, folder: Path, variant: str | None) -> Self:
        """The component in a folder."""
        raise NotImplementedError

    def write(self, folder: Path, variant: str | None) -> None:
        """Write the config and the weights into a folder."""
        raise NotImplementedError

    def code(self) -> CodeFile:
        """The file by which diffusers finds this class in a folder."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str = "",
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        device_map: Any = None,
        **options: Any,
    ) -> Self:
        """Read the component's folder in a run."""
        check_options(options)
        component = cls.read(Path(pretrained_model_name_or_path) / subfolder, variant)
        return placed(component, torch_dtype or dtype, device_map)

    def save_pretrained(self, save_directory: str | Path, *, variant: str | None = None, **options: Any) -> None:
        """Write the component's folder, with the code that it needs."""
        check_options(options)
        self.write(Path(save_directory), variant)
        self.code().write(Path(save_directory))


class DenoiserModel(OwnModel):
    """A denoiser D(x; σ) together with its config: the `unet` of a pipeline."""

    @register_to_config
    def __init__(
        self,
        latent_shape: Sequence[int],
        schema: dict[str, Any],
        denoiser: dict[str, Any],
        sampling: dict[str, Any],
        trained_with_condition_dropout: bool = True,
        format: int = FORMAT,
    ):
        """What DiffusionModelConfig holds, in the plain values of its JSON."""
        super().__init__()
        self.model_config: DiffusionModelConfig = from_plain(
            DiffusionModelConfig,
            {"latent_shape": latent_shape, "schema": schema, "denoiser": denoiser, "sampling": sampling}
            | {"trained_with_condition_dropout": trained_with_condition_dropout, "format": format},
        )
        self.model = create_denoiser(self.model_config)

    @classmethod
    def around(cls, denoiser: Denoiser, config: DiffusionModelConfig) -> Self:
        """The component of a denoiser that is there already."""
        with torch.device("meta"):
            component = cls(**to_dict(config))
        component.model = denoiser
        return component.eval()

    @classmethod
    def read(cls, folder: Path, variant: str | None) -> Self:
        return cls.around(*load_denoiser(folder, variant))

    def write(self, folder: Path, variant: str | None) -> None:
        save_denoiser(self.model, self.model_config, folder, variant)

    def code(self) -> CodeFile:
        return own_code(type(self), "denoiser", {"DENOISER_NETWORKS": self.model_config.denoiser.network.kind})

    def forward(self, noisy: Latents, sigma: float | Tensor, class_labels: ClassLabels | None = None) -> Latents:
        """The denoised latents, in float32, or float64 if `noisy` is.

        `sigma` is the standard deviation of the noise, one number or one per sample. `class_labels` are classes by name
        or index, a tensor of indices in which -1 leaves the class out, or None, which leaves it out everywhere.
        """
        check_positive(sigma)
        denoised: Latents = self.model(noisy, sigma, self.condition(class_labels, len(noisy)))
        return denoised

    def condition(self, class_labels: ClassLabels | None, count: int) -> Condition | None:
        """The condition of `count` samples; None without labels."""
        if class_labels is None:
            return None
        schema = self.model_config.schema
        if not (torch.is_tensor(class_labels) and class_labels.ndim == 1 and not class_labels.is_floating_point()):
            class_labels = torch.tensor(schema.indices(class_labels))
        if len(class_labels) not in (1, count):
            raise ConfigError(f"{len(class_labels)} class_labels for {count} samples: give 1 or {count}")
        first = next(self.model.parameters())
        device = first.device if first.device.type != "meta" else class_labels.device
        return schema.condition(class_labels.to(device).expand(count))


class AutoencoderModel(OwnModel):
    """An autoencoder that diffusers has no class for, with unit-variance latents: the `vae` of a pipeline."""

    @register_to_config
    def __init__(
        self,
        image: Sequence[int],
        network: dict[str, Any],
        bottleneck: dict[str, Any],
        decodes_images: bool = True,
        classes: int = 0,
    ):
        """`image` is channels, height and width of the training images; the rest as `ldm.autoencoder.config` has it."""
        super().__init__()
        config = from_plain(AutoencoderConfig, {"network": network, "bottleneck": bottleneck})
        channels, height, width = image
        self.autoencoder = create(config, image=(channels, height, width), classes=classes)
        self.autoencoder.decodes_images = decodes_images

    @classmethod
    def of(cls, saved: ours.Saved) -> Self:
        """The component of an autoencoder that is saved, or is about to be."""
        parts = {name: to_dict(getattr(saved.config, name)) for name in ("network", "bottleneck")}
        component = cls(list(saved.image), **parts, decodes_images=saved.decodes_images, classes=saved.classes)
        component.autoencoder.load_state_dict(saved.tensors)
        return component.eval()

    @classmethod
    def read(cls, folder: Path, variant: str | None) -> Self:
        return cls.of(ours.read(folder, variant))

    def write(self, folder: Path, variant: str | None) -> None:
        autoencoder = self.autoencoder
        config, image = autoencoder.config, autoencoder.image
        assert config is not None and image is not None
        saved = ours.Saved(config, image, autoencoder.decodes_images, autoencoder.state_dict())
        ours.write(folder, saved, variant)

    def code(self) -> CodeFile:
        return autoencoder_code(self.config["network"]["kind"], self.config["bottleneck"]["kind"])

    @apply_forward_hook
    def encode(self, x: Images) -> AutoencoderKLOutput:
        """The posterior of each image over the latents, as `latent_dist`."""
        return AutoencoderKLOutput(latent_dist=self.autoencoder.encode(x))

    @apply_forward_hook
    def decode(self, z: Latents) -> DecoderOutput:
        """The image of each latent, as `sample`."""
        return DecoderOutput(sample=self.autoencoder.decode(z))

    def forward(self, sample: Images) -> DecoderOutput:
        """Each image through the mode of its posterior and back."""
        return DecoderOutput(sample=self.autoencoder.reconstruct(sample))


def autoencoder_code(network: str, bottleneck: str) -> CodeFile:
    """The file by which diffusers finds AutoencoderModel in the `vae` folder of an autoencoder of these kinds."""
    return own_code(AutoencoderModel, "autoencoder", {"NETWORKS": network, "BOTTLENECKS": bottleneck})


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
