"""The denoiser as a component of a diffusers pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ldm.batch import NULL, ClassLabels, Condition
from ldm.component.code_file import CodeFile, own_code
from ldm.component.own_model import OwnModel
from ldm.config.plain import from_plain
from ldm.config.reader import to_dict
from ldm.diffusion.denoiser import Denoiser, check_positive
from ldm.diffusion.model import FORMAT, DiffusionModelConfig, create_denoiser, load_denoiser, save_denoiser
from ldm.errors import ConfigError
from ldm.shapes import Latents
from ldm.text.prompts import PromptEncoders


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
        self.prompts = PromptEncoders(self.model_config.schema)

    @classmethod
    def around(cls, denoiser: Denoiser, config: DiffusionModelConfig) -> Self:
        """The component of a denoiser that is there already."""
        with torch.device("meta"):
            component = cls(**to_dict(config))
        component.model = denoiser
        return component.eval()

    @classmethod
    def read(cls, folder: Path, variant: str | None) -> Self:
        component = cls.around(*load_denoiser(folder, variant))
        component.prompts = PromptEncoders(component.model_config.schema, folder)
        return component

    def write(self, folder: Path, variant: str | None) -> None:
        save_denoiser(self.model, self.model_config, folder, variant)
        self.prompts.save(folder)
        self.code().write(folder)

    def code(self) -> CodeFile:
        config = self.model_config
        parts = {"DENOISER_NETWORKS": config.denoiser.network.kind, "SAMPLERS": config.sampling.sampler}
        return own_code("ldm.export.pipeline.denoiser_model:DenoiserModel", "denoiser", parts)

    def forward(
        self,
        noisy: Latents,
        sigma: float | Tensor,
        class_labels: ClassLabels | None = None,
        condition: Condition | None = None,
    ) -> Latents:
        """The denoised latents, in float32, or float64 if `noisy` is.

        `sigma` is the standard deviation of the noise, one number or one per sample. `class_labels` are classes by name
        or index, a tensor of indices in which -1 leaves the class out, or None, which leaves it out everywhere.
        A `condition`, made by `prompts.request`, stands in their place where there is more to ask for.
        """
        check_positive(sigma)
        if condition is None:
            condition = self.condition(class_labels, len(noisy))
        denoised: Latents = self.model(noisy, sigma, condition if condition is None else condition.to(noisy.device))
        return denoised

    def condition(self, class_labels: ClassLabels | None, count: int) -> Condition | None:
        """The condition of `count` samples; None without labels."""
        if class_labels is None:
            return None
        schema = self.model_config.schema
        if not (torch.is_tensor(class_labels) and class_labels.ndim == 1 and not class_labels.is_floating_point()):
            class_labels = torch.tensor(schema.indices(class_labels))
        elif not bool(((class_labels >= NULL) & (class_labels < len(schema.choices))).all()):
            known = f"{len(schema.choices)} classes, from 0 on, and {NULL} for none"
            raise ConfigError(f"class_labels {class_labels.tolist()} are not all of this model: it has {known}")
        if len(class_labels) not in (1, count):
            raise ConfigError(f"{len(class_labels)} class_labels for {count} samples: give 1 or {count}")
        first = next(self.model.parameters())
        device = first.device if first.device.type != "meta" else class_labels.device
        return schema.condition(class_labels.to(device).expand(count))
