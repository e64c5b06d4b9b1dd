"""Writes and reads a codec's folder: `codec.json`, the entropy model's integers, and the autoencoder in `vae`."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.checkpoint import read_json, write_folder_atomically
from ldm.compression.codec import Codec, MeasuredStep
from ldm.config import reader
from ldm.entropy.config import EntropyModelConfig
from ldm.entropy.model import EntropyModel
from ldm.errors import CheckpointError, ConfigError, LDMError

FORMAT = 1
DESCRIPTION, INTEGERS, AUTOENCODER = "codec.json", "entropy.safetensors", "vae"


def save(codec: Codec, folder: Path) -> None:
    """Write the folder, whole or not at all; ConfigError if it exists."""
    if folder.exists():
        raise ConfigError(f"{folder} exists: choose another folder for the codec")

    def write(new: Path) -> None:
        tensors = {name: compact(torch.from_numpy(value)) for name, value in codec.entropy_model.tensors().items()}
        safetensors.torch.save_file(tensors, new / INTEGERS)
        codec.autoencoder.save(new / AUTOENCODER)
        files = sorted(path for path in new.rglob("*") if path.is_file())
        about = {
            "format": FORMAT,
            "id": codec.id,
            "entropy_model": asdict(codec.entropy_model.config),
            "ratios": codec.ratios,
            "measured": [asdict(each) for each in codec.measured],
            "sha256": {path.relative_to(new).as_posix(): sha256_of_file(path) for path in files},
        }
        (new / DESCRIPTION).write_text(json.dumps(about, indent=2))

    write_folder_atomically(folder, write)


def load(folder: Path) -> Codec:
    """The codec in a folder, every file of it compared with its checksum; CheckpointError if there is none."""
    if not (folder / DESCRIPTION).is_file():
        raise CheckpointError(f"{folder} holds no codec: name what ldm codec fit wrote")
    about = read_json(folder / DESCRIPTION)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is of another version than this program, or damaged: fit the codec again")
    try:
        for name, digest in about["sha256"].items():
            if sha256_of_file(folder / name) != digest:
                raise CheckpointError(f"{folder / name} is damaged: its checksum is another")
        return opened(folder, about)
    except LDMError:
        raise
    except Exception as error:  # what safetensors and missing entries raise is of many types
        raise CheckpointError(f"{folder} is damaged: {' '.join(str(error).split())[:160]}") from error


def opened(folder: Path, about: dict[str, Any]) -> Codec:
    """The codec of files that are whole."""
    autoencoder = Autoencoder.load(folder / AUTOENCODER)
    integers = safetensors.torch.load_file(folder / INTEGERS)
    tensors: dict[str, np.ndarray] = {name: value.long().numpy() for name, value in integers.items()}
    config = reader.from_dict(EntropyModelConfig, about["entropy_model"])
    model = EntropyModel.from_tensors(config, autoencoder.latent_channels, tensors)
    measured = [MeasuredStep(**each) for each in about["measured"]]
    return Codec(autoencoder, model, about["ratios"], measured, id=about["id"])


def compact(values: Tensor) -> Tensor:
    """The same integers in 32 bits, where they fit."""
    fits = values.abs().max() < 2**31
    return values.int() if fits else values


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
