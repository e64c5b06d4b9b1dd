"""A vision transformer as an autoencoder. Its encoder leaves hidden patches out, so that hiding most of them is cheap.

    patches -> embedding + position -> [visible ones] -> blocks -> code, 0 where hidden
    code -> embedding, a learned token where hidden, + position -> fewer, narrower blocks -> patches

There is no class token (He et al. 2022, appendix A.1, find none needed): every latent belongs to a patch.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.autoencoder.config import ViTNetworkConfig
from ldm.autoencoder.network import AutoencoderNetwork


def blocks(width: int, heads: int, depth: int) -> nn.ModuleList:
    """Pre-norm transformer blocks, with four times the width inside."""
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        for _ in range(depth)
    )


def positional_embedding(grid: tuple[int, int], width: int, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, each in half of the width: 1 x positions x width (He et al. 2022)."""
    quarter = width // 4
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = [torch.arange(side, dtype=torch.float64)[:, None] * frequencies for side in grid]
    rows, columns = (torch.cat([each.sin(), each.cos()], 1) for each in angles)
    rows, columns = rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)
    return torch.cat([columns, rows], 2).view(1, -1, width).to(like)


class ViTNetwork(AutoencoderNetwork):
    """An image of C x H x W becomes encoder_channels x H/p x W/p, for patches of p x p.

    `hidden`, batch x H/p x W/p with as many true in every image, names patches that the encoder does not see. Its
    output there is 0, and the decoder puts its mask token there.
    """

    encoder: nn.ModuleDict
    decoder: nn.ModuleDict
    can_skip_patches = True
    is_convolutional = False

    def __init__(
        self, config: ViTNetworkConfig, *, image: tuple[int, int, int], encoder_channels: int, latent_channels: int
    ):
        super().__init__()
        patch, width, narrow = config.patch, config.width, config.decoder_width
        self.config, self.image_channels, self.downsampling = config, image[0], (patch, patch)
        self.downsampling_setting = f"autoencoder.network.patch {patch}"
        values = image[0] * patch * patch
        self.encoder = nn.ModuleDict(
            {
                "embedding": nn.Linear(values, width),
                "blocks": blocks(width, config.heads, config.depth),
                "norm": nn.LayerNorm(width, eps=1e-6),
                "code": nn.Identity() if encoder_channels == width else nn.Linear(width, encoder_channels),
            }
        )
        self.decoder = nn.ModuleDict(
            {
                "embedding": nn.Linear(latent_channels, narrow),
                "blocks": blocks(narrow, config.decoder_heads, config.decoder_depth),
                "norm": nn.LayerNorm(narrow, eps=1e-6),
                "pixels": nn.Linear(narrow, values),
            }
        )
        self.mask_token = nn.Parameter(torch.randn(narrow) * 0.02)
        self.positions: dict[tuple[object, ...], Tensor] = {}  # on a GPU, making them again would keep it waiting
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """batch x encoder_channels x rows x columns."""
        p = self.config.patch
        squares = rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        rows = images.shape[2] // p
        grid = rows, squares.shape[1] // rows
        x = self.encoder["embedding"](squares) + self.embedded_positions(grid, self.config.width, squares)
        seen = None if hidden is None else self.visible(hidden)[:, :, None]
        if seen is not None:
            x = x.gather(1, seen.expand(-1, -1, x.shape[2]))
        for block in self.encoder["blocks"].children():
            x = block(x)
        code = self.encoder["code"](self.encoder["norm"](x))
        if seen is not None:
            nothing = code.new_zeros(len(code), squares.shape[1], code.shape[2])
            code = nothing.scatter(1, seen.expand_as(code), code)
        return rearrange(code, "b (h w) c -> b c h w", h=grid[0])

    def visible(self, hidden: Tensor) -> Tensor:
        """The positions of the patches that are not hidden, in order: batch x how many there are."""
        known = self.hides if self.training else None
        count = int(hidden[0].sum()) if known is None else known  # the former waits for a GPU
        return hidden.flatten(1).byte().argsort(dim=1, stable=True)[:, : hidden[0].numel() - count]

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        """batch x C x H x W."""
        grid, p = (latents.shape[2], latents.shape[3]), self.config.patch
        x = self.decoder["embedding"](rearrange(latents, "b c h w -> b (h w) c"))
        if hidden is not None:
            x = torch.where(hidden.flatten(1)[:, :, None], self.mask_token.to(x.dtype), x)
        x = x + self.embedded_positions(grid, self.config.decoder_width, x)
        for block in self.decoder["blocks"].children():
            x = block(x)
        squares = self.decoder["pixels"](self.decoder["norm"](x))
        return rearrange(squares, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=p, q=p)

    def embedded_positions(self, grid: tuple[int, int], width: int, like: Tensor) -> Tensor:
        """The positional embedding, made once for each grid."""
        key = (grid, width, like.dtype, like.device)
        if key not in self.positions:
            self.positions[key] = positional_embedding(grid, width, like)
        return self.positions[key]

    def train_mask_token(self, trains: bool) -> None:
        self.mask_token.requires_grad_(trains)

    @property
    def decoder_in_weight(self) -> Tensor:
        """The weight that the code meets first: outputs x latent channels."""
        return self.decoder["embedding"].get_parameter("weight")

    @property
    def output_layer(self) -> nn.Module:
        """The layer that makes the image."""
        return self.decoder["pixels"]
