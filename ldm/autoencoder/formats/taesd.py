"""TAESD's files: encoder.safetensors and decoder.safetensors, one file of both, or an AutoencoderTiny of diffusers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ldm.autoencoder.config import AutoencoderConfig, IdentityConfig, TAESDNetworkConfig
from ldm.autoencoder.formats.diffusers import WHOLE, check_finite, read_field, variant_of
from ldm.checkpoint import read_json
from ldm.errors import CheckpointError

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

DIFFUSERS_CLASS = "AutoencoderTiny"
LAYER = re.compile(r"(?:taesd_)?(encoder|decoder)\.(?:layers\.)?(\d+)\.(.+)")  # TAESD's, diffusers', ComfyUI's names
ENCODER, DECODER = "encoder.safetensors", "decoder.safetensors"
SIDE = 256  # pixels of the images that a released autoencoder is said to be trained on; nothing depends on it
FIXED = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}  # what AutoencoderTiny may vary


@dataclass(frozen=True)
class TAESDFile:
    """An autoencoder of the family: its config, its weights under our names, what its config says of its latents."""

    config: AutoencoderConfig
    image_channels: int
    tensors: dict[str, Tensor]
    mean: Tensor  # per channel
    std: Tensor

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.image_channels, SIDE, SIDE


def is_taesd(place: Path) -> bool:
    """Whether a file or a folder holds an autoencoder of the family."""
    if place.is_dir():
        config = place / "config.json"
        if config.is_file():
            found = read_json(config)
            return isinstance(found, dict) and found.get("_class_name") == DIFFUSERS_CLASS
        return bool(pairs_in(place)) and not any(place.glob(f"{WHOLE}*"))
    if place.suffix != ".safetensors" or not place.is_file():
        return False
    try:
        with safe_open(place, "pt") as opened:
            names = list(opened.keys())
    except Exception:  # of many types; who opens the file as something else says what is wrong with it
        return False
    blocks = (match[3] for match in map(LAYER.fullmatch, names) if match)
    return "conv.0.weight" in blocks or is_one_side(names)


def is_one_side(names: list[str]) -> bool:
    """Whether tensors of these names are an encoder or a decoder alone."""
    return "3.conv.0.weight" in names and all(name[0].isdecimal() for name in names)


def pairs_in(folder: Path) -> list[tuple[Path, Path]]:
    """The encoders of a folder that have a decoder beside them, `taesd_encoder.safetensors` for instance."""
    both = [(file, counterpart(file)) for file in sorted(folder.glob(f"*{ENCODER}"))]
    return [(encoder, decoder) for encoder, decoder in both if decoder.is_file()]


def counterpart(file: Path) -> Path:
    """The name of the other side's file."""
    mine, other = (ENCODER, DECODER) if file.name.endswith(ENCODER) else (DECODER, ENCODER)
    return file.with_name(file.name.removesuffix(mine) + other)


def read(place: Path) -> TAESDFile:
    """What a place that `is_taesd` holds. ValueError, or what safetensors raises, if it cannot be read."""
    if place.is_dir() and (place / "config.json").is_file():
        return read_folder(place)
    if place.is_dir():
        pairs = pairs_in(place)
        if len(pairs) > 1:
            names = ", ".join(encoder.name for encoder, _ in pairs)
            raise CheckpointError(f"{place} holds several autoencoders: name the one that is meant, of {names}")
        return built(joined(*pairs[0]))
    tensors = safetensors.torch.load_file(place)
    if not is_one_side(list(tensors)):
        return built(normalized(tensors))
    other = counterpart(place)
    if not place.name.endswith((ENCODER, DECODER)) or not other.is_file():
        side = "encoder" if "0.weight" in tensors else "decoder"
        raise CheckpointError(
            f"{place} holds TAESD's {side} alone: put both sides into one folder, as {ENCODER} and {DECODER}"
        )
    return built(joined(*((place, other) if place.name.endswith(ENCODER) else (other, place))))


def joined(encoder: Path, decoder: Path) -> dict[str, Tensor]:
    """The tensors of both sides, each a file of numbered layers."""
    sides = {"encoder": encoder, "decoder": decoder}
    return normalized(
        {
            f"{side}.{name}": value
            for side, file in sides.items()
            for name, value in safetensors.torch.load_file(file).items()
        }
    )


def normalized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names; diffusers does not count the clamp, which is the decoder's first layer."""
    found = {}
    for name, value in tensors.items():
        if not (layer := LAYER.fullmatch(name)):
            raise ValueError(f"{name} is not part of TAESD")
        found[layer[1], int(layer[2]), layer[3]] = value
    shift = int(("decoder", 0, "weight") in found)
    return {
        f"network.{side}.{number + (shift if side == 'decoder' else 0)}.{rest}": value
        for (side, number, rest), value in found.items()
    }


def built(tensors: dict[str, Tensor]) -> TAESDFile:
    """The config that these weights, under our names, are of; nothing states the scale of the latents."""
    check_finite(tensors)
    tensors = {name: value.float() for name, value in tensors.items()}
    for name in ("network.encoder.0.weight", "network.decoder.1.weight"):
        if name not in tensors:
            raise ValueError(f"it lacks {name.removeprefix('network.')}")
    width, image_channels = tensors["network.encoder.0.weight"].shape[:2]
    channels = tensors["network.decoder.1.weight"].shape[1]
    blocks, mirrored = blocks_per_level(tensors, "encoder", 1), blocks_per_level(tensors, "decoder", 3)
    if blocks != mirrored[::-1]:
        raise ValueError(f"its decoder has {list(mirrored)} blocks, which does not mirror the encoder's {list(blocks)}")
    network = TAESDNetworkConfig(
        width=width,
        blocks=blocks,
        latent_norm=any(".pool." in name for name in tensors),
    )
    last = f"network.decoder.{last_layer(tensors, 'decoder')}"
    weight, bias = tensors[f"{last}.weight"], tensors[f"{last}.bias"]
    tensors |= {f"{last}.weight": 2 * weight, f"{last}.bias": 2 * bias - 1}  # to [-1, 1]
    config = AutoencoderConfig(network=network, bottleneck=IdentityConfig(channels=channels))
    return TAESDFile(config, image_channels, tensors, torch.zeros(channels), torch.ones(channels))


def last_layer(tensors: Mapping[str, Tensor], side: str) -> int:
    """The number of the layer at the end of a side."""
    return max(int(name.split(".")[2]) for name in tensors if name.startswith(f"network.{side}."))


def blocks_per_level(tensors: Mapping[str, Tensor], side: str, first: int) -> tuple[int, ...]:
    """How many blocks stand between the convolutions that change the size, from layer `first` on."""
    levels = [0]
    last = last_layer(tensors, side)
    for number in count(first):
        if number >= last:
            return tuple(levels)
        if f"network.{side}.{number}.conv.0.weight" in tensors:
            levels[-1] += 1
        elif f"network.{side}.{number}.weight" in tensors:
            levels.append(0)
    raise AssertionError


def read_folder(folder: Path) -> TAESDFile:
    """An AutoencoderTiny as diffusers saves it."""
    config = read_json(folder / "config.json")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"its {name} is {config[name]}, and only {value} is known here")
    variant = variant_of(folder)
    file = folder / f"{WHOLE}{f'.{variant}' if variant else ''}.safetensors"
    found = built(normalized(safetensors.torch.load_file(file)))
    channels = found.config.bottleneck.channels
    scale = read_field("scaling_factor", config.get("scaling_factor", 1.0), (), positive=True)
    shift = read_field("shift_factor", config.get("shift_factor") or 0.0, ())
    ones = torch.ones(channels)
    return TAESDFile(found.config, found.image_channels, found.tensors, shift * ones, ones / scale)


def to_diffusers(
    config: TAESDNetworkConfig, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> "AutoencoderTiny":
    """The weights of a TAESDNetwork in diffusers' class; `facts` are further entries of its configuration."""
    from diffusers import AutoencoderTiny

    levels = len(config.blocks)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(config.width,) * levels,
        decoder_block_out_channels=(config.width,) * levels,
        num_encoder_blocks=config.blocks,
        num_decoder_blocks=config.blocks[::-1],
        **facts,
    )
    renamed = {}
    for name, value in tensors.items():
        side, number, rest = name.split(".", 2)
        renamed[f"{side}.layers.{int(number) - (side == 'decoder')}.{rest}"] = value.detach().double().cpu()
    last = f"decoder.layers.{len(tiny.decoder.layers) - 1}"
    renamed[f"{last}.weight"] /= 2  # from [-1, 1] to [0, 1]
    renamed[f"{last}.bias"] = (renamed[f"{last}.bias"] + 1) / 2
    tiny.load_state_dict(renamed)
    return tiny.eval()
