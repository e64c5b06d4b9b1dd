"""Our own format for autoencoders that diffusers has no class for: config.json, safetensors, and the code for both."""

import json
import re
from pathlib import Path
from typing import Any

import safetensors

from ldm.autoencoder.config import AutoencoderConfig
from ldm.autoencoder.formats.diffusers import HUB_ID, OURS, check_finite, is_ours
from ldm.autoencoder.model import Autoencoder, create
from ldm.checkpoint import read_json
from ldm.component.code_file import CodeFile, own_code
from ldm.component.weights_file import downloaded, load_weights, save_weights, weights_name
from ldm.config.plain import from_plain
from ldm.config.reader import to_dict
from ldm.errors import CheckpointError, ConfigError

CLASS = "AutoencoderModel"  # which diffusers finds in the code
RENAMED_SETTINGS = {"bottleneck": {"patience": "dead_after"}}  # since version 0.1, whose exports are still read
RENAMED_TENSORS = {"bottleneck.fired": "bottleneck.last_active"}


def write(autoencoder: Autoencoder, folder: Path, variant: str | None = None) -> None:
    """Make the folder: config.json, the weights, and the code that opens both where this package is not installed."""
    facts = settings(autoencoder)
    own = code(facts["network"]["kind"], facts["bottleneck"]["kind"])
    facts = {"_class_name": OURS, "auto_map": {"AutoModel": f"{own.module}.{CLASS}"}} | facts
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts | latent_facts(autoencoder), indent=2))
    save_weights(folder, autoencoder.state_dict(), variant)
    own.write(folder)


def code(network: str, bottleneck: str) -> CodeFile:
    """The code for autoencoders of these kinds: a class for diffusers' AutoModel, and `load` for torch alone."""
    parts = {"NETWORKS": network, "BOTTLENECKS": bottleneck}
    return own_code("ldm.autoencoder.formats.autoencoder_model:AutoencoderModel", "autoencoder", parts, plain="load")


def settings(autoencoder: Autoencoder) -> dict[str, Any]:
    """What it is made by, in plain values."""
    assert autoencoder.config is not None and autoencoder.image is not None
    config = to_dict(autoencoder.config)
    return {
        "image": list(autoencoder.image),
        "network": config["network"],
        "bottleneck": config["bottleneck"],
        "decodes_images": autoencoder.decodes_images,
        "classes": 0 if autoencoder.head is None else autoencoder.head.out_features,
    }


def latent_facts(autoencoder: Autoencoder) -> dict[str, Any]:
    """What others ask the config of a VAE for; its latents have unit variance, and nobody has to scale them."""
    high, wide = autoencoder.network.downsampling
    channels, halvings = autoencoder.network.image_channels, high.bit_length() - 1
    facts: dict[str, Any] = {
        **{"in_channels": channels, "out_channels": channels, "latent_channels": autoencoder.latent_channels},
        **{"downsampling": high if high == wide else [high, wide], "scaling_factor": 1.0, "shift_factor": 0.0},
        "force_upcast": False,
    }
    if high == wide == 2**halvings:
        # Of which pipelines count the entries: 2 ** (their number - 1) is the downsampling.
        facts["block_out_channels"] = [channels * 4**level for level in range(halvings + 1)]
    return facts


def load(folder: str | Path, variant: str | None = None) -> Autoencoder:
    """The autoencoder in a folder of our own format, on the CPU, or CheckpointError."""
    try:
        tensors = load_weights(Path(folder), variant)
        check_finite(tensors)
        tensors = {RENAMED_TENSORS.get(name, name): value for name, value in tensors.items()}
        facts = read_json(Path(folder) / "config.json")
        channels, height, width = map(int, facts["image"])
        config, classes = config_in(facts), len(tensors.get("head.weight", ()))
        autoencoder = create(config, image=(channels, height, width), classes=classes)
        autoencoder.load_state_dict(tensors)
        autoencoder.decodes_images = bool(facts["decodes_images"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, ConfigError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"the autoencoder in {folder} cannot be read: {reason}") from error
    return autoencoder.eval()


def folder_on_hub(repository: str) -> Path | None:
    """Where a folder of our own format lies, once it is loaded from the Hugging Face hub; None if there is none."""
    if not re.fullmatch(HUB_ID, repository):  # offline the hub's client tries for half a minute
        return None
    try:
        if not is_ours(downloaded(repository, "config.json")):
            return None
        return downloaded(repository, "config.json", weights_name())
    except (OSError, ValueError):  # no such repository, no connection, no such file, or not even an id
        return None


def config_in(facts: dict[str, Any]) -> AutoencoderConfig:
    """How the autoencoder that a config.json describes is made."""
    parts: dict[str, Any] = {name: dict(facts[name]) for name in ("network", "bottleneck")}
    for part, names in RENAMED_SETTINGS.items():
        parts[part] = {names.get(name, name): value for name, value in parts[part].items()}
    if parts["bottleneck"].get("kind") == "quantized":  # written before there were others
        parts["bottleneck"].setdefault("prior", "factorized")
    config: AutoencoderConfig = from_plain(AutoencoderConfig, parts)
    return config
