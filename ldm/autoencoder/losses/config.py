"""Config of the losses beside the distance between pixels: perceptual, adversarial, and the equivariance."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ldm.config.bounds import Above, AtLeast, Between, Checked
from ldm.training.config import AdamWConfig, OptimConfig

Count = Annotated[int, AtLeast(1)]
Weight = Annotated[float, AtLeast(0)]
Fraction = Annotated[float, Between(0, 1)]


@dataclass(frozen=True)
class PerceptualConfig(Checked):
    """A distance between features of a pretrained network (LPIPS), added to the distance between pixels."""

    weight: Annotated[float, Above(0)] = 0.5  # of the distance, as LPIPS counts it
    backbone: Literal["vgg", "alex", "squeeze", "features"] = "vgg"  # features: any network, from a folder
    weights_file: str = ""  # the backbone's weights, or the folder of features; empty: as torch has or downloads them
    size: Count = 128  # images with a shorter side below this are first enlarged to it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone == "features" and not self.weights_file.strip():
            raise ValueError("backbone features needs weights_file: a folder with config.json and the weights")


@dataclass(frozen=True)
class DiscriminatorConfig(Checked):
    """A patch discriminator that joins late and tells images from their reconstructions (the GAN loss of VQGAN)."""

    weight: Weight = 0.5  # of the adversarial loss, on top of the adaptive weight
    loss: Literal["hinge", "non-saturating"] = "hinge"
    start: Fraction = 0.5  # fraction of the run at which the discriminator begins to learn
    warmup: Fraction = 0.05  # fraction of the run over which the adversarial loss then ramps up
    adaptive: bool = True  # bring its gradient at the last layer to the norm of the reconstruction loss's gradient
    width: Count = 64  # channels of the first layer
    layers: Count = 3  # layers that halve the size
    lecam: Weight = 0.0  # weight of the LeCAM regularization
    r1: Weight = 0.0  # weight of the gradient penalty at real images
    optim: OptimConfig = field(default_factory=lambda: AdamWConfig(lr=2e-4, betas=(0.5, 0.9)))


@dataclass(frozen=True)
class EquivarianceConfig(Checked):
    """In some steps the latent is scaled and rotated, and must decode to the scaled and rotated image (EQ-VAE)."""

    probability: Fraction = 0.5  # of such a step
    min_scale: Annotated[float, Between(0, 1, low_is_open=True)] = 0.25  # the largest scale is 1
    rotate90: bool = True  # by quarter turns
