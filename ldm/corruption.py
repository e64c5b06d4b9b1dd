"""Corruptions: what a denoising autoencoder is shown in place of the image, or its decoder in place of the latent.

A corruption is its own config: a frozen dataclass that is called with a tensor. It serves pixels, latents, the layers
of a stack, and, as a mask, the encoder that sees visible patches only. A new one is a class here and its name in the
last line. (Torch is imported by what is called: a command line is read without it.)
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from ldm.config.bounds import Above, AtLeast, Between, Checked

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.randomness import StepRandom


Strength = Annotated[float, Above(0)]
Fraction = Annotated[float, Between(0, 1, high_is_open=True)]


@dataclass(frozen=True)
class Corrupted:
    """`values` is the corrupted tensor; `elements`, boolean and broadcastable to it, says which changed; None: all.

    `hidden`, batch x rows x columns, says which patches are hidden, where that is what was done.
    """

    values: "Tensor"
    elements: "Tensor | None" = None
    hidden: "Tensor | None" = None


class CorruptionBase(Checked):
    """What every corruption is: a function of a clean tensor, and what is known of it."""

    is_local: ClassVar[bool] = False  # whether it changes some elements and leaves the others

    @property
    def draws_on_host(self) -> bool:
        """Whether the host must know the random numbers."""
        return False

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """The corrupted tensor; `name` tells its random numbers apart, `patch` is a latent position in elements."""
        raise NotImplementedError

    def incompatibility(self, sides: tuple[int, int], position: tuple[int, int]) -> str | None:
        """Why it cannot be used on images of this height and width, or None."""
        return None


@dataclass(frozen=True)
class GaussianNoise(CorruptionBase):
    """Independent Gaussian noise of one strength, or of a strength drawn for each image."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: Strength | tuple[Strength, Strength] = 0.5  # std of the noise, where pixels are in [-1, 1]; two: log-uniform

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ordered("sigma", self.sigma)

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """clean + σ n, with unit Gaussian n."""
        noise = rng.normal(f"{name} noise", *clean.shape[1:], device=clean.device)
        sigma = strengths(self.sigma, clean, rng, f"{name} noise strength")
        return Corrupted(clean + sigma * noise.to(clean.dtype))


@dataclass(frozen=True)
class SaltAndPepper(CorruptionBase):
    """Some elements become black or white, each with half of the probability."""

    kind: Literal["salt-and-pepper"] = "salt-and-pepper"
    probability: Annotated[float, Between(0, 1, low_is_open=True)] = 0.3  # of an element to be replaced
    low: Annotated[float, Between(-1, 1)] = -1.0  # pepper
    high: Annotated[float, Between(-1, 1)] = 1.0  # salt
    is_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """`low` or `high` where a number falls below the probability (Vincent et al. 2010, section 3.3)."""
        drawn = rng.uniform(f"{name} salt and pepper", *clean.shape[1:], device=clean.device)
        elements = drawn < self.probability
        values = clean.masked_fill(elements, self.high).masked_fill(drawn < self.probability / 2, self.low)
        return Corrupted(values, elements)


@dataclass(frozen=True)
class Mask(CorruptionBase):
    """Elements, pixels or patches are set to 0, the middle of the range; what remains is not scaled up."""

    kind: Literal["mask"] = "mask"
    unit: Literal["element", "pixel", "patch"] = "patch"  # what is hidden as a whole
    fraction: Fraction | tuple[Fraction, Fraction] = 0.75  # of the units; two: drawn for each image between them
    patch: Annotated[int, AtLeast(0)] = 0  # pixels wide; 0: as wide as one position of the latent
    p_clean: Fraction = 0.0  # probability that an image is left as it is
    is_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.fraction if isinstance(self.fraction, tuple) else (self.fraction, self.fraction)
        if not low <= high or high == 0:
            raise ValueError(f"fraction must be above 0, or a smaller and a larger number, not {self.fraction}")

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """Of patches just the rounded fraction is hidden, of elements and pixels each one with that probability."""
        batch, channels, height, width = clean.shape
        fraction = self.fractions(clean, rng, name)
        if self.unit != "patch":
            units = (channels if self.unit == "element" else 1, height, width)
            elements = rng.uniform(f"{name} mask", *units, device=clean.device) < fraction.view(batch, 1, 1, 1)
            return Corrupted(clean.masked_fill(elements, 0), elements)
        down, right = self.patch_sides(patch)
        grid = (-(-height // down), -(-width // right))
        order = rng.uniform(f"{name} mask", math.prod(grid), device=clean.device).argsort(1).argsort(1)
        hidden = (order < (fraction * math.prod(grid)).round().view(batch, 1)).view(batch, *grid)
        elements = hidden.repeat_interleave(down, 1).repeat_interleave(right, 2)[:, None, :height, :width]
        return Corrupted(clean.masked_fill(elements, 0), elements, hidden)

    def fractions(self, clean: "Tensor", rng: "StepRandom", name: str) -> "Tensor":
        """One number per image."""
        low, high = self.fraction if isinstance(self.fraction, tuple) else (self.fraction, self.fraction)
        found = low + (high - low) * rng.uniform(f"{name} mask fraction", device=clean.device)
        return found * (rng.uniform(f"{name} mask of all", device=clean.device) >= self.p_clean)

    def hidden_count(self, patches: int) -> int | None:
        """How many of so many patches are hidden in every image; None if that differs."""
        import numpy as np

        if isinstance(self.fraction, tuple) or self.p_clean:
            return None
        return int((np.float32(self.fraction) * np.float32(patches)).round())

    def patch_sides(self, position: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a patch, given those of a position of the latent."""
        return (self.patch, self.patch) if self.patch else position

    def incompatibility(self, sides: tuple[int, int], position: tuple[int, int]) -> str | None:
        """What is wrong with this mask on images of this height and width, if anything."""
        if self.unit != "patch":
            return None
        patch = self.patch_sides(position)
        if any(side % step for side, step in zip(sides, patch, strict=True)):
            return f"patch {patch[0]} does not divide the size {sides[0]} x {sides[1]}"
        count = math.prod(side // step for side, step in zip(sides, patch, strict=True))
        most = self.fraction[1] if isinstance(self.fraction, tuple) else self.fraction
        hidden = round(most * count)
        if not 0 < hidden < count:
            return f"fraction {self.fraction} of {count} patches hides {'none' if not hidden else 'all'} of them"
        return None


@dataclass(frozen=True)
class Blur(CorruptionBase):
    """A Gaussian blur of one width, or of a width drawn for each image."""

    kind: Literal["blur"] = "blur"
    sigma: Strength | tuple[Strength, Strength] = 1.0  # pixels; two: log-uniform

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ordered("sigma", self.sigma)

    @property
    def draws_on_host(self) -> bool:
        """The size of a filter depends on its width."""
        return isinstance(self.sigma, tuple)

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """Three sigma to each side, reflected at the borders."""
        import torch
        from torchvision.transforms.v2.functional import gaussian_blur

        blurred = []
        on_host = torch.empty(len(clean), 1, 1, 1)  # where the widths are needed
        sigmas = strengths(self.sigma, on_host, rng, f"{name} blur").flatten().tolist()
        for image, sigma in zip(clean, sigmas, strict=True):
            sides = [2 * min(math.ceil(3 * sigma), side - 1) + 1 for side in reversed(clean.shape[-2:])]
            blurred.append(gaussian_blur(image[None], sides, [sigma] * 2))
        return Corrupted(torch.cat(blurred))


@dataclass(frozen=True)
class Interpolation(CorruptionBase):
    """(1 - t) clean + t * strength * std * noise, with t uniform in [0, 1) for each image."""

    kind: Literal["interpolation"] = "interpolation"
    strength: Strength = 1.0  # 3 is usual where a tokenizer is to denoise

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """The noise of denoising tokenizers (l-DeTok, Yang et al. 2025; RAE, Zheng et al. 2025).

        `std` is the standard deviation of the sample itself, so that latents cannot escape the noise by growing.
        """
        noise = rng.normal(f"{name} noise", *clean.shape[1:], device=clean.device)
        t = rng.uniform(f"{name} noise share", *[1] * (clean.ndim - 1), device=clean.device)
        std = clean.detach().std(dim=tuple(range(1, clean.ndim)), correction=0, keepdim=True)
        return Corrupted((1 - t) * clean + t * self.strength * std * noise)


def check_ordered(name: str, given: float | tuple[float, float]) -> None:
    """Raise ValueError for two numbers of which the first is not the smaller one."""
    if isinstance(given, tuple) and not given[0] < given[1]:
        raise ValueError(f"{name} must be a smaller and a larger number, not {given}")


def strengths(given: float | tuple[float, float], clean: "Tensor", rng: "StepRandom", name: str) -> "Tensor":
    """One strength per image, log-uniform where two are given: batch x 1 x 1 x 1."""
    shape = [len(clean), *[1] * (clean.ndim - 1)]
    if not isinstance(given, tuple):
        return clean.new_full(shape, given)
    low, high = given
    drawn = rng.uniform(name, device=clean.device).to(clean.dtype)
    return (low * (high / low) ** drawn).view(shape)


Corruption: TypeAlias = GaussianNoise | SaltAndPepper | Mask | Blur | Interpolation
