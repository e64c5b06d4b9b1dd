"""Config of anomaly detection, with the table of the scores to choose from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from ldm.config.bounds import Above, AtLeast, Between, Checked, OneOf
from ldm.config.parts import Part
from ldm.errors import ConfigError

# What a score may need of a model, and in which words one says that it has none of it.
NEEDS = {
    "reconstruction": "a reconstruction, which a model of pixels alone has not",
    "images": "reconstructed images: an autoencoder, or pca:K",
    "denoiser": "a diffusion model not tuned for few steps",
    "latents": "latents that a covariance can be fitted to",
    "posterior": "an autoencoder with a KL bottleneck",
    "hidden patches": "a masked autoencoder: a vit that was trained with hidden patches",
    "backbone": "a pretrained network to compare features with (backbone)",
    "windows": "images of at least 11 pixels high and wide",
}


@dataclass(frozen=True)
class ScoreFacts(Part):
    """What is known of a score: what it needs of the model, what it sees, and what it is blind to."""

    needs: tuple[str, ...]  # of NEEDS
    sees: str  # in a line, for help
    blind_to: str
    has_map: bool = True  # where the latents have height and width
    fits: bool = False  # whether something is fitted to normal images that knows them from new ones afterwards
    weights: Literal["equal", "by deviation", "likelihood"] = "equal"  # of the components of its map
    in_default: bool = False  # whether it is computed, where the model has what it needs, if nobody chooses


SCORES = {
    "reconstruction": ScoreFacts(
        "ldm.anomaly.scores:reconstruction",
        needs=("reconstruction",),
        sees="what the model cannot rebuild: squared error",
        blind_to="a defect inside what the model can draw; images simpler than the normal ones",
        in_default=True,
    ),
    "reconstruction-l1": ScoreFacts(
        "ldm.anomaly.scores:reconstruction_l1",
        needs=("reconstruction",),
        sees="the same with absolute error: many small errors count more beside few large ones",
        blind_to="as reconstruction",
    ),
    "reconstruction-ssim": ScoreFacts(
        "ldm.anomaly.scores:reconstruction_ssim",
        needs=("images", "windows"),
        sees="wrong structure at low contrast: 1 - SSIM of each window of 11 pixels",
        blind_to="as reconstruction; a change of brightness",
        in_default=True,
    ),
    "reconstruction-features": ScoreFacts(
        "ldm.anomaly.scores:reconstruction_features",
        needs=("images", "backbone"),
        sees="what looks different to a pretrained network, at every scale of its maps",
        blind_to="what that network has never had to tell apart",
    ),
    "denoising": ScoreFacts(
        "ldm.anomaly.scores:denoising",
        needs=("denoiser",),
        sees="what a denoiser, under noise of several levels, does not expect: details at small ones, shapes at large",
        blind_to="what the autoencoder's latents do not show; images simpler than the normal ones",
        weights="by deviation",
        in_default=True,
    ),
    "latent-density": ScoreFacts(
        "ldm.anomaly.scores:latent_density",
        needs=("latents",),
        sees="latents far from the normal ones, whatever comes of them: Mahalanobis distance, shrunken",
        blind_to="what the encoder leaves out; an odd combination with an ordinary covariance",
        fits=True,
    ),
    "pixel-density": ScoreFacts(
        "ldm.anomaly.scores:pixel_density",
        needs=(),
        sees="the same of blurred pixels, without any model",
        blind_to="small defects; normal images that are not all of a kind, or not aligned",
        fits=True,
        in_default=True,
    ),
    "elbo": ScoreFacts(
        "ldm.anomaly.scores:elbo",
        needs=("posterior",),
        sees="both at once, in nats: negative evidence lower bound, reconstruction and KL",
        blind_to="images simpler than the normal ones, which are likelier than these",
        weights="likelihood",
    ),
    "masked": ScoreFacts(
        "ldm.anomaly.scores:masked",
        needs=("hidden patches",),
        sees="patches that do not follow from the others",
        blind_to="a defect that repeats over the image",
        in_default=True,
    ),
}
CHOICES: dict[str, object] = {"default": None, "all": None, **SCORES}  # of the setting `scores`


@dataclass(frozen=True)
class DetectorConfig(Checked):
    """An anomaly detector: its scores, how a map becomes one number, and the false-alarm rate."""

    scores: tuple[Annotated[str, OneOf(CHOICES)], ...] = ("default",)  # several are combined
    pool: Literal["mean", "max", "top"] = "mean"  # score of an image from its map; top: mean of the highest hundredth
    smoothing: Annotated[float, AtLeast(0)] = 1.0  # pixels: σ of the Gaussian that maps are smoothed with
    blur: Annotated[float, AtLeast(0)] = (
        0.7  # pixels: σ of the blur of residuals before they are squared, and of pixels for a density
    )
    alpha: Annotated[float, Between(0, 1, low_is_open=True, high_is_open=True)] = 0.05  # false-alarm rate
    seed: Annotated[int, AtLeast(0)] = 0  # of the noise, the hidden patches, and the split of the normal images
    sigmas: tuple[Annotated[float, Above(0)], ...] = (0.25, 0.5, 1.0, 2.0)  # noise levels of `denoising`
    draws: Annotated[int, AtLeast(1)] = 4  # of noise at each level, of the posterior, of the patches hidden together
    hidden_sets: Annotated[int, AtLeast(2)] = 4  # disjoint sets of patches, hidden one after the other
    backbone: str = ""  # vgg, alex, squeeze, or the folder of a pretrained network, to compare features with
    variance: Annotated[float, Between(0, 1, low_is_open=True, high_is_open=True)] = 0.95  # kept of features:FOLDER

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scores or not self.sigmas:
            raise ValueError(f"{'sigmas' if self.scores else 'scores'} must hold at least one")


def chosen_scores(asked: Collection[str], missing: Mapping[str, str], source: str) -> list[str]:
    """The scores that `asked` names, in the order of the table; "all" and "default" take those that are possible.

    `missing` says, for each need that the model does not meet, why not. Raises ConfigError for a score that has such a
    need.
    """
    lacks = {
        name: next((missing[need] for need in facts.needs if need in missing), "") for name, facts in SCORES.items()
    }
    possible = [name for name, reason in lacks.items() if not reason]
    for name in asked:
        if lacks.get(name):
            raise ConfigError(
                f"{source} gives no score {name}, which needs {lacks[name]}; it gives {', '.join(possible)}"
            )
    chosen = {name for name in asked if name in SCORES}
    if "all" in asked:
        chosen |= set(possible)
    if "default" in asked:
        chosen |= {name for name in possible if SCORES[name].in_default}
    return [name for name in SCORES if name in chosen]
