"""What a code is asked for beside giving the image back: to be sparse, to stand still, to name the class.

A penalty is its settings: a frozen dataclass that is called with what one batch became. A new one is a class here and
its line in `Penalties`. Sums over a code are divided by the number of image values, as the KL is, so that a weight
means the same at any size. (Torch is imported by those who are called: the settings of a command line do without it.)
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.randomness import StepRandom


@dataclass(frozen=True)
class ForwardPass:
    """One batch on its way through an autoencoder, or through one layer of it."""

    autoencoder: Any  # ldm.autoencoder.model.Autoencoder
    images: "Tensor"  # what is to be given back: batch x channels x h x w
    inputs: "Tensor"  # what the encoder saw instead; the code can be differentiated by it if a penalty wants that
    moments: "Tensor"  # what the encoder made of it, before the bottleneck
    code: "Tensor"  # the mean of the posterior
    decode: Any  # code -> what `images` should be, with what is hidden of them
    reconstruction: "Tensor"
    labels: "Tensor"
    rng: "StepRandom"

    @property
    def image_values(self) -> int:
        """How many numbers an image has, as the encoder saw it."""
        return self.inputs[0].numel()


class Penalty:
    """A weight, and what it weighs."""

    weight: float
    needs_jacobian = False  # whether it needs the code's derivative by the inputs
    needs_latent = True  # and rests while a layer trains whose output is not the code

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight must be positive, not {self.weight}; leave the penalty out for none")

    def incompatibility(self, autoencoder: Any, classes: int) -> str | None:
        """What keeps this penalty from an autoencoder, if anything."""
        return None

    def __call__(self, encoded: ForwardPass) -> "Tensor":
        raise NotImplementedError


@dataclass(frozen=True)
class L1Penalty(Penalty):
    """The absolute values of the code (sparse coding, Olshausen and Field 1996)."""

    weight: float = 0.05  # of their sum over the code, divided by the number of image values
    needs_latent = False  # a layer's output may be sparse as well

    def __call__(self, encoded: ForwardPass) -> "Tensor":
        return encoded.code.abs().flatten(1).sum(1).mean() / encoded.image_values


@dataclass(frozen=True)
class KLSparsity(Penalty):
    """KL between a wanted rate of activation and that of each unit over the batch (Ng 2011)."""

    weight: float = 3.0  # of its sum over the units, divided by the number of image values
    rate: float = 0.05  # wanted mean activation of each unit, between 0 and 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must be above 0 and below 1, not {self.rate}")

    def incompatibility(self, autoencoder: Any, classes: int) -> str | None:
        """Only a sigmoid's activation is a rate."""
        if getattr(autoencoder.bottleneck, "activation", None) != "sigmoid":
            return "needs autoencoder.bottleneck.kind sparse with activation sigmoid, whose values are rates"
        return None

    def __call__(self, encoded: ForwardPass) -> "Tensor":
        """The rates are those of the batch on all processes; with accumulation, of a micro-batch."""
        from ldm.distributed import mean_with_gradient

        rate = mean_with_gradient(encoded.code.mean((0, 2, 3)))
        return bernoulli_kl(self.rate, rate).sum() / encoded.image_values


def bernoulli_kl(wanted: float, rate: "Tensor") -> "Tensor":
    """KL(Bernoulli(wanted) ‖ Bernoulli(rate)) in nats, elementwise; rates of 0 and 1 count as 1e-7 off them."""
    kept = rate.clamp(1e-7, 1 - 1e-7)
    return wanted * (math.log(wanted) - kept.log()) + (1 - wanted) * (math.log(1 - wanted) - (1 - kept).log())


@dataclass(frozen=True)
class JacobianPenalty(Penalty):
    """How far the code moves when the image does (contractive autoencoders, Rifai et al. 2011)."""

    weight: float = 0.1  # of the squared Jacobian per element of the standardized code
    probes: int = 1  # random probes of the Jacobian per step; 0: exact, at one backward pass per element of the code
    needs_jacobian = True
    needs_latent = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes < 0:
            raise ValueError(f"probes must be 0 or more, not {self.probes}")

    def incompatibility(self, autoencoder: Any, classes: int) -> str | None:
        """Whatever mixes the images of a batch, or draws anew at every call, has no Jacobian of one image."""
        from torch import nn

        for module in autoencoder.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                return "cannot be taken of a network with batch norm, which mixes the images of a batch"
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                return "cannot be taken of a network with dropout, which is another one at every call"
        return None

    def __call__(self, encoded: ForwardPass) -> "Tensor":
        """Of the standardized code: scaling the code down, for the decoder to undo it, gains nothing."""
        from ldm.distributed import mean_with_gradient

        code = encoded.code
        mean = mean_with_gradient(code.mean((0, 2, 3))).view(-1, 1, 1)
        variance = mean_with_gradient((code - mean).square().mean((0, 2, 3))).view(-1, 1, 1)
        std = variance.clamp_min(1e-12).sqrt()
        signs = None
        if self.probes:
            drawn = encoded.rng.uniform("contraction", self.probes, *code.shape[1:], device=code.device)
            signs = (drawn.to(code.dtype) < 0.5).to(code.dtype).transpose(0, 1) * 2 - 1
        return jacobian_norms(code, encoded.inputs, std, signs).mean() / code[0].numel()


def jacobian_norms(code: "Tensor", inputs: "Tensor", std: "Tensor", signs: "Tensor | None") -> "Tensor":
    """Squared Frobenius norm of the Jacobian of code / std by the inputs, one value per image.

    The Jacobian J is never formed. E ‖Jᵀv‖² = ‖J‖² for a vector v of independent random signs (Hutchinson 1990): with
    `signs`, probes x batch x the code's shape, it is their mean, unbiased for any number of probes. Without, v is each
    unit vector in turn, and the result is exact. `code` must treat each image of `inputs` by itself.
    """
    import torch

    if signs is None:
        units = torch.eye(code[0].numel(), dtype=code.dtype, device=code.device)
        signs = units.view(-1, 1, *code.shape[1:]).expand(-1, len(code), *[-1] * (code.ndim - 1))
        shares = [1.0] * len(signs)
    else:
        shares = [1 / len(signs)] * len(signs)
    create = torch.is_grad_enabled()
    total = code.new_zeros(len(code))
    for vector, share in zip(signs, shares, strict=True):
        (pulled_back,) = torch.autograd.grad(code, inputs, vector / std, create_graph=create, retain_graph=True)
        total = total + share * pulled_back.square().flatten(1).sum(1).to(total.dtype)
    return total


@dataclass(frozen=True)
class AuxKLoss(Penalty):
    """Units that have not fired for long explain what is left of the image (auxiliary loss, Gao et al. 2024)."""

    weight: float = 0.03125  # of the squared error of the rest, over the rest's own square
    units: int = 32  # how many of the dead ones take part, those with the largest values

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.units < 1:
            raise ValueError(f"units must be at least 1, not {self.units}")

    def incompatibility(self, autoencoder: Any, classes: int) -> str | None:
        """Only a sparse code has units that can be dead."""
        if not hasattr(autoencoder.bottleneck, "is_dead"):
            return "needs autoencoder.bottleneck.kind sparse, where units can be dead"
        return None

    def __call__(self, encoded: ForwardPass) -> "Tensor":
        """‖rest - (decode(z) - decode(0))‖² / ‖rest‖², with z the values of dead units alone, before the activation.

        Gao et al. activate them, which leaves units that are below 0 everywhere without a gradient.
        """
        from ldm.distributed import mean_with_gradient

        dead = encoded.autoencoder.bottleneck.is_dead(encoded.rng.step)
        values = encoded.moments * dead.view(-1, 1, 1)
        size = values.abs()
        least = size.topk(min(self.units, values.shape[1]), dim=1).values[:, -1:]
        code = values * (size >= least)
        rest = (encoded.images - encoded.reconstruction).detach()
        found = encoded.decode(code) - encoded.decode(code.new_zeros(code.shape))
        return (rest - found).square().mean() / mean_with_gradient(rest.square().mean()).clamp_min(1e-12) * dead.any()


@dataclass(frozen=True)
class L2Penalty(Penalty):
    """The squares of all weight matrices, inside the loss, where AdamW's weight decay stands outside it."""

    weight: float = 1e-4  # of their sum
    needs_latent = False

    def __call__(self, encoded: ForwardPass) -> "Tensor":
        parameters = [each for each in encoded.autoencoder.network.parameters() if each.ndim > 1]
        return sum(each.square().sum() for each in parameters)  # type: ignore[return-value]


@dataclass(frozen=True)
class ClassificationLoss(Penalty):
    """A linear layer reads the class from the code, averaged over positions; that is for fine-tuning."""

    weight: float = 1.0  # of the cross-entropy in nats

    def incompatibility(self, autoencoder: Any, classes: int) -> str | None:
        """There must be something to read."""
        return None if classes > 1 else "needs data with at least two classes"

    def __call__(self, encoded: ForwardPass) -> "Tensor":
        from torch.nn import functional as F

        return F.cross_entropy(encoded.autoencoder.head(encoded.code.mean((2, 3))), encoded.labels)


@dataclass(frozen=True)
class PenaltiesConfig:
    """Each is left out until its section is there; several may be."""

    l1: L1Penalty | None = None  # null: none
    rate: KLSparsity | None = None  # null: none
    contraction: JacobianPenalty | None = None  # null: none
    revival: AuxKLoss | None = None  # null: none
    decay: L2Penalty | None = None  # null: none
    classification: ClassificationLoss | None = None  # null: none

    @property
    def chosen(self) -> dict[str, Penalty]:
        """Those that are there, by name."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: penalty for name, penalty in found.items() if penalty is not None}
