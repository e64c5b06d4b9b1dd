"""A stack trained layer by layer is a good start and no optimum: each layer keeps what is large in the code below, and
that code has its own scales (Bengio et al. 2007; fine-tuning: Hinton and Salakhutdinov 2006).
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ldm.autoencoder.config import (
    AutoencoderConfig,
    IdentityConfig,
    MLPNetworkConfig,
    ReconstructionObjectiveConfig,
    StageConfig,
)
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import Losses
from ldm.verify.check import Check, at_least, at_most, info
from ldm.verify.known_data import covariance, gaussian
from ldm.verify.training import as_images, objective_of, reproducible, train

STAGES = (StageConfig(layer=1), StageConfig(layer=2), StageConfig(trains="decoder"), StageConfig())


@reproducible("truth stacked")
def trained(*, small: bool) -> tuple[ReconstructionObjective, Tensor, list[dict[str, Tensor]]]:
    """A linear stack of two layers after one run of four stages, its images, and the weights at the end of each."""
    size, widths, steps = (8, (4, 2), 1600) if small else (32, (8, 4), 6000)
    images = as_images(gaussian(256 if small else 1024, 4 * 0.8 ** torch.arange(size).double(), "stacked", mean=0.3)[0])
    objective = objective_of(
        AutoencoderConfig(
            network=MLPNetworkConfig(widths=widths[:1], activation="none"),
            bottleneck=IdentityConfig(channels=widths[1]),
        ),
        ReconstructionObjectiveConfig(distance="mse", stages=STAGES),
        images=images,
        steps=steps,
    )
    kept = [weights(objective)]

    def keep(step: int, losses: Losses) -> None:
        if step + 1 in objective.schedule.ends:
            kept.append(weights(objective))

    train(objective, images, lr=2e-2, on_step=keep)
    return objective, images, kept


def checks(*, small: bool = False) -> Iterator[Check]:
    """That stages leave alone what is not theirs, and how good the stack is after each."""
    objective, images, kept = trained(small=small)
    own = [[".0."], [".1."], ["decoder."], ["encoder.", "decoder."]]  # in the names of what a stage trains
    for number, (before, now) in enumerate(pairwise(kept)):
        changed = {name for name in now if content(now[name]) != content(before[name])}
        due = {name for name in now if any(each in name for each in own[number])}
        yield at_most(f"stage {number + 1}: tensors of others whose bytes changed", len(changed - due), 0)
        yield at_least(
            f"stage {number + 1}: tensors of its own that changed, of {len(due)}", len(changed & due), len(due)
        )
    code = kept[0]["encoder.1.weight"].shape[0]
    best = float(torch.linalg.eigvalsh(covariance(images.flatten(1)))[:-code].sum())
    greedy, decoded, fine_tuned = (error(objective, state, images) for state in kept[2:])
    yield at_most(
        "layer by layer: MSE / that of PCA of the lower code - 1", greedy / of_pca(kept[1], images, code) - 1, 1e-3
    )
    yield at_most(
        "then the decoder: MSE / that of regression on the code - 1", decoded / of_regression(kept[2], images) - 1, 1e-3
    )
    yield at_most("then all of it: MSE / optimum", fine_tuned / best, 1.001)
    yield info("layer by layer: MSE / optimum", greedy / best)
    yield info("then the decoder: MSE / optimum", decoded / best)


def weights(objective: ReconstructionObjective) -> dict[str, Tensor]:
    """A copy of all weights of the network."""
    return {name: value.clone() for name, value in objective.autoencoder.network.state_dict().items()}


def content(tensor: Tensor) -> bytes:
    """All of its bits."""
    return tensor.numpy().tobytes()


@torch.no_grad()
def error(objective: ReconstructionObjective, state: dict[str, Tensor], images: Tensor) -> float:
    """The squared error per image with these weights."""
    objective.autoencoder.network.load_state_dict(state)
    return float((objective.autoencoder.reconstruct(images) - images).square().flatten(1).sum(1).mean())


def of_pca(state: dict[str, Tensor], images: Tensor, code: int) -> float:
    """The squared error per image if the upper layer were just PCA of what the lower one, with these weights, gives."""
    vectors = images.flatten(1)
    lower = vectors @ state["encoder.0.weight"].T + state["encoder.0.bias"]
    top = torch.linalg.eigh(covariance(lower)).eigenvectors[:, -code:]
    kept = lower.mean(0) + (lower - lower.mean(0)) @ top @ top.T
    return float((kept @ state["decoder.0.weight"].T + state["decoder.0.bias"] - vectors).square().sum(1).mean())


def of_regression(state: dict[str, Tensor], images: Tensor) -> float:
    """The squared error per image of the best linear decoder for the encoder with these weights."""
    vectors = images.flatten(1) - images.flatten(1).mean(0)
    codes = vectors @ (state["encoder.1.weight"] @ state["encoder.0.weight"]).T
    return float((codes @ torch.linalg.lstsq(codes, vectors).solution - vectors).square().sum(1).mean())
