"""What a person can say about a run: its length, its optimizer, its bookkeeping."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Optim:
    """Fused AdamW."""

    lr: float = 1e-3  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 50  # steps of linear warm-up
    schedule: Literal["constant", "cosine"] = "cosine"  # after the warm-up; cosine ends at a hundredth of lr
    clip: float = 1.0  # largest norm of the gradient


@dataclass(frozen=True)
class Run:
    """One training run. Steps, logging and workers may change when it is resumed; nothing else may."""

    steps: int = 1000  # optimizer updates
    batch_size: int = 64  # images per update, over all processes and accumulated micro-batches
    accumulation: int = 1  # micro-batches per update
    seed: int = 0  # everything random follows from it
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware has it
    ema: Literal["0.05", "0.10"] = "0.05"  # which of the two averages is exported, by its relative length
    log_every: int = 10  # steps between lines of metrics.jsonl, and between reads of the device
    sample_every: int = 0  # steps between panels; 0 means a tenth of the run
    checkpoint_every: int = 0  # steps between checkpoints; 0 means a tenth of the run
    workers: int = 0  # processes that decode images
    report_to: str = ""  # an Accelerate tracker beside metrics.jsonl: tensorboard, wandb, ...
