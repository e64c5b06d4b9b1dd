"""Config of a run: its optimizer, its length, its bookkeeping."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from ldm.config.bounds import Above, AtLeast, Between, Checked
from ldm.errors import ConfigError

RUN_FORMAT = 2  # of a run folder, in its environment.json; 1, which is not written there, was that of version 0.1

Graph: TypeAlias = Literal["auto", "on", "off"]
Store: TypeAlias = Literal["auto", "device", "host"]  # where training data lie

Decay = Annotated[float, Between(0, 1, high_is_open=True)]


@dataclass(frozen=True)
class AdamWConfig(Checked):
    """AdamW, fused, for every parameter."""

    kind: Literal["adamw"] = "adamw"
    lr: Annotated[float, Above(0)] = 1e-3  # peak learning rate
    betas: tuple[Decay, Decay] = (0.9, 0.99)  # decay of the first and second moment
    weight_decay: Annotated[float, AtLeast(0)] = 0.0  # decoupled weight decay (AdamW)
    warmup: Annotated[int, AtLeast(0)] = 50  # steps of linear warm-up
    schedule: Literal["constant", "cosine", "linear"] = "cosine"  # after the warm-up; the last two end at lr / 100
    decay: Annotated[float, Between(0, 1, low_is_open=True)] = 0.4  # share of the steps over which `linear` falls
    clip: Annotated[float, Above(0)] = 1.0  # largest norm of the gradient


@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Muon for matrices and convolution filters of at least 32 x 32 channels, AdamW for everything else."""

    kind: Literal["muon"] = "muon"  # type: ignore[assignment]
    momentum: Decay = 0.95  # of Muon, Nesterov's


OptimConfig: TypeAlias = AdamWConfig | MuonConfig


@dataclass(frozen=True)
class RunConfig(Checked):
    """One training run. Steps, logging, workers and store may change when it is resumed; nothing else may."""

    steps: Annotated[int, AtLeast(1)] = 1000  # optimizer updates
    batch_size: Annotated[int, AtLeast(1)] = 64  # images per update, over all processes and accumulated micro-batches
    accumulation: Annotated[int, AtLeast(1)] = 1  # micro-batches per update
    seed: Annotated[int, AtLeast(0)] = 0  # everything random follows from it
    precision: Literal["auto", "fp32", "bf16", "fp16", "bf16-weights"] = "auto"  # auto: bf16 where the hardware has it
    graph: Graph = "auto"  # a step as one CUDA graph; auto: on a GPU, where that is possible
    compile: Literal["off", "on"] = "off"  # the network by torch.compile
    gradient_checkpointing: bool = False  # less memory: the backward pass computes the activations of blocks again
    deterministic: bool = False  # deterministic kernels on a GPU; CPUs have them anyway
    ema: Literal["0.05", "0.10"] = "0.05"  # which of the two averages of the weights is exported, by its sigma_rel
    keep: Literal["last", "best"] = (
        "last"  # the exported model: the last, or that of the lowest held-out loss (stage two)
    )
    log_every: Annotated[int, AtLeast(1)] = 10  # steps between lines of metrics.jsonl, and between reads of the device
    sample_every: Annotated[int, AtLeast(0)] = 0  # steps between panels; 0 means a tenth of the run
    checkpoint_seconds: Annotated[float, AtLeast(0)] = 60.0  # between checkpoints, which wait for a line of the log
    checkpoint_every: Annotated[int, AtLeast(0)] = 0  # steps between checkpoints; 0: as `checkpoint_seconds` says
    snapshots: Annotated[int, Between(0, 16)] = 0  # of both averages, for one of any length later; 0: none (stage two)
    workers: Annotated[int, AtLeast(0)] = 0  # processes that decode images
    store: Store = "auto"  # images or latents: auto, on the device up to half of its free memory; else on the host
    latents: Literal["float32", "bfloat16"] = "float32"  # precision of the cached latents (stage two)
    report_to: str = ""  # an Accelerate tracker beside metrics.jsonl: tensorboard, wandb, ...


def check_run_format(run: Path, advice: str) -> None:
    """Raise ConfigError, ending in `advice`, for a run folder of another version of this package."""
    try:
        environment = json.loads((run / "environment.json").read_text())
    except (OSError, ValueError):
        return
    version = environment.get("format", 1) if isinstance(environment, dict) else RUN_FORMAT
    if version != RUN_FORMAT:
        other = "an earlier" if version == 1 else "another"
        raise ConfigError(f"{run} is a run of {other} version of ldm, whose settings have other names: {advice}")
