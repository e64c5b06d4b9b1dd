"""Sparse autoencoders find the atoms that sparse data are made of (Olshausen and Field 1996; k-sparse: Makhzani and
Frey 2014), and units keep the rate of activation that they are asked for (Ng 2011).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from ldm.autoencoder.config import AutoencoderConfig, LinearNetworkConfig, ReconstructionObjectiveConfig, SparseConfig
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.penalty import AuxKLoss, KLSparsity, L1Penalty, PenaltiesConfig, bernoulli_kl
from ldm.batch import Losses
from ldm.randomness import generator
from ldm.verify.check import Check, at_least, at_most, info
from ldm.verify.known_data import gaussian
from ldm.verify.training import as_images, objective_of, reproducible, train

RATE = 0.1  # wanted


@dataclass(frozen=True)
class Planted:
    """Images that are sums of a few atoms out of many, and the autoencoder that is to find them."""

    numbers: int = 32  # of an image
    atoms: int = 64  # unit vectors, in directions drawn at random
    active: int = 3  # in each image, with weights from 0.5 to 1.5
    images: int = 20_000
    units: int = 128
    steps: int = 3000
    batch: int = 512


MINIATURE = Planted(numbers=12, atoms=16, active=2, images=4000, units=32, steps=500, batch=256)


def checks(*, small: bool = False) -> Iterator[Check]:
    """The penalty's formula, the rates that it leads to, and planted atoms."""
    yield from of_kl()
    yield from of_rate(small=small)
    yield from of_top_k(small=small)
    yield from of_l1(small=small)


def of_kl() -> list[Check]:
    """Against the KL of torch.distributions."""
    rates = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    worst = 0.0
    for wanted in (0.01, 0.05, 0.5):
        known = kl_divergence(Bernoulli(torch.tensor(wanted, dtype=torch.float64)), Bernoulli(rates))
        worst = max(worst, float((bernoulli_kl(wanted, rates) - known).abs().max()))
    return [at_most("Bernoulli KL against torch.distributions, largest error", worst, 1e-6)]


@reproducible("truth sparse rate")
def of_rate(*, small: bool) -> list[Check]:
    """The heavier the penalty, the nearer is the mean activation to the rate that is asked for."""
    size, steps = (8, 250) if small else (16, 600)
    images = as_images(gaussian(256 if small else 1024, 0.8 ** torch.arange(size).double(), "sparse rate")[0])
    means = []
    for weight in (0.01, 0.3, 10.0):
        objective = objective_of(
            AutoencoderConfig(
                network=LinearNetworkConfig(), bottleneck=SparseConfig(channels=2 * size, activation="sigmoid")
            ),
            ReconstructionObjectiveConfig(
                distance="mse", penalties=PenaltiesConfig(kl_sparsity=KLSparsity(weight, RATE))
            ),
            images=images,
            steps=steps,
        )
        train(objective, images, lr=5e-2)
        with torch.no_grad():
            means.append(float(objective.autoencoder.raw_posterior(images).mean.mean()))
    rises = max(heavier - lighter for lighter, heavier in pairwise(means))
    return [
        at_most(
            f"rate {RATE}: mean activation under the heaviest penalty, relative error", abs(means[-1] / RATE - 1), 0.2
        ),
        at_most(f"rate {RATE}: largest rise of the mean activation as the weight grows", rises, 0),
        info(f"rate {RATE}: mean activation under the lightest penalty", means[0]),
    ]


@reproducible("truth sparse top-k", torch.float32)
def of_top_k(*, small: bool) -> list[Check]:
    """As many units as there are atoms in an image, and dead ones revived."""
    planted = MINIATURE if small else Planted()
    bottleneck = SparseConfig(channels=planted.units, k=planted.active, dead_after=50)
    return recovery("top-k", planted, bottleneck, PenaltiesConfig(aux_k=AuxKLoss()), 0.9 if small else 0.98)


@reproducible("truth sparse l1", torch.float32)
def of_l1(*, small: bool) -> list[Check]:
    """Decoder columns of length 1, without which codes would shrink for nothing."""
    planted = MINIATURE if small else Planted()
    return recovery(
        "L1", planted, SparseConfig(channels=planted.units), PenaltiesConfig(l1=L1Penalty(0.2)), 0.9 if small else 0.95
    )


def recovery(
    name: str, planted: Planted, bottleneck: SparseConfig, penalties: PenaltiesConfig, bound: float
) -> list[Check]:
    """The cosine between each atom and the decoder's column nearest to it, on average; and how sparse the code is."""
    atoms, images = plant(planted)
    objective = objective_of(
        AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=bottleneck),
        ReconstructionObjectiveConfig(distance="mse", penalties=penalties),
        images=images,
        steps=planted.steps,
    )
    last: dict[str, Tensor] = {}

    def update_usage(step: int, losses: Losses) -> None:
        last.update(losses.terms)

    train(objective, images, lr=5e-3, batch=planted.batch, on_step=update_usage)
    return [
        at_least(f"{name}: largest cosine with each planted atom, mean", found_cosines(objective, atoms).mean(), bound),
        info(f"{name}: L0, of {planted.active} atoms", last["l0"]),
        info(f"{name}: share of dead units", last["dead_fraction"]),
        info(f"{name}: explained variance", last["explained_variance"]),
    ]


def plant(planted: Planted) -> tuple[Tensor, Tensor]:
    """Atoms as rows, and images made of them."""
    rng = generator(0, "truth sparse atoms")
    atoms = torch.nn.functional.normalize(torch.randn(planted.atoms, planted.numbers, generator=rng), dim=1)
    chosen = torch.rand(planted.images, planted.atoms, generator=rng).topk(planted.active, dim=1).indices
    weights = 0.5 + torch.rand(planted.images, planted.active, generator=rng)
    return atoms, as_images(torch.zeros(planted.images, planted.atoms).scatter(1, chosen, weights) @ atoms)


def found_cosines(objective: ReconstructionObjective, atoms: Tensor) -> Tensor:
    """Of each atom with the column nearest to it."""
    columns = torch.nn.functional.normalize(objective.autoencoder.network.decoder_in_weight.detach(), dim=0)
    return (atoms @ columns).max(dim=1).values
