"""What a person can say about a run: its length, its optimizer, its bookkeeping."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """Fused AdamW."""

    lr: float = 1e-3  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # momentum, and the same for the squared gradient
    weight_decay: float = 0.0  # each step shrinks the weights by lr times this
    warmup: int = 50  # steps of linear warm-up
    schedule: Literal["constant", "cosine"] = "cosine"  # after the warm-up; cosine ends at a hundredth of lr
    clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, not {self.betas}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be 0 or more, not {self.weight_decay}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be 0 or more, not {self.warmup}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive, not {self.clip}")


@dataclass(frozen=True)
class RunConfig:
    """One training run. Steps, logging and workers may change when it is resumed; nothing else may."""

    steps: int = 1000  # optimizer updates
    batch_size: int = 64  # images per update, over all processes and accumulated micro-batches
    accumulation: int = 1  # micro-batches per update
    seed: int = 0  # everything random follows from it
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware has it
    ema: Literal["0.05", "0.10"] = "0.05"  # which of the two averages is exported, by its relative length
    log_every: int = 10  # steps between lines of metrics.jsonl, and between reads of the device
    sample_every: int = 0  # steps between panels; 0 means a tenth of the run
    checkpoint_every: int = 0  # steps between checkpoints; 0 means a tenth of the run, and at most 1000
    workers: int = 0  # processes that decode images
    report_to: str = ""  # an Accelerate tracker beside metrics.jsonl: tensorboard, wandb, ...

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("seed", "sample_every", "checkpoint_every", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
