"""CompVis' names for the parts of an AutoencoderKL, as single-file checkpoints of Stable Diffusion have them."""

import json
from collections.abc import Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

PREFIX = "first_stage_model."  # of the autoencoder within a whole checkpoint
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
STATED = ("norm_num_groups", "scaling_factor", "shift_factor", "latents_mean", "latents_std")  # no shape tells these
HEADER = "ldm.config"  # where our own files tell them


def layer_names(levels: int, blocks: int) -> dict[str, str]:
    """diffusers' name of each layer that there may be, and CompVis' name of the same.

    `blocks` counts the residual blocks per level of the encoder; the decoder has one more. CompVis numbers the
    decoder's levels from the image, diffusers from the latent.
    """
    names = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side, way, number in (("encoder", "down", blocks), ("decoder", "up", blocks + 1)):
        names |= {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out"}
        names[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for block in range(2):
            names |= residual_names(f"{side}.mid_block.resnets.{block}", f"{side}.mid.block_{block + 1}")
        names |= attention_names(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1")
        for level in range(levels):
            here = f"{side}.{way}_blocks.{level}"
            there = f"{side}.{way}.{level if way == 'down' else levels - 1 - level}"
            for block in range(number):
                names |= residual_names(f"{here}.resnets.{block}", f"{there}.block.{block}")
                names |= attention_names(f"{here}.attentions.{block}", f"{there}.attn.{block}")
            names[f"{here}.{way}samplers.0.conv"] = f"{there}.{way}sample.conv"
    return names


def residual_names(here: str, there: str) -> dict[str, str]:
    """The layers of one residual block."""
    same = {f"{here}.{name}": f"{there}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")}
    return {**same, f"{here}.conv_shortcut": f"{there}.nin_shortcut"}


def attention_names(here: str, there: str) -> dict[str, str]:
    """The layers of one attention."""
    pairs = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    return {f"{here}.{name}": f"{there}.{other}" for name, other in pairs.items()}


def from_diffusers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of an AutoencoderKL under CompVis' names; attention's matrices become 1 x 1 convolutions."""
    names = layer_names(len(config["block_out_channels"]), config["layers_per_block"])
    found = {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        found[f"{names[layer]}.{kind}"] = value[:, :, None, None] if value.dim() == 2 else value
    return found


def to_diffusers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `from_diffusers`; ValueError for a tensor that is not part of an AutoencoderKL."""
    names = layer_names(len(config["block_out_channels"]), config["layers_per_block"])
    back = {other: name for name, other in names.items()}
    found = {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer not in back:
            raise ValueError(f"{name} is not part of an AutoencoderKL")
        matrix = ".attentions." in back[layer] and value.dim() == 4
        found[f"{back[layer]}.{kind}"] = value[:, :, 0, 0] if matrix else value
    return found


def inferred(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The configuration of the AutoencoderKL whose weights, under CompVis' names, have these shapes.

    No shape tells the number of norm groups: 32, as everywhere, or the largest power of two that divides every width.
    Nor does any tell the scale of the latents: 1.
    """

    def width(name: str, axis: int = 0) -> int:
        if name not in shapes:
            raise ValueError(f"it lacks {name}")
        return shapes[name][axis]

    levels = sum(1 for _ in takewhile(lambda i: f"encoder.down.{i}.block.0.conv1.weight" in shapes, count()))
    blocks = sum(1 for _ in takewhile(lambda i: f"encoder.down.0.block.{i}.conv1.weight" in shapes, count()))
    widths = [width(f"encoder.down.{i}.block.0.conv1.weight") for i in range(max(levels, 1))]
    attends = [f"encoder.down.{i}.attn.0.q.weight" in shapes for i in range(levels)]
    returns = [f"decoder.up.{i}.attn.0.q.weight" in shapes for i in reversed(range(levels))]
    return {
        "in_channels": width("encoder.conv_in.weight", 1),
        "out_channels": width("decoder.conv_out.weight"),
        "latent_channels": width("decoder.conv_in.weight", 1),
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": ["AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in returns],
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
        "norm_num_groups": next(groups for groups in (32, 16, 8, 4, 2, 1) if not any(w % groups for w in widths)),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": 1.0,
        "force_upcast": False,
    }


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights, under diffusers' names, of the autoencoder in a .safetensors file.

    It may be part of a whole checkpoint. Raises ValueError, or what safetensors raises, if there is none.
    """
    with safetensors.safe_open(file, "pt") as opened:
        stated = json.loads((opened.metadata() or {}).get(HEADER, "{}"))
        names = list(opened.keys())
        prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
        there = [name for name in names if name.startswith(tuple(prefix + part for part in PARTS))]
        if any(name.startswith(f"{prefix}quantize.") for name in names):
            raise ValueError("it is a VQ model, whose codes are quantized: an AutoencoderKL is needed")
        if any("_blocks." in name for name in there):
            raise ValueError(
                "its tensors have diffusers' names: give the folder with its config.json, where it must be called"
                " diffusion_pytorch_model.safetensors"
            )
        tensors = {name.removeprefix(prefix): opened.get_tensor(name) for name in there}
    config = inferred({name: tuple(value.shape) for name, value in tensors.items()})
    if config["in_channels"] != config["out_channels"]:
        raise ValueError(f"it makes {config['out_channels']} channels from {config['in_channels']}")
    config |= {name: stated[name] for name in STATED if name in stated}
    return config, to_diffusers(tensors, config)


def write(file: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Save the weights of an AutoencoderKL as one file; what no shape tells goes into its header."""
    stated = json.dumps({name: config[name] for name in STATED if config.get(name) is not None})
    named = {name: value.contiguous() for name, value in from_diffusers(tensors, config).items()}
    safetensors.torch.save_file(named, file, {"format": "pt", HEADER: stated})
