"""The contractive penalty is the squared Jacobian of the standardized code (Rifai et al. 2011), exactly or by random
probes (Hutchinson 1990), and a code cannot escape it by shrinking.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from ldm.autoencoder.config import (
    AutoencoderConfig,
    IdentityConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    ReconstructionObjectiveConfig,
    SparseConfig,
)
from ldm.autoencoder.model import Autoencoder, create
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.penalty import JacobianPenalty, PenaltiesConfig, jacobian_norms
from ldm.shapes import Images
from ldm.verify.check import Check, at_most
from ldm.verify.known_data import gaussian
from ldm.verify.training import as_images, mlp_of, objective_at, objective_of, reproducible, train


def checks(*, small: bool = False) -> Iterator[Check]:
    """The norm, its estimate, its gradient, and what it is blind to."""
    yield from of_sigmoid_layer()
    yield from of_deep_encoder()
    yield from of_probes(small=small)
    yield from of_scale()
    yield from of_training(small=small)


@reproducible("truth contractive sigmoid")
def of_sigmoid_layer() -> list[Check]:
    """Of one sigmoid layer h = s(Wx + b) it is Σⱼ (hⱼ (1 − hⱼ))² ‖Wⱼ‖² (Rifai et al. 2011)."""
    config = AutoencoderConfig(
        network=LinearNetworkConfig(), bottleneck=SparseConfig(channels=12, activation="sigmoid")
    )
    autoencoder, images = create(config, image=(1, 1, 8)), some_images(32)
    code = autoencoder.raw_posterior(images).mean.detach().flatten(1)
    rows = mlp_of(autoencoder).encoder[0].get_parameter("weight").detach().square().sum(1)
    known = ((code * (1 - code)).square() * rows).sum(1)
    ours, reversed_mode = norms(autoencoder, images), by_jacrev(autoencoder, images)
    return [
        at_most("one sigmoid layer: ‖J‖² against its closed form, relative error", off(ours, known), 1e-6),
        at_most("one sigmoid layer: jacrev against the closed form, relative error", off(reversed_mode, known), 1e-6),
    ]


@reproducible("truth contractive deep")
def of_deep_encoder() -> list[Check]:
    """Of a deeper encoder, and of the gradient that trains it, jacrev knows; the mean and spread of the code count in
    the gradient too.
    """
    images = some_images(32)
    objective = contracted(JacobianPenalty(1.0, probes=0), images)
    autoencoder = objective.autoencoder
    weights = list(autoencoder.network.encoder.parameters())

    def reference() -> Tensor:
        std = autoencoder.raw_posterior(images).mean.flatten(1).std(0, correction=0)
        return by_jacrev(autoencoder, images, std).mean() / len(std)

    ours = objective_at(objective, images).terms["jacobian"]
    theirs = reference()
    gradients = [
        torch.cat([each.flatten() for each in torch.autograd.grad(value, weights, materialize_grads=True)])
        for value in (ours, theirs)
    ]
    return [
        at_most("three layers: penalty against jacrev, relative error", off(ours, theirs), 1e-6),
        at_most("three layers: gradient of the penalty against jacrev's, relative error", off(*gradients), 1e-6),
    ]


@reproducible("truth contractive probes")
def of_probes(*, small: bool) -> list[Check]:
    """Random signs: the mean over many images and probes is the exact penalty."""
    images = some_images(256 if small else 1024)
    exact, estimate = (penalty(contracted(JacobianPenalty(1.0, probes), images), images) for probes in (0, 64))
    return [at_most("64 probes: penalty against the exact one, relative error", off(estimate, exact), 0.02)]


@reproducible("truth contractive scale")
def of_scale() -> list[Check]:
    """A code of a tenth of the size, which the decoder undoes, has the same images and the same penalty."""
    images = some_images(32)
    objective = contracted(JacobianPenalty(1.0, probes=0), images)
    autoencoder = objective.autoencoder
    before, image_before = penalty(objective, images), autoencoder.reconstruct(images)
    with torch.no_grad():
        last, first = mlp_of(autoencoder).encoder[-1], mlp_of(autoencoder).decoder[-1]
        last.get_parameter("weight").div_(10)
        last.get_parameter("bias").div_(10)
        first.get_parameter("weight").mul_(10)
    return [
        at_most(
            "code / 10, decoder x 10: images, relative change",
            off(autoencoder.reconstruct(images), image_before),
            1e-10,
        ),
        at_most("code / 10, decoder x 10: penalty, relative change", off(penalty(objective, images), before), 1e-10),
    ]


def of_training(*, small: bool) -> list[Check]:
    """Trained with the penalty, an encoder moves less than one that was trained without."""
    images = some_images(256 if small else 1024)
    found = []
    for weight in (1e-9, 0.1):
        objective = contracted(JacobianPenalty(weight, probes=1), images, steps=150 if small else 800)
        train(objective, images, lr=5e-3)
        found.append(penalty(objective, images) / weight)
    return [at_most("trained with the penalty: ‖J‖² over that without", found[1] / found[0], 0.8)]


def contracted(contraction: JacobianPenalty, images: Images, *, steps: int = 1) -> ReconstructionObjective:
    """An autoencoder of three layers, whose weights are the same every time."""
    with reproducible("truth contractive weights"):
        return objective_of(
            AutoencoderConfig(
                network=MLPNetworkConfig(widths=(16, 16), activation="tanh"), bottleneck=IdentityConfig(channels=4)
            ),
            ReconstructionObjectiveConfig(distance="mse", penalties=PenaltiesConfig(jacobian=contraction)),
            images=images,
            steps=steps,
        )


def some_images(count: int) -> Tensor:
    """Gaussian vectors in float64."""
    return as_images(gaussian(count, 2 * 0.8 ** torch.arange(8).double(), "contractive")[0])


def penalty(objective: ReconstructionObjective, images: Tensor) -> Tensor:
    """The weighted penalty of one step."""
    return objective_at(objective, images).terms["jacobian"].detach()


def norms(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """‖J‖² of the code by our exact way, one number per image."""
    inputs = images.detach().requires_grad_()
    code = autoencoder.raw_posterior(inputs).mean
    return jacobian_norms(code, inputs, torch.ones(()), None).detach()


def by_jacrev(autoencoder: Autoencoder, images: Tensor, std: Tensor | None = None) -> Tensor:
    """‖J‖² of the code / std with the Jacobian formed, one number per image."""

    def code(image: Tensor) -> Tensor:
        found = autoencoder.raw_posterior(image[None]).mean.flatten()
        return found if std is None else found / std

    return vmap(jacrev(code))(images).flatten(1).square().sum(1)


def off(found: Tensor, known: Tensor) -> float:
    """‖found − known‖ / ‖known‖."""
    return float((found - known).detach().norm() / known.detach().norm())
