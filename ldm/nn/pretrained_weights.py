"""Files of pretrained weights: where torch keeps them, and how they are read."""

import hashlib
import socket
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ldm.errors import CheckpointError, ConfigError

PATIENCE = 8  # seconds without an answer; torch would wait without end


def in_torch_cache(url: str, hash_prefix: str, what: str, remedy: str) -> Path:
    """The file of that name in torch's cache, downloaded if it is not there yet.

    Raises ConfigError if it cannot be: the line names the file, says of `what` it holds the weights, and the `remedy`.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if path.is_file():
        return path
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with redirect_stdout(sys.stderr):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=hash_prefix, progress=False)
    except Exception as error:  # no network, no right to write there, a broken or a wrong file
        reason = f"{path} is missing and cannot be downloaded ({' '.join(str(error).split())[:80]})"
        raise ConfigError(f"the weights of {what}: {reason}: put {path.name} there, or {remedy}") from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors file, or of a state dict as torch saves it, on the CPU; floats in float32."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file: it should hold the weights of a backbone")
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {
            str(name): (value.float() if value.is_floating_point() else value).contiguous()
            for name, value in tensors.items()
        }
    except Exception as error:  # of many types, with advice to load it unsafely
        reason = f"damaged, or holds more than named tensors ({type(error).__name__})"
        raise CheckpointError(f"{path} is {reason}: put the right file there, or remove it") from error


def sha256_of(tensors: Mapping[str, Tensor], about: str = "") -> str:
    """SHA-256 of names, types, shapes and values, whatever files they lay in, and before them of `about`."""
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
