"""The autoencoder that CompVis' program and ComfyUI build, whatever a file says: what an export is compared with.

Written from the published shape (Esser et al. 2021, Rombach et al. 2022), and not from our reader or from diffusers, so
that a file which only these two understand does not pass. Its layers have the names that such files have.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.errors import CheckpointError

NORM_GROUPS = 32  # fixed in these programs; no file and no config of theirs states it
EPSILON = 1e-6
COMFYUI_WIDTH = 128


def norm(channels: int) -> nn.GroupNorm:
    """The one normalization there is."""
    return nn.GroupNorm(NORM_GROUPS, channels, eps=EPSILON)


class CompVisBlock(nn.Module):
    """norm, SiLU, convolution, twice, beside a skip."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        change = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return change + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class CompVisAttention(nn.Module):
    """Self-attention of one head over all positions, beside a skip."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normalized = self.norm(x)
        q, k, v = (layer(normalized).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class CompVisResampling(nn.Module):
    """A convolution that halves the sides, with zeros below and to the right, or one that follows a doubling."""

    def __init__(self, channels: int, *, down: bool):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0, mode="nearest"))


class CompVisSide(nn.Module):
    """The encoder or the decoder of a `ddconfig`; levels are counted from the image, on both sides."""

    def __init__(self, ddconfig: Mapping[str, Any], *, encodes: bool):
        super().__init__()
        widths = [ddconfig["ch"] * factor for factor in ddconfig["ch_mult"]]
        attends = [ddconfig["resolution"] // 2**level in ddconfig["attn_resolutions"] for level in range(len(widths))]
        channels = ddconfig["ch"] if encodes else widths[-1]
        first, last = (ddconfig["in_channels"], widths[-1]) if encodes else (ddconfig["z_channels"], widths[0])
        self.encodes, blocks = encodes, ddconfig["num_res_blocks"] + (not encodes)
        self.conv_in = nn.Conv2d(first, channels, 3, padding=1)
        levels: list[nn.Module] = [nn.Module() for _ in widths]
        for place in range(len(widths)) if encodes else reversed(range(len(widths))):
            level = levels[place]
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks):
                level.block.append(CompVisBlock(channels, widths[place]))
                channels = widths[place]
                if attends[place]:
                    level.attn.append(CompVisAttention(channels))
            if place < len(widths) - 1 and encodes:
                level.downsample = CompVisResampling(channels, down=True)
            if place > 0 and not encodes:
                level.upsample = CompVisResampling(channels, down=False)
        self.add_module("down" if encodes else "up", nn.ModuleList(levels))
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1 = CompVisBlock(widths[-1], widths[-1]), CompVisAttention(widths[-1])
        self.mid.block_2 = CompVisBlock(widths[-1], widths[-1])
        out = ddconfig["z_channels"] * (1 + ddconfig["double_z"]) if encodes else ddconfig["out_ch"]
        self.norm_out, self.conv_out = norm(last), nn.Conv2d(last, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        x = self.middle(self.levels(x)) if self.encodes else self.levels(self.middle(x))
        return self.conv_out(F.silu(self.norm_out(x)))

    def middle(self, x: Tensor) -> Tensor:
        """The lowest resolution."""
        for name in ("block_1", "attn_1", "block_2"):
            x = self.mid.get_submodule(name)(x)
        return x

    def levels(self, x: Tensor) -> Tensor:
        """From the image down, or from the latent up."""
        all_levels = list(self.get_submodule("down" if self.encodes else "up").children())
        for level in all_levels if self.encodes else reversed(all_levels):
            parts = dict(level.named_children())
            attentions = list(parts["attn"].children())
            for number, block in enumerate(parts["block"].children()):
                x = block(x)
                if attentions:
                    x = attentions[number](x)
            for name in ("downsample", "upsample"):
                x = parts[name](x) if name in parts else x
        return x


class CompVisAutoencoder(nn.Module):
    """Encoder, decoder and the two 1 x 1 convolutions beside the latent."""

    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int):
        super().__init__()
        channels = ddconfig["z_channels"]
        self.encoder, self.decoder = (CompVisSide(ddconfig, encodes=encodes) for encodes in (True, False))
        self.quant_conv = nn.Conv2d(2 * channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """The mean of the posterior."""
        mean: Tensor = self.quant_conv(self.encoder(images)).chunk(2, dim=1)[0]
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        """Images."""
        images: Tensor = self.decoder(self.post_quant_conv(latents))
        return images


def comfyui_ddconfig(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The network that ComfyUI builds for a file: of the shapes it looks at a few names and at two numbers."""
    four_levels = "encoder.down.2.downsample.conv.weight" in shapes or "decoder.up.3.upsample.conv.weight" in shapes
    return {
        **{"double_z": True, "z_channels": shapes["decoder.conv_in.weight"][1], "resolution": 256},
        **{"in_channels": 3, "out_ch": 3, "ch": COMFYUI_WIDTH, "ch_mult": [1, 2, 4, 4][: 4 if four_levels else 3]},
        **{"num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
    }


def load(file: Path, ddconfig: Mapping[str, Any] | None = None) -> CompVisAutoencoder:
    """The autoencoder in a file as CompVis builds it by its config, or, without one, as ComfyUI does; in float32.

    Raises CheckpointError where a tensor is missing, is one too many or has another shape.
    """
    tensors = {name: value.float() for name, value in safetensors.torch.load_file(file).items()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    built = comfyui_ddconfig(shapes) if ddconfig is None else ddconfig
    with torch.device("meta"):
        autoencoder = CompVisAutoencoder(built, shapes["post_quant_conv.weight"][1])
    try:
        autoencoder.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        host = "ComfyUI" if ddconfig is None else "CompVis"
        raise CheckpointError(f"read as {host} reads it, {file.name} does not fit: {str(error)[:200]}") from error
    return autoencoder.eval().requires_grad_(False)
