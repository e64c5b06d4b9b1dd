"""The placement of training data: on the device that computes, or on the host, from where workers bring them."""

import torch

from ldm.errors import ConfigError
from ldm.training.config import Store

SHARE = 0.5  # of the free memory of a GPU that training data may take


def fits_on(device: torch.device | str, size: int, store: Store, memory_gb: float) -> bool:
    """Whether data of `size` bytes are to lie on a device.

    `auto`: on a GPU where they take at most half of its free memory, on a CPU up to `memory_gb`. `device` insists, and
    raises ConfigError where a GPU has less memory free than they need.
    """
    device = torch.device(device)
    if store == "host":
        return False
    if device.type != "cuda":
        return store == "device" or size <= memory_gb * 1e9
    free, _ = torch.cuda.mem_get_info(device)
    if store == "device" and size > free:
        needed = f"the training data take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of {device} are free"
        raise ConfigError(f"run.store device: {needed}; set it to auto or host")
    return store == "device" or size <= SHARE * free
