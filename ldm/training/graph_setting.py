"""The setting `run.graph`: what keeps the steps of a run from being CUDA graphs, and what `auto` makes of it."""

from collections.abc import Iterable

import torch
from torch import nn

from ldm.errors import ConfigError
from ldm.training.config import RunConfig
from ldm.training.recorder import RECORDERS, WAY_OUT


def obstacles(config: RunConfig, device: torch.device, processes: int) -> list[str]:
    """What of a run keeps its steps from being graphs."""
    found = {
        f"training on {device.type}": device.type not in RECORDERS,
        f"{processes} processes": processes > 1,
        f"run.accumulation {config.accumulation}": config.accumulation > 1,
        "run.precision fp16": config.precision == "fp16",
    }
    return [reason for reason, is_so in found.items() if is_so]


def obstacles_in(objective: nn.Module) -> list[str]:
    """What a training loss computes that a graph cannot: other things, because the host has drawn other numbers."""
    setting = getattr(objective, "draws_on_host", "")
    return [f"the host decides by random numbers what a step does ({setting})"] if setting else []


def check_graph(config: RunConfig, device: torch.device, processes: int) -> None:
    """Raise ConfigError if the steps of a run are to be graphs and cannot be."""
    if config.graph == "on" and (reasons := obstacles(config, device, processes)):
        raise ConfigError(f"run.graph on needs one GPU, no accumulation and no fp16, not {reasons[0]}: {WAY_OUT}")


def check_objective(objective: nn.Module, config: RunConfig) -> None:
    """The same, of what a training loss computes."""
    if config.graph == "on" and (reasons := obstacles_in(objective)):
        raise ConfigError(f"run.graph on: {reasons[0]}: {WAY_OUT}")


def why_not(
    config: RunConfig, device: torch.device, processes: int, objectives: Iterable[nn.Module], before: str
) -> str:
    """Why `run.graph auto` is off, or nothing where it is on; `before` is what it was as the run began, if it did.

    A graph gives the same numbers, so a run that began with graphs may go on where there are none.
    """
    reasons = obstacles(config, device, processes)
    if config.compile == "on":
        reasons.append("run.compile on, with which they have not been tried on a GPU")
    for objective in objectives:
        reasons += obstacles_in(objective)
    if before == "off":
        reasons.append("the run began without")
    return next(iter(reasons), "")
