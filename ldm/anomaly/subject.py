"""Models that anomaly scores are made with: a trained run, principal components of pixels, a pretrained network."""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ldm.anomaly.config import NEEDS
from ldm.anomaly.linear_model import LinearModel, evenly_many
from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.losses.distance import patch_statistics
from ldm.autoencoder.losses.perceptual import resize_up, rgb_triples
from ldm.autoencoder.model import Autoencoder
from ldm.corruption import Mask
from ldm.data.datasets import Subset
from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.denoiser import Denoiser
from ldm.errors import ConfigError, DataError
from ldm.export.diffusion_model import is_diffusion_model
from ldm.nn.backbone import Backbone, open_backbone
from ldm.nn.pretrained_weights import sha256_of
from ldm.pipeline import LatentDiffusion
from ldm.script_configs import vae_config_of
from ldm.shapes import Images, Latents, full_precision

FEATURE_SIDE = 128  # images with a shorter side below this are enlarged before features are taken
MOST_FEATURES = 2**16  # numbers of one image; a grid of more is averaged over squares of 2 x 2


class View:
    """One batch of images as a subject sees it; what several scores share is computed once.

    `target` is what is rebuilt: the images, or their features, batch x channels x h x w.
    """

    def __init__(self, images: Images, target: Tensor):
        self.images, self.target = images, target

    @property
    def posterior(self) -> Posterior:
        """The posterior of the latents."""
        raise NotImplementedError

    @property
    def reconstruction(self) -> Tensor:
        """What is rebuilt of the target from the latents."""
        raise NotImplementedError

    @property
    def latents(self) -> Latents:
        """The mode of the posterior, batch x channels x h x w."""
        return self.posterior.mode()


class Subject:
    """A model that scores of images are made with. `missing` says which of `NEEDS` it does not meet."""

    source: str
    channels: int | None = None  # of the images that it takes; None: any
    identity: str = ""  # a hash of its weights; empty: it has none that are not fitted
    needs_fitting = False  # whether it is fitted to normal images before anything else
    missing: dict[str, str]

    def view(self, images: Images) -> View:
        """What it makes of a batch of images on its device."""
        raise NotImplementedError

    def fit(self, normal: Subset, variance: float) -> None:
        """Fit what is in closed form; `variance` is the share of it that a pretrained network's components keep."""

    def state(self) -> dict[str, Tensor]:
        """What was fitted."""
        return {}

    def has_given(self, state: dict[str, Tensor]) -> bool:
        """Whether `state` may have given this: a model of this kind and size has."""
        return True

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""

    def to(self, device: torch.device) -> None:
        """Move to a device."""

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
        """Channels, height and width of the latents of images of this shape; None: few numbers, after it is fitted."""
        return None

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise DataError for images of other channels than it takes."""
        if self.channels is not None and shape[0] != self.channels:
            raise DataError(f"the images have {shape[0]} channels, and {self.source} takes {self.channels}")


class TrainedModel(Subject):
    """An autoencoder, and perhaps a denoiser of its latents."""

    def __init__(self, source: str, autoencoder: Autoencoder, denoiser: Denoiser | None, *, masks: bool):
        self.source = source
        self.autoencoder, self.denoiser = autoencoder.eval().requires_grad_(False), denoiser
        network = autoencoder.network
        self.channels = network.image_channels
        is_pixels = autoencoder.config is not None and autoencoder.config.network.kind == "pixels"
        unmet = {
            "reconstruction": is_pixels,
            "images": is_pixels,
            "denoiser": denoiser is None,
            "posterior": not autoencoder.bottleneck.is_stochastic,
            "hidden patches": not (network.can_skip_patches and masks),
        }
        self.missing = {need: NEEDS[need] for need, is_unmet in unmet.items() if is_unmet}
        parts = [sha256_of(each.state_dict()) for each in (autoencoder, denoiser) if each is not None]
        self.identity = "+".join(part[:32] for part in parts)

    def view(self, images: Images) -> "ModelView":
        return ModelView(images, self.autoencoder, self.denoiser)

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return self.autoencoder.latent_shape(shape[1:])

    def to(self, device: torch.device) -> None:
        self.autoencoder.to(device)
        if self.denoiser is not None:
            self.denoiser.to(device)


class ModelView(View):
    """Images, their posterior and their reconstruction by an autoencoder."""

    def __init__(self, images: Images, autoencoder: Autoencoder, denoiser: Denoiser | None):
        super().__init__(images, images)
        self.autoencoder, self.denoiser = autoencoder, denoiser

    @cached_property
    def posterior(self) -> Posterior:
        return self.autoencoder.encode(self.images)

    @cached_property
    def reconstruction(self) -> Images:
        return self.decoded(self.latents)

    def decoded(self, latents: Latents, hidden: Tensor | None = None) -> Images:
        """Images of latents, of the size of these; where patches were normalized, with mean and variance of theirs."""
        height, width = self.images.shape[2:]
        decoded = self.autoencoder.decode(latents, hidden)[..., :height, :width]
        if self.autoencoder.decodes_images:
            return decoded
        mean, std = patch_statistics(self.images, self.autoencoder.network.downsampling)
        return decoded * std + mean


class PrincipalComponents(Subject):
    """The principal components of normal images, `pca:K`, or of a pretrained network's features of them.

    The latter is FRE (Ndiour et al. 2022): a linear model of the deep features of a whole image, whose error there is
    the score. The features are the deepest but one of the network's maps.
    """

    needs_fitting = True

    def __init__(self, source: str, components: int | None, backbone: Backbone | None):
        self.source, self.components, self.backbone = source, components, backbone
        self.identity = "" if backbone is None else backbone.reference
        self.model: LinearModel | None = None
        unmet = ["denoiser", "posterior", "hidden patches", *([] if backbone is None else ["images"])]
        self.missing = {need: NEEDS[need] for need in unmet}

    def view(self, images: Images) -> "LinearView":
        assert self.model is not None
        return LinearView(images, self.grid(images), self.model)

    def grid(self, images: Images) -> Tensor:
        """What is rebuilt of images: they themselves, or a map of features."""
        return images if self.backbone is None else feature_grid(self.backbone, images)

    def fit(self, normal: Subset, variance: float) -> None:
        step = evenly_many(len(normal), self.grid(normal.evenly_spaced(1).images().to(self.device)).numel())
        parts = [self.grid(part.images().to(self.device)).flatten(1).cpu() for part in normal.every(step).chunks(32)]
        vectors = torch.cat(parts)
        self.model = LinearModel.fit(vectors, components=self.components, variance=variance).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.shift.device if self.backbone is not None else torch.device("cpu")

    def to(self, device: torch.device) -> None:
        if self.backbone is not None:
            self.backbone.to(device)
            self.model = None if self.model is None else self.model.to(device)

    def state(self) -> dict[str, Tensor]:
        assert self.model is not None
        return {"subject.mean": self.model.mean, "subject.directions": self.model.directions}

    def has_given(self, state: dict[str, Tensor]) -> bool:
        directions = state.get("subject.directions")
        return directions is not None and self.components in (None, directions.shape[1])

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.model = LinearModel(state["subject.mean"], state["subject.directions"]).to(self.device)


class LinearView(View):
    """Images, or their features, the coordinates along principal components as latents, and what these rebuild."""

    def __init__(self, images: Images, target: Tensor, model: LinearModel):
        super().__init__(images, target)
        self.model = model

    @cached_property
    def posterior(self) -> Posterior:
        return Posterior(self.model.coordinates(self.target.flatten(1))[:, :, None, None])

    @cached_property
    def reconstruction(self) -> Tensor:
        return self.model.vectors(self.latents.flatten(1)).view_as(self.target)


@torch.no_grad()
def feature_grid(backbone: Backbone, images: Images) -> Tensor:
    """The deepest map but one of a backbone: batch x channels x h x w, of all pictures that the channels make."""
    triples, _ = rgb_triples(images.shape[1])
    channels = resize_up(images, FEATURE_SIDE).unbind(1)
    pictures = [torch.stack([channels[place] for place in triple], 1) for triple in triples]
    grids = [full_precision(backbone(picture)[-2:][0]) for picture in pictures]
    grid = torch.cat(grids, 1)
    while grid[0].numel() > MOST_FEATURES and min(grid.shape[2:]) > 1:
        grid = torch.nn.functional.avg_pool2d(grid, 2)
    return grid


def open_subject(source: str | Path) -> Subject:
    """What a person names: `pca:K`, `features:FOLDER`, or a trained model as `Autoencoder.load` and
    `LatentDiffusion.load` take it; on the CPU. Raises ConfigError or CheckpointError if there is none.
    """
    kind, _, rest = str(source).partition(":")
    if kind == "pca":
        if not rest.isdecimal() or int(rest) < 1:
            raise ConfigError(f"{source}: pca:K takes a number of principal components, for instance pca:32")
        return PrincipalComponents(str(source), int(rest), None)
    if kind == "features":
        return PrincipalComponents(str(source), None, open_backbone("features", rest))
    if is_diffusion_model(str(source)):
        model = LatentDiffusion.load(source)
        tuned_for_few_steps = SAMPLERS[model.config.sampling.sampler].consistency
        denoiser = None if tuned_for_few_steps else model.denoiser
        return TrainedModel(str(source), model.autoencoder, denoiser, masks=True)
    config = vae_config_of(str(source))
    masks = config is None or isinstance(config.objective.corruption, Mask)
    return TrainedModel(str(source), Autoencoder.load(source), None, masks=masks)
