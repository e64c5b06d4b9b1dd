"""diffusers' UNet2DModel, which stock diffusers opens without any code of ours."""

import math
from typing import Any, Self

from diffusers import UNet2DModel
from torch import Tensor, nn

from ldm.diffusion.config import UNet2DConfig
from ldm.diffusion.network import DenoiserNetwork, check_halvings
from ldm.nn.convolution import zeroed
from ldm.nn.outer_convolution import OuterConv2d
from ldm.nn.outer_linear import OuterLinear

TOP_FREQUENCY = 64.0  # frequency of the noise level's features, as in our own networks
BASE = 10_000.0  # of diffusers' positional embedding


class DiffusersUNet(DenoiserNetwork):
    """F(x; noise, vector): batch c h w -> batch c h w, h and w divisible by 2 ** (levels - 1).

    The noise level goes as ln(σ) / 4 into the positional embedding that is made for timesteps, which is what diffusers'
    EDM schedulers give it. The vector takes the place of a class embedding. The output starts at zero.
    """

    def __init__(self, config: UNet2DConfig, *, latent_shape: tuple[int, int, int]):
        super().__init__()
        width, condition = config.widths[0], 4 * config.widths[0]
        self.vector_channels, self.settings = condition, unet2d_settings(config, latent_shape)
        self.model = UNet2DModel(**self.settings)
        self.model.class_embedding = nn.Identity()
        self.model.conv_in = OuterConv2d(latent_shape[0], width, 3, padding=1)
        self.model.conv_out = zeroed(OuterConv2d(width, latent_shape[0], 3, padding=1))
        self.model.time_embedding.linear_1 = OuterLinear(width, condition)
        self.model.time_embedding.linear_2 = OuterLinear(condition, condition)

    @classmethod
    def create(cls, config: UNet2DConfig, *, latent_shape: tuple[int, int, int], token_channels: int = 0) -> Self:
        return cls(config, latent_shape=latent_shape)

    @classmethod
    def check(cls, config: UNet2DConfig, latent_shape: tuple[int, int, int]) -> None:
        check_halvings(config.widths, latent_shape)

    def forward(
        self, x: Tensor, noise_condition: Tensor, vector: Tensor | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        if vector is None:
            vector = x.new_zeros(len(x), self.vector_channels)
        output: Tensor = self.model(x, noise_condition, vector).sample
        return output

    def diffusers_config(self, classes: int) -> dict[str, Any]:
        embedding = {"num_class_embeds": classes + 1} if classes else {}  # the last is the null label
        return {"_class_name": UNet2DModel.__name__, **self.settings, **embedding}


def unet2d_settings(config: UNet2DConfig, latent_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The arguments of UNet2DModel."""
    channels, height, width = latent_shape
    attends = [level in config.attention for level in range(len(config.widths))]
    return {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": channels,
        "freq_shift": frequency_shift(config.widths[0]),
        "block_out_channels": config.widths,
        "layers_per_block": config.blocks,
        "down_block_types": tuple("AttnDownBlock2D" if each else "DownBlock2D" for each in attends),
        "up_block_types": tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)),
        "attention_head_dim": config.head_channels,
        "norm_num_groups": config.norm_groups,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": config.norm_groups,
        "dropout": config.dropout,
    }


def frequency_shift(features: int) -> int:
    """The shift with which a positional embedding for timesteps 0 to 1000 suits numbers between about -3 and 3.

    Feature i of n has the frequency BASE ** (-i / (n - shift)): 1 and slower ones. With a shift above n they rise, and
    the last becomes about TOP_FREQUENCY.
    """
    sines = features // 2
    return sines + max(round((sines - 1) * math.log(BASE) / math.log(TOP_FREQUENCY)), 1)
