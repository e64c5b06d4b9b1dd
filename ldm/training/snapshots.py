"""Snapshots of the EMA, from which one of any length is made after training (post-hoc EMA).

Karras et al. 2024 (EDM2), section 3.2: an average is a weighted mean of the weights over the steps, and its weights are
a profile over time. The profile of any length is nearly a sum of those of the averages in the snapshots, with
coefficients by least squares; the same sum of the averages is the average of that length.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm import checkpoint
from ldm.checkpoint import read_json
from ldm.errors import CheckpointError, RequestError
from ldm.training.config import RunConfig
from ldm.training.ema import SIGMA_RELS, gamma_from_sigma_rel
from ldm.training.run_folder import RunFolder

BYTES = 2 * len(SIGMA_RELS)  # per parameter and snapshot: both averages in float16
HALF = 60000.0  # what float16 can hold, nearly
TOLERANCE = 0.1  # relative L2 distance of a profile from the one that was asked for
LONGEST = 0.288  # the sigma_rel of the mean over all steps is √(1/12)


class Snapshots:
    """Both averages of a run in float16, at most `run.snapshots` times over its steps. Only the main process writes."""

    def __init__(self, folder: RunFolder, config: RunConfig):
        self.folder, self.config = folder.snapshots, config

    def is_due(self, done: int) -> bool:
        """Whether there is one after so many steps: evenly spaced, the last at the end."""
        count, steps = self.config.snapshots, self.config.steps
        return done * count // steps > (done - 1) * count // steps

    def write(self, done: int, averages: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write one; of a run that became longer, thin out the earlier ones."""
        halves = {
            f"ema-{length}": {name: halved(value) for name, value in each.items()} for length, each in averages.items()
        }
        checkpoint.save(self.folder, done, halves, {"step": done})
        checkpoint.prune(self.folder, thinned(checkpoint.steps(self.folder), self.config.snapshots))


def halved(value: Tensor) -> Tensor:
    """In float16, unless a number is too large for it."""
    return value.half() if value.abs().max() < HALF else value.float()


def thinned(steps: Sequence[int], count: int) -> list[int]:
    """At most so many of the steps, the last among them: one whose neighbors are nearest to each other goes first."""
    kept = list(steps)
    while len(kept) > count:
        gaps = [after - before for before, after in zip([0, *kept], kept[1:], strict=False)]
        kept.pop(gaps.index(min(gaps)))
    return kept


def bytes_of(config: RunConfig, module: nn.Module) -> int:
    """How much disk the snapshots of a whole run take."""
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return min(config.snapshots, config.steps) * BYTES * trained


# ---- after training


@torch.no_grad()
def load_average(module: nn.Module, run: str | Path, length: float) -> None:
    """Give a module the average of this length (sigma_rel) at the end of its run, or where its best model was.

    Raises RequestError for a length that the snapshots do not give, CheckpointError where there are none or one is
    damaged.
    """
    steps, sums = usable_steps(Path(run)), dict[str, Tensor]()
    check_length(run, steps, length)
    factors, _ = coefficients(steps, length)
    for place, step in enumerate(steps):
        found = checkpoint.load(Path(run) / "snapshots" / f"step-{step:08d}")
        for factor, average in zip(factors[place].tolist(), SIGMA_RELS, strict=True):
            for name, value in found.tensors.get(f"ema-{average}", {}).items():
                sums[name] = sums.get(name, 0) + factor * value.double()
    parameters = dict(module.named_parameters())
    for name, value in sums.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise CheckpointError(f"the snapshots in {run} do not fit its denoiser: they have another {name}")
        parameters[name].copy_(value)


def usable_steps(run: Path) -> list[int]:
    """The steps of the snapshots up to the one that was exported, or CheckpointError."""
    report, finished = run / "report.json", run / "finished.json"
    end = read_json(report).get("exported_step") if report.is_file() else None
    if end is None and finished.is_file():
        end = read_json(finished).get("step")
    steps = [step for step in checkpoint.steps(run / "snapshots") if end is None or step <= end]
    if not steps:
        raise CheckpointError(
            f"{run} has no snapshots, of which an average of another length could be made: train with --run.snapshots 8"
        )
    return steps


def check_length(run: str | Path, steps: Sequence[int], length: float) -> None:
    """Raise RequestError for a length whose profile is no sum of those in the snapshots."""
    if 0 < length < LONGEST and coefficients(steps, length)[1] <= TOLERANCE:
        return
    low, high = possible_lengths(steps)
    raise RequestError(
        "ema", f"{length:g} is outside what the {len(steps)} snapshots in {run} give: from {low:g} to {high:g}"
    )


def possible_lengths(steps: Sequence[int]) -> tuple[float, float]:
    """The shortest and the longest average that snapshots after these steps give, in hundredths."""
    grid = [number / 100 for number in range(1, 29)]
    possible = [length for length in grid if coefficients(steps, length)[1] <= TOLERANCE]
    return min(possible), max(possible)


def coefficients(steps: Sequence[int], length: float) -> tuple[Tensor, float]:
    """By what to multiply each average (snapshots x averages) to get the one of this length after the last step.

    Their sum is 1, so that weights that stood still are kept. With them the relative L2 distance of the profile from
    the one that is wanted.
    """
    times = torch.tensor(steps, dtype=torch.float64).repeat_interleave(len(SIGMA_RELS)) / steps[-1]
    gammas = torch.tensor([gamma_from_sigma_rel(float(each)) for each in SIGMA_RELS], dtype=torch.float64)
    gammas, end = gammas.repeat(len(steps)), torch.ones((), dtype=torch.float64)
    wanted = torch.tensor(gamma_from_sigma_rel(length), dtype=torch.float64)
    gram = profile_product(times[:, None], gammas[:, None], times, gammas)
    against = profile_product(times, gammas, end, wanted)
    norms = gram.diagonal().sqrt()
    scaled = torch.linalg.lstsq(gram / norms / norms[:, None], (against / norms)[:, None], driver="gelsd", rcond=1e-12)
    found = scaled.solution.squeeze(1) / norms
    found = found / found.sum()
    square = profile_product(end, wanted, end, wanted)
    distance = (found @ gram @ found - 2 * found @ against + square).clamp_min(0) / square
    return found.view(len(steps), len(SIGMA_RELS)), float(distance.sqrt())


def profile_product(time: Tensor, gamma: Tensor, other_time: Tensor, other_gamma: Tensor) -> Tensor:
    """∫ p q of two power profiles p(τ) = (γ + 1) τ^γ / t^(γ + 1) for τ from 0 to t (EDM2, appendix C)."""
    earlier, later = torch.minimum(time, other_time), torch.maximum(time, other_time)
    gamma_of_later = torch.where(time >= other_time, gamma, other_gamma)
    scale = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
    return scale * (earlier / later) ** gamma_of_later / later
