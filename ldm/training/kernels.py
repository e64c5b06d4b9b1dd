"""The kernel settings of PyTorch: TF32 or IEEE float32, choice of algorithms, determinism, memory of CPUs."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ldm.training.config import RunConfig

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
WORKSPACE = ":4096:8"  # of cuBLAS, with which it is deterministic


def use_ieee_float32() -> None:
    """Let float32 be float32 on GPUs, where convolutions would be TF32 unasked: latents, figures, samples."""
    allow_tf32(False)


def allow_tf32(allowed: bool) -> None:
    """Whether products and convolutions of float32 may be made in TF32, which has ten bits of mantissa.

    By the older of PyTorch's two interfaces: after the newer one its own `torch.backends.cudnn.flags` fails.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def training_kernels(config: RunConfig, device: torch.device) -> Iterator[None]:
    """How the steps of a run are computed on a GPU; what comes before and after them is in IEEE float32.

    Products of float32 are in TF32, ten bits of mantissa: the noise of a gradient is larger by far. The shapes are the
    same in every step, so cuDNN may try which algorithm is fastest, unless the run is to be deterministic.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    allow_tf32(True)
    cudnn.benchmark, cudnn.deterministic = not config.deterministic, config.deterministic
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    try:
        yield
    finally:
        use_ieee_float32()
        cudnn.benchmark, cudnn.deterministic, was_deterministic = before
        torch.use_deterministic_algorithms(was_deterministic, warn_only=True)


@contextmanager
def ieee_float32() -> Iterator[None]:
    """IEEE float32 between two steps of a run, too: for what people look at, and what models are compared by."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.benchmark
    use_ieee_float32()
    cudnn.benchmark = False  # of the shapes here few come again
    try:
        yield
    finally:
        allow_tf32(before[0])
        cudnn.benchmark = before[1]


def prepare_kernels(config: RunConfig) -> None:
    """What must be set before the first kernel."""
    use_ieee_float32()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, which otherwise finds every page of it missing."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(MMAP_THRESHOLD, 2**30) or libc.mallopt(MMAP_THRESHOLD, 2**25)  # the most in older versions
