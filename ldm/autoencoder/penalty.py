"""Penalties: sparsity, the contractive (Jacobian) penalty, AuxK for dead units, weight decay, a classification loss.

A penalty is its own config: a frozen dataclass that is called with the forward pass of one batch. A new one is a class
here and its line in `PenaltiesConfig`. Sums over a code are divided by the number of image values, as the KL is, so
that a weight means the same at any size. (Torch is imported by what is called: a command line is read without it.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Protocol

from ldm.config.bounds import Above, AtLeast, Between, Checked

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ldm.batch import Step

Weight = Annotated[float, Above(0)]
Rate = Annotated[float, Between(0, 1, low_is_open=True, high_is_open=True)]


class BottleneckLike(Protocol):
    """What penalties ask of a bottleneck."""

    @property
    def gives_rates(self) -> bool: ...

    @property
    def tracks_usage(self) -> bool: ...

    def dead_units(self, step: "float | Tensor") -> "Tensor":
        """Which units count as dead, one truth value each."""
        ...


class AutoencoderLike(Protocol):
    """What penalties ask of an autoencoder."""

    @property
    def network(self) -> "nn.Module": ...

    @property
    def bottleneck(self) -> BottleneckLike: ...

    @property
    def head(self) -> "nn.Module | None": ...


class StageLike(Protocol):
    """What penalties ask of a training stage."""

    @property
    def has_code(self) -> bool:
        """Whether its encoder ends in the autoencoder's code."""
        ...

    @property
    def reads_classes(self) -> bool:
        """Whether it trains the classification head."""
        ...


@dataclass(frozen=True)
class ForwardPass:
    """One batch on its way through an autoencoder, or through one layer of it."""

    autoencoder: AutoencoderLike
    images: "Tensor"  # the target: batch x channels x h x w
    inputs: "Tensor"  # what the encoder saw instead; the code can be differentiated by it if a penalty needs that
    moments: "Tensor"  # the encoder's output, before the bottleneck
    code: "Tensor"  # the mode of the posterior
    decode: "Callable[[Tensor], Tensor]"  # code -> reconstruction
    reconstruction: "Tensor"
    labels: "Tensor"
    step: "Step"

    @property
    def image_values(self) -> int:
        """How many numbers an image has, as the encoder saw it."""
        return self.inputs[0].numel()


class Penalty(Checked):
    """A weight, and what it weighs."""

    weight: float
    log_name = ""  # its term in the log, if that is not the name of its setting
    needs_jacobian = False  # whether it differentiates the code by the inputs
    needs_latent = True  # whether it is about the code, and rests while a layer below it trains

    def incompatibility(self, autoencoder: AutoencoderLike, classes: int) -> str | None:
        """Why this penalty cannot be used with an autoencoder, or None."""
        return None

    def applies(self, stage: StageLike) -> bool:
        """Whether it counts in a training stage."""
        return stage.has_code or not self.needs_latent

    def __call__(self, forward: ForwardPass) -> "Tensor":
        """The unweighted penalty of a batch, a scalar."""
        raise NotImplementedError


@dataclass(frozen=True)
class L1Penalty(Penalty):
    """The absolute values of the code (sparse coding, Olshausen and Field 1996)."""

    weight: Weight = 0.05  # of their sum over the code, divided by the number of image values
    log_name = "l1_sparsity"  # l1 is the distance between the images
    needs_latent = False  # a layer's output may be sparse as well

    def __call__(self, forward: ForwardPass) -> "Tensor":
        return forward.code.abs().flatten(1).sum(1).mean() / forward.image_values


@dataclass(frozen=True)
class KLSparsity(Penalty):
    """KL between a target rate of activation and that of each unit over the batch (Ng 2011)."""

    weight: Weight = 3.0  # of its sum over the units, divided by the number of image values
    rate: Annotated[float, Between(0, 1, low_is_open=True, high_is_open=True)] = (
        0.05  # target mean activation of a unit
    )

    def incompatibility(self, autoencoder: AutoencoderLike, classes: int) -> str | None:
        """Only a sigmoid's activation is a rate."""
        if not autoencoder.bottleneck.gives_rates:
            return "needs autoencoder.bottleneck.kind sparse with activation sigmoid, whose values are rates"
        return None

    def __call__(self, forward: ForwardPass) -> "Tensor":
        """The rates are those of the batch on all processes; with accumulation, of a micro-batch."""
        from ldm.distributed import mean_with_gradient

        rate = mean_with_gradient(forward.code.mean((0, 2, 3)))
        return bernoulli_kl(self.rate, rate).sum() / forward.image_values


def bernoulli_kl(target: float, rate: "Tensor") -> "Tensor":
    """KL(Bernoulli(target) ‖ Bernoulli(rate)) in nats, elementwise; rates of 0 and 1 count as 1e-7 off them."""
    kept = rate.clamp(1e-7, 1 - 1e-7)
    return target * (math.log(target) - kept.log()) + (1 - target) * (math.log(1 - target) - (1 - kept).log())


@dataclass(frozen=True)
class JacobianPenalty(Penalty):
    """How far the code moves when the image does (contractive autoencoders, Rifai et al. 2011)."""

    weight: Weight = 0.1  # of the squared Jacobian per element of the standardized code
    probes: Annotated[int, AtLeast(0)] = (
        1  # random probes of the Jacobian per step; 0: exact, at one backward per element
    )
    needs_jacobian = True
    needs_latent = False

    def incompatibility(self, autoencoder: AutoencoderLike, classes: int) -> str | None:
        """What mixes the images of a batch, or draws anew at every call, has no Jacobian of one image."""
        from torch import nn

        for module in autoencoder.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                return "cannot be taken of a network with batch norm, which mixes the images of a batch"
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                return "cannot be taken of a network with dropout, which is another one at every call"
        return None

    def __call__(self, forward: ForwardPass) -> "Tensor":
        """Of the standardized code: scaling the code down, for the decoder to undo it, gains nothing."""
        from ldm.distributed import mean_with_gradient

        code = forward.code
        mean = mean_with_gradient(code.mean((0, 2, 3))).view(-1, 1, 1)
        variance = mean_with_gradient((code - mean).square().mean((0, 2, 3))).view(-1, 1, 1)
        std = variance.clamp_min(1e-12).sqrt()
        signs = None
        if self.probes:
            uniform = forward.step.rng.uniform("contraction", self.probes, *code.shape[1:], device=code.device)
            signs = (uniform.to(code.dtype) < 0.5).to(code.dtype).transpose(0, 1) * 2 - 1
        return jacobian_norms(code, forward.inputs, std, signs).mean() / code[0].numel()


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
    """Dead units are trained to explain the residual of the image (the auxiliary loss AuxK, Gao et al. 2024)."""

    weight: Weight = 0.03125  # of the squared error of the residual, over the residual's own square
    units: Annotated[int, AtLeast(1)] = 32  # how many of the dead ones take part, those with the largest values

    def incompatibility(self, autoencoder: AutoencoderLike, classes: int) -> str | None:
        """Only a sparse code has units that can be dead."""
        if not autoencoder.bottleneck.tracks_usage:
            return "needs autoencoder.bottleneck.kind sparse, where units can be dead"
        return None

    def __call__(self, forward: ForwardPass) -> "Tensor":
        """‖residual - (decode(z) - decode(0))‖² / ‖residual‖², z being the pre-activations of dead units alone.

        Gao et al. activate them, which leaves units that are below 0 everywhere without a gradient.
        """
        from ldm.distributed import mean_with_gradient

        dead = forward.autoencoder.bottleneck.dead_units(forward.step.now)
        values = forward.moments * dead.view(-1, 1, 1)
        size = values.abs()
        threshold = size.topk(min(self.units, values.shape[1]), dim=1).values[:, -1:]
        code = values * (size >= threshold)
        residual = (forward.images - forward.reconstruction).detach()
        explained = forward.decode(code) - forward.decode(code.new_zeros(code.shape))
        error = (residual - explained).square().mean()
        return error / mean_with_gradient(residual.square().mean()).clamp_min(1e-12) * dead.any()


@dataclass(frozen=True)
class L2Penalty(Penalty):
    """The squares of all weight matrices, inside the loss, where AdamW's weight decay stands outside it."""

    weight: Weight = 1e-4  # of their sum
    needs_latent = False

    def __call__(self, forward: ForwardPass) -> "Tensor":
        from ldm.shapes import full_precision

        matrices = [full_precision(each) for each in forward.autoencoder.network.parameters() if each.ndim > 1]
        return sum((each.square().sum() for each in matrices), start=forward.code.new_zeros(()))


@dataclass(frozen=True)
class ClassificationLoss(Penalty):
    """Cross-entropy of a linear layer that reads the class from the code, averaged over positions; for fine-tuning."""

    weight: Weight = 1.0  # of the cross-entropy in nats

    def incompatibility(self, autoencoder: AutoencoderLike, classes: int) -> str | None:
        """There must be something to read."""
        return None if classes > 1 else "needs data with at least two classes"

    def applies(self, stage: StageLike) -> bool:
        """Only where the head is trained."""
        return stage.reads_classes

    def __call__(self, forward: ForwardPass) -> "Tensor":
        from torch.nn import functional as F

        assert forward.autoencoder.head is not None
        return F.cross_entropy(forward.autoencoder.head(forward.code.mean((2, 3))), forward.labels)


@dataclass(frozen=True)
class PenaltiesConfig(Checked):
    """Each is left out until its section is there; several may be."""

    l1: L1Penalty | None = None  # null: none
    kl_sparsity: KLSparsity | None = None  # null: none
    jacobian: JacobianPenalty | None = None  # null: none
    aux_k: AuxKLoss | None = None  # null: none
    l2: L2Penalty | None = None  # null: none
    classification: ClassificationLoss | None = None  # null: none

    @property
    def chosen(self) -> dict[str, Penalty]:
        """Those that are there, by name."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: penalty for name, penalty in found.items() if penalty is not None}
