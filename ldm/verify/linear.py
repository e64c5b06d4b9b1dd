"""A linear autoencoder finds the principal components (Bourlard and Kamp 1988, Baldi and Hornik 1989)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.autoencoder.config import AutoencoderConfig, IdentityConfig, LinearNetworkConfig, ReconstructionObjectiveConfig
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.penalty import L2Penalty, PenaltiesConfig
from ldm.verify.check import Check, at_most, skipped
from ldm.verify.known_data import covariance, digits, gaussian
from ldm.verify.training import as_images, mlp_of, objective_of, reproducible, train


def checks(*, small: bool = False) -> Iterator[Check]:
    """Without a penalty the space is that of the components; with one on the weights, the axes are too."""
    yield from plain(small=small)
    yield from decayed(small=small)
    yield from real(small=small)


@reproducible("truth linear")
def plain(*, small: bool) -> list[Check]:
    """Full batch: the space that the decoder spans, and the error."""
    size, code, steps = (8, 2, 400) if small else (32, 4, 1500)
    vectors, axes = gaussian(256 if small else 1024, 4.0 * 0.8 ** torch.arange(size).double(), "linear", mean=0.3)
    objective = trained(as_images(vectors), code, steps=steps)
    decoder, top = mlp_of(objective.autoencoder).matrix(1).detach(), axes[:, :code]
    return [
        at_most("largest angle to the principal space, rad", angle(decoder, top), 1e-3),
        at_most("MSE / that of PCA - 1", excess(objective, as_images(vectors), code), 1e-6),
    ]


@reproducible("truth linear decayed")
def decayed(*, small: bool) -> list[Check]:
    """With λ (‖encoder‖² + ‖decoder‖²) in the loss the left singular vectors of the decoder are the principal axes,
    its squared singular values 1 - λ / variance, and the encoder its transpose (Kunin et al. 2019, theorem 2).
    """
    size, code, steps = (8, 2, 600) if small else (32, 4, 2000)
    variances = 4.0 * 0.7 ** torch.arange(size).double()
    vectors, axes = gaussian(256 if small else 1024, variances, "linear decayed")
    weight = 0.25 / size  # the distance is a mean over the numbers of an image
    objective = trained(as_images(vectors), code, steps=steps, penalties=PenaltiesConfig(l2=L2Penalty(weight)))
    network = mlp_of(objective.autoencoder)
    decoder, encoder = network.matrix(1).detach(), network.encoder[0].get_parameter("weight").detach()
    left, singular, _ = torch.linalg.svd(decoder, full_matrices=False)
    cosines = (left * axes[:, :code]).sum(0).abs()
    known = (1 - weight * size / variances[:code]).sqrt()
    return [
        at_most(
            "decayed: largest angle of a singular vector to its axis, rad", cosines.clamp(max=1).acos().max(), 1e-3
        ),
        at_most("decayed: singular values, relative error", ((singular - known) / known).abs().max(), 1e-3),
        at_most(
            "decayed: encoder and decoder, relative difference", (encoder.T - decoder).norm() / decoder.norm(), 1e-3
        ),
    ]


@reproducible("truth linear digits", torch.float32)
def real(*, small: bool) -> list[Check]:
    """On real data, whose variances lie close together, the error alone is known."""
    code, steps = (4, 1000) if small else (16, 2000)
    name = f"real digits, {code} numbers of 64: MSE / that of PCA"
    try:
        images, _ = digits()
    except ImportError:
        return [skipped(name, "needs scikit-learn")]
    images = images[:300] if small else images
    return [at_most(name, 1 + excess(trained(images, code, steps=steps), images, code), 1.01)]


def trained(
    images: Tensor, code: int, *, steps: int, penalties: PenaltiesConfig | None = None
) -> ReconstructionObjective:
    """The objective of a linear autoencoder that has been trained on all images at once."""
    objective = objective_of(
        AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=IdentityConfig(channels=code)),
        ReconstructionObjectiveConfig(distance="mse", penalties=penalties or PenaltiesConfig()),
        images=images,
        steps=steps,
    )
    train(objective, images, lr=2e-2)
    return objective


def excess(objective: ReconstructionObjective, images: Tensor, code: int) -> float:
    """How far the squared error is above that of the best `code` components, in parts of it."""
    with torch.no_grad():
        error = (objective.autoencoder.reconstruct(images) - images).square().flatten(1).sum(1).mean()
    return float(error / torch.linalg.eigvalsh(covariance(images.flatten(1)))[:-code].sum() - 1)


def angle(matrix: Tensor, axes: Tensor) -> float:
    """The largest principal angle between the columns' span and that of orthonormal `axes`."""
    basis = torch.linalg.qr(matrix).Q
    return float(torch.linalg.matrix_norm(basis - axes @ (axes.T @ basis), 2).clamp(max=1).asin())
