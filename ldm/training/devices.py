"""The Accelerator of a run: devices, processes and precision."""

import os
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Literal, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs

from ldm.errors import ConfigError
from ldm.training.config import RunConfig
from ldm.training.kernels import use_ieee_float32

Precision = Literal["fp32", "bf16", "fp16", "bf16-weights"]
TIMEOUT = timedelta(days=1)  # the others wait while the main process encodes the images, or measures at the end
MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16", "bf16-weights": "no"}  # what is cast during a step


def resolve_precision(asked: str) -> Precision:
    """`auto` becomes bf16 where the hardware multiplies it natively, else fp32."""
    on_gpu = torch.cuda.is_available()
    if asked == "fp16" and not on_gpu:
        raise ConfigError("run.precision fp16 needs a GPU; on this machine use fp32, bf16 or auto")
    if asked != "auto":
        return cast(Precision, asked)
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bf16()
    return "bf16" if native else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX instructions; without them bf16 is emulated and slow."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and any(name in flags.read_text() for name in ("avx512_bf16", "amx_bf16"))


def choose_device(asked: str | torch.device | None) -> torch.device:
    """The device that a person asked for, or the best one here: CUDA, Apple's mps, the CPU; ConfigError if unusable.

    What is computed there is in IEEE float32 from now on.
    """
    use_ieee_float32()
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = asked or best or "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def trains_on_cpu() -> bool:
    """Whether there is no device to train on but the CPU.

    Apple's mps is left out: clipping and the guard against numbers that are not finite rely on arguments of fused AdamW
    that nobody has tested there.
    """
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return best is None or best.type in ("cpu", "mps")


def create_accelerator(config: RunConfig, out: Path, *, find_unused_parameters: bool = False) -> Accelerator:
    """The Accelerator of a run: device, process group, autocast, trackers; `find_unused_parameters` as `Run` has it."""
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") not in ("no", MIXED[config.precision]):
        raise ConfigError("set the precision with --run.precision, not with accelerate's --mixed_precision")
    trackers = [tracker.value for tracker in get_available_trackers()]
    if config.report_to and config.report_to not in trackers:
        installed = ", ".join(trackers) or "none"
        raise ConfigError(f"run.report_to {config.report_to} is not an installed tracker of Accelerate: {installed}")
    # Convolutions from or to one channel: the stride of a dimension of size 1 means nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    # The name that takes its place is not in every version that is supported.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    accelerator = Accelerator(
        cpu=trains_on_cpu(),  # without this, Accelerate ignores torchrun's processes on CPUs
        mixed_precision=MIXED[config.precision],
        log_with=config.report_to or None,
        project_dir=str(out),
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                broadcast_buffers=False,  # they are equal on all processes by the way they are computed
                gradient_as_bucket_view=True,
                find_unused_parameters=find_unused_parameters,
            ),
            InitProcessGroupKwargs(timeout=TIMEOUT),
        ],
    )
    parts = accelerator.num_processes * config.accumulation
    if config.batch_size % parts:
        raise ConfigError(
            f"run.batch_size {config.batch_size} is not divisible by {parts}, which is"
            f" {accelerator.num_processes} process(es) x {config.accumulation} accumulation"
        )
    return accelerator
