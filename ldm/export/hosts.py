"""Constraints of CompVis' program and ComfyUI on an autoencoder: checked, and met by layers added where exact."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from ldm.autoencoder.formats import diffusers
from ldm.errors import ConfigError
from ldm.export.compvis_network import NORM_GROUPS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

RESOLUTION = 256  # in a ddconfig, where the size of the training images is not known
ATTENTION = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
HEAD = """# For model.params of CompVis' configs: first_stage_config is this autoencoder,
# and scale_factor what gives its latents unit variance.
"""
SHIFT = "# From a latent, {shift:g} is to be subtracted before that, which CompVis' LatentDiffusion does not do.\n"


def check_compvis(config: Mapping[str, Any]) -> None:
    """Raise ConfigError, saying what CompVis takes for granted and what is different here."""
    widths = tuple(config["block_out_channels"])
    attends, returns = attended_levels(config)
    different = {
        f"{config['norm_num_groups']} norm groups": config["norm_num_groups"] != NORM_GROUPS,
        f"widths {', '.join(map(str, widths))}": any(width % NORM_GROUPS or width % widths[0] for width in widths),
        f"the activation {config['act_fn']}": config["act_fn"] != "silu",
        "attention at other levels of the decoder than of the encoder": attends != returns,
    }
    if found := [what for what, wrong in different.items() if wrong]:
        raise ConfigError(
            f"CompVis takes it for granted that an autoencoder has {NORM_GROUPS} norm groups, widths that are multiples"
            f" of {NORM_GROUPS} and of the first, and the activation silu; this one has {' and '.join(found)}: use"
            f" --format diffusers, or train with autoencoder.network.norm_groups {NORM_GROUPS} and such widths"
        )


def check_comfyui(config: Mapping[str, Any]) -> None:
    """Raise ConfigError, saying what ComfyUI takes for granted and what is different here.

    It builds a fixed network, reads of the file only the number of latent channels and whether there is a fourth
    level, and then leaves weights that do not fit as they are or stops.
    """
    widths = tuple(config["block_out_channels"])
    different = {
        f"{config['in_channels']} image channels": config["in_channels"] != 3,
        f"{config['latent_channels']} latent channels": config["latent_channels"] not in (4, 16),
        f"widths {', '.join(map(str, widths))}": widths not in ((128, 256, 512, 512), (128, 256, 512)),
        f"{config['layers_per_block']} block(s) per level": config["layers_per_block"] != 2,
        f"{config['norm_num_groups']} norm groups": config["norm_num_groups"] != NORM_GROUPS,
        "attention beside the middle": any(map(any, attended_levels(config))),
    }
    if found := [what for what, wrong in different.items() if wrong]:
        raise ConfigError(
            "ComfyUI takes it for granted that a VAE has 3 image channels, 4 or 16 latent channels, widths 128, 256,"
            f" 512, 512 (or without the last, at f4), 2 blocks per level, {NORM_GROUPS} norm groups and attention in"
            f" the middle at most; this one has {' and '.join(found)}: use --format diffusers or compvis"
        )


def attended_levels(config: Mapping[str, Any]) -> tuple[list[bool], list[bool]]:
    """Which levels of the encoder, and of the decoder, have attention, counted from the image."""
    down, up = config["down_block_types"], config["up_block_types"]
    return ["Attn" in block for block in down], ["Attn" in block for block in reversed(up)]


def with_all_layers(kl: "AutoencoderKL") -> "AutoencoderKL":
    """The same function with the layers that these programs always have: quant convolutions, attention in the middle.

    Those that it lacks do nothing: an identity, and an attention whose output is multiplied by 0.
    """
    diffusers.add_identity_convolutions(kl)
    if kl.config["mid_block_add_attention"]:
        return kl
    width = kl.config["block_out_channels"][-1]
    tensors = {**kl.state_dict(), **dict(attention_of_nothing(width))}
    return diffusers.build({**kl.config, "mid_block_add_attention": True}, tensors)


def attention_of_nothing(width: int) -> Iterator[tuple[str, Tensor]]:
    """The weights, under diffusers' names, of an attention in the middle of either side that adds 0."""
    for side in ("encoder", "decoder"):
        for layer in ATTENTION:
            name, is_norm = f"{side}.mid_block.attentions.0.{layer}", layer == "group_norm"
            yield f"{name}.weight", torch.ones(width) if is_norm else torch.zeros(width, width)
            yield f"{name}.bias", torch.zeros(width)


def ddconfig(config: Mapping[str, Any]) -> dict[str, Any]:
    """CompVis' description of the network of an AutoencoderKL that `check_compvis` accepts."""
    widths = tuple(config["block_out_channels"])
    size = config.get("sample_size")
    known = isinstance(size, int) and size > 0 and size % 2 ** (len(widths) - 1) == 0
    resolution = size if known else RESOLUTION
    attends, _ = attended_levels(config)
    return {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": resolution,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [resolution // 2**level for level, attending in enumerate(attends) if attending],
        "dropout": 0.0,
    }


def write_compvis_config(file: Path, config: Mapping[str, Any]) -> None:
    """The YAML that describes the autoencoder to CompVis' program, as its own configs do."""
    shift = config.get("shift_factor")
    first_stage = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": config["latent_channels"],
            "monitor": "val/rec_loss",
            "ddconfig": ddconfig(config),
            "lossconfig": {"target": "torch.nn.Identity"},
        },
    }
    params = {"scale_factor": config["scaling_factor"], "first_stage_config": first_stage}
    text = yaml.safe_dump({"model": {"params": params}}, sort_keys=False)
    file.write_text(HEAD + (SHIFT.format(shift=shift) if shift else "") + text)


def read_compvis_config(file: Path) -> dict[str, Any]:
    """The ddconfig in such a YAML."""
    found = yaml.safe_load(file.read_text())  # as CompVis' program reads it, to which 1e-4 is text
    described: dict[str, Any] = found["model"]["params"]["first_stage_config"]["params"]["ddconfig"]
    return described
