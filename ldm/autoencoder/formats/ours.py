"""Our own format for autoencoders that diffusers has no class for: config.json and safetensors, statistics included."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.autoencoder.config import AutoencoderConfig
from ldm.autoencoder.formats.diffusers import OURS, check_finite
from ldm.checkpoint import read_json
from ldm.config.plain import from_plain
from ldm.config.reader import to_dict
from ldm.nn.weights_file import load_weights, save_weights

RENAMED_SETTINGS = {"bottleneck": {"patience": "dead_after"}}  # since version 0.1, whose exports are still read
RENAMED_TENSORS = {"bottleneck.fired": "bottleneck.last_active"}


@dataclass(frozen=True)
class Saved:
    """What a folder holds."""

    config: AutoencoderConfig
    image: tuple[int, int, int]  # channels, height, width of the training images
    decodes_images: bool
    tensors: dict[str, Tensor]

    @property
    def classes(self) -> int:
        """How many classes the classification head tells apart; 0 if there is none."""
        return len(self.tensors["head.weight"]) if "head.weight" in self.tensors else 0


def write(folder: Path, saved: Saved, variant: str | None = None) -> None:
    """Make the folder."""
    config = {name: value for name, value in to_dict(saved.config).items() if name in ("network", "bottleneck")}
    facts = {"_class_name": OURS, "decodes_images": saved.decodes_images, "image": list(saved.image), **config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts, indent=2))
    save_weights(folder, saved.tensors, variant)


def read(folder: Path, variant: str | None = None) -> Saved:
    """What `write` wrote; an error of many types if it is damaged."""
    facts = read_json(folder / "config.json")
    tensors = load_weights(folder, variant)
    check_finite(tensors)
    channels, height, width = map(int, facts["image"])
    parts: dict[str, Any] = {name: dict(facts[name]) for name in ("network", "bottleneck")}
    for part, names in RENAMED_SETTINGS.items():
        parts[part] = {names.get(name, name): value for name, value in parts[part].items()}
    return Saved(
        from_plain(AutoencoderConfig, parts),
        (channels, height, width),
        bool(facts["decodes_images"]),
        {RENAMED_TENSORS.get(name, name): value for name, value in tensors.items()},
    )
