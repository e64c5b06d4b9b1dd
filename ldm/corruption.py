"""What is done to images or latents before somebody has to make them good again.

A corruption is its settings: a frozen dataclass that is called with a tensor. It serves pixels, latents, the layers of
a stack, and, as a mask, the encoder that sees visible patches only. A new one is a class here and its name in the last
line. (Torch is imported by those who are called: the settings of a command line do without it.)
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.randomness import StepRandom


@dataclass(frozen=True)
class Corrupted:
    """`values` is what became of a tensor; `touched`, boolean and broadcastable to it, says where (None: everywhere).

    `hidden`, batch x rows x columns, says which patches have nothing left, where that is what was done.
    """

    values: "Tensor"
    corrupted_elements: "Tensor | None" = None
    hidden: "Tensor | None" = None


@dataclass(frozen=True)
class GaussianNoise:
    """Independent Gaussian noise of one strength, or of a strength drawn for each image."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float | tuple[float, float] = 0.5  # standard deviation, where pixels are in [-1, 1]; two: log-uniform

    def __post_init__(self) -> None:
        check_strength("sigma", self.sigma)

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """clean + σ n, with unit Gaussian n."""
        noise = rng.normal(f"{name} noise", *clean.shape[1:], device=clean.device)
        sigma = strengths(self.sigma, clean, rng, f"{name} noise strength")
        return Corrupted(clean + sigma * noise.to(clean.dtype))


@dataclass(frozen=True)
class SaltAndPepper:
    """Some elements become black or white, each with half of the probability."""

    kind: Literal["salt-and-pepper"] = "salt-and-pepper"
    probability: float = 0.3  # of an element to be replaced
    low: float = -1.0  # pepper
    high: float = 1.0  # salt
    is_local = True  # it touches some elements and leaves the others

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability must be above 0 and at most 1, not {self.probability}")
        if not -1 <= self.low < self.high <= 1:
            raise ValueError(f"low and high must satisfy -1 <= low < high <= 1, not {self.low} and {self.high}")

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """`low` or `high` where a number falls below the probability (Vincent et al. 2010, section 3.3)."""
        drawn = rng.uniform(f"{name} salt and pepper", *clean.shape[1:], device=clean.device)
        corrupted_elements = drawn < self.probability
        values = clean.masked_fill(corrupted_elements, self.high).masked_fill(drawn < self.probability / 2, self.low)
        return Corrupted(values, corrupted_elements)


@dataclass(frozen=True)
class Mask:
    """Elements, pixels or patches are set to 0, the middle of the range; what remains is not scaled up."""

    kind: Literal["mask"] = "mask"
    unit: Literal["element", "pixel", "patch"] = "patch"  # what is hidden as a whole
    fraction: float | tuple[float, float] = 0.75  # of the units; two: drawn for each image between them
    patch: int = 0  # pixels wide; 0: as wide as one position of the latent
    whole: float = 0.0  # fraction of the images that are left as they are
    is_local = True

    def __post_init__(self) -> None:
        ends = self.fraction if isinstance(self.fraction, tuple) else (self.fraction, self.fraction)
        if len(ends) != 2 or not (0 <= ends[0] <= ends[1] < 1 and ends[1] > 0):
            raise ValueError(f"fraction must be above 0 and below 1, not {self.fraction}")
        if self.patch < 0:
            raise ValueError(f"patch must be 0 or more pixels, not {self.patch}")
        if not 0 <= self.whole < 1:
            raise ValueError(f"whole must be a fraction from 0 to below 1, not {self.whole}")

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """Of patches just the rounded fraction is hidden, of elements and pixels each one with that probability."""
        batch, channels, height, width = clean.shape
        fraction = self.fractions(clean, rng, name)
        if self.unit != "patch":
            units = (channels if self.unit == "element" else 1, height, width)
            corrupted_elements = rng.uniform(f"{name} mask", *units, device=clean.device) < fraction.view(
                batch, 1, 1, 1
            )
            return Corrupted(clean.masked_fill(corrupted_elements, 0), corrupted_elements)
        down, right = self.patch_sides(patch)
        grid = (-(-height // down), -(-width // right))
        order = rng.uniform(f"{name} mask", math.prod(grid), device=clean.device).argsort(1).argsort(1)
        hidden = (order < (fraction * math.prod(grid)).round().view(batch, 1)).view(batch, *grid)
        corrupted_elements = hidden.repeat_interleave(down, 1).repeat_interleave(right, 2)[:, None, :height, :width]
        return Corrupted(clean.masked_fill(corrupted_elements, 0), corrupted_elements, hidden)

    def fractions(self, clean: "Tensor", rng: "StepRandom", name: str) -> "Tensor":
        """One number per image."""
        low, high = self.fraction if isinstance(self.fraction, tuple) else (self.fraction, self.fraction)
        found = low + (high - low) * rng.uniform(f"{name} mask fraction", device=clean.device)
        return found * (rng.uniform(f"{name} mask of all", device=clean.device) >= self.whole)

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
class Blur:
    """A Gaussian blur of one width, or of a width drawn for each image."""

    kind: Literal["blur"] = "blur"
    sigma: float | tuple[float, float] = 1.0  # pixels; two: log-uniform

    def __post_init__(self) -> None:
        check_strength("sigma", self.sigma)

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
class Interpolation:
    """(1 - t) clean + t * strength * spread * noise, with t uniform in [0, 1) for each image."""

    kind: Literal["interpolation"] = "interpolation"
    strength: float = 1.0  # 3 is usual where a tokenizer is to denoise

    def __post_init__(self) -> None:
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be positive, not {self.strength}")

    def __call__(self, clean: "Tensor", rng: "StepRandom", *, name: str, patch: tuple[int, int]) -> Corrupted:
        """The noise of denoising tokenizers (l-DeTok, Yang et al. 2025; RAE, Zheng et al. 2025).

        `spread` is the standard deviation of the sample itself, so that latents cannot escape the noise by growing.
        """
        noise = rng.normal(f"{name} noise", *clean.shape[1:], device=clean.device)
        t = rng.uniform(f"{name} noise share", *[1] * (clean.ndim - 1), device=clean.device)
        spread = clean.detach().std(dim=tuple(range(1, clean.ndim)), correction=0, keepdim=True)
        return Corrupted((1 - t) * clean + t * self.strength * spread * noise)


def check_strength(name: str, given: float | tuple[float, float]) -> None:
    """Raise ValueError unless it is a positive number, or a smaller and a larger one."""
    ends = given if isinstance(given, tuple) else (given,)
    if not all(0 < end < math.inf for end in ends):
        raise ValueError(f"{name} must be positive, not {given}")
    if ends[0] >= ends[-1] and len(ends) == 2:
        raise ValueError(f"{name} must be a smaller and a larger number, not {given}")


def strengths(given: float | tuple[float, float], clean: "Tensor", rng: "StepRandom", name: str) -> "Tensor":
    """One strength per image, log-uniform where two are given: batch x 1 x 1 x 1."""
    shape = [len(clean), *[1] * (clean.ndim - 1)]
    if not isinstance(given, tuple):
        return clean.new_full(shape, given)
    low, high = given
    drawn = rng.uniform(name, device=clean.device).to(clean.dtype)
    return (low * (high / low) ** drawn).view(shape)


def incompatibility(corruption: Any, sides: tuple[int, int], position: tuple[int, int]) -> str | None:
    """What is wrong with a corruption for images of this height and width, if anything."""
    return corruption.incompatibility(sides, position) if hasattr(corruption, "misfit") else None


Corruption: TypeAlias = GaussianNoise | SaltAndPepper | Mask | Blur | Interpolation
