"""A stack trained layer by layer is a good start and no optimum: each layer keeps what is large in the code below, and
that code has its own scales (Bengio et al. 2007; fine-tuning: Hinton and Salakhutdinov 2006).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.settings import Autoencoder, Identity, MLPNetwork, Objective, Stage
from ldm.losses import Losses
from ldm.truths.figure import Figure, at_least, at_most
from ldm.truths.known_data import covariance, gaussian
from ldm.truths.training import as_images, objective_of, reproducible, train

WHERE = ("encoder.0.", "decoder.0.", "encoder.1.", "decoder.1.")


@reproducible("truth stacked")
def trained(*, small: bool) -> tuple[ReconstructionObjective, Tensor, list[dict[str, Tensor]]]:
    """A linear stack of two layers after one run of three stages, its images, and the weights at the end of each."""
    size, widths, steps = (8, (4, 2), 900) if small else (32, (8, 4), 4500)
    images = as_images(gaussian(256 if small else 1024, 4 * 0.8 ** torch.arange(size).double(), "stacked", mean=0.3)[0])
    objective = objective_of(
        Autoencoder(network=MLPNetwork(widths=widths[:1], activation="none"), bottleneck=Identity(channels=widths[1])),
        Objective(distance="mse", stages=(Stage(layer=1), Stage(layer=2), Stage())),
        image=(1, 1, size),
        steps=steps,
    )
    kept = [weights(objective)]

    def keep(step: int, losses: Losses) -> None:
        if step + 1 in objective.schedule.ends:
            kept.append(weights(objective))

    train(objective, images, lr=2e-2, on_step=keep)
    return objective, images, kept


def figures(*, small: bool = False) -> Iterator[Figure]:
    """How good the stack is after each stage, and that stages leave alone what is not theirs."""
    objective, images, kept = trained(small=small)
    changed = [{name for name in now if not same_bytes(now[name], before[name])} for before, now in zip(kept, kept[1:])]
    own = [
        {name for name in kept[0] if name.startswith(WHERE[:2])},
        {name for name in kept[0] if name.startswith(WHERE[2:])},
    ]
    for number in (0, 1):
        yield at_most(
            f"stage {number + 1}: tensors of the other layer whose bytes changed", len(changed[number] - own[number]), 0
        )
        yield at_least(
            f"stage {number + 1}: tensors of its own layer that changed, of 4", len(changed[number] & own[number]), 4
        )
    yield at_least("stage 3: tensors that changed, of 8", len(changed[2]), 8)
    code = kept[0]["encoder.1.weight"].shape[0]
    best = float(torch.linalg.eigvalsh(covariance(images.flatten(1)))[:-code].sum())
    fine_tuned, greedy = error(objective, kept[3], images), error(objective, kept[2], images)
    yield at_most(
        "layer by layer: MSE / what PCA of the lower code gives - 1",
        greedy / known_greedy(kept[1], images, code) - 1,
        1e-3,
    )
    yield at_most("layer by layer: MSE / optimum", greedy / best, 1.2)
    yield at_most("fine-tuned: MSE / optimum", fine_tuned / best, 1.001)
    yield at_least("layer by layer over fine-tuned: MSE", greedy / fine_tuned, 1)


def weights(objective: ReconstructionObjective) -> dict[str, Tensor]:
    """A copy of all weights of the network."""
    return {name: value.clone() for name, value in objective.autoencoder.network.state_dict().items()}


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same to the last bit."""
    return one.numpy().tobytes() == other.numpy().tobytes()


@torch.no_grad()
def error(objective: ReconstructionObjective, state: dict[str, Tensor], images: Tensor) -> float:
    """The squared error per image with these weights."""
    objective.autoencoder.network.load_state_dict(state)
    return float((objective.autoencoder.reconstruct(images) - images).square().flatten(1).sum(1).mean())


def known_greedy(state: dict[str, Tensor], images: Tensor, code: int) -> float:
    """The squared error per image if the upper layer were just PCA of what the lower one, with these weights, gives."""
    vectors = images.flatten(1)
    lower = vectors @ state["encoder.0.weight"].T + state["encoder.0.bias"]
    top = torch.linalg.eigh(covariance(lower)).eigenvectors[:, -code:]
    kept = lower.mean(0) + (lower - lower.mean(0)) @ top @ top.T
    return float((kept @ state["decoder.0.weight"].T + state["decoder.0.bias"] - vectors).square().sum(1).mean())
