"""The contract of every network a denoiser can be made of."""

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ldm.errors import ConfigError


class DenoiserNetwork(nn.Module):
    """F(x; noise, vector, tokens): a tensor of the shape of x.

    A new one is a class with these three methods, and a line in `ldm.diffusion.config.DENOISER_NETWORKS`.
    """

    vector_channels: int  # of the vector that it is conditioned on
    takes_tokens: ClassVar[bool] = False  # whether `create` takes `token_channels` and `forward` looks at `tokens`

    @classmethod
    def create(cls, config: Any, *, latent_shape: tuple[int, int, int], token_channels: int = 0) -> Self:
        """An untrained network for latents of this shape: channels, height, width; `config` is of its own class.

        `token_channels` is the width of the tokens, 0 for a model without text. Only a network that `takes_tokens` is
        asked for another.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, config: Any, latent_shape: tuple[int, int, int]) -> None:
        """Raise ConfigError, before any image is encoded, if it cannot take latents of this shape."""

    def forward(
        self, x: Tensor, noise_condition: Tensor, vector: Tensor | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        """`x` is batch x c x h x w, `noise_condition` one number per sample, about -3 to 3; `vector` is batch x
        vector_channels and `tokens` batch x length x token_channels, None where there is no such condition.

        Tokens are the words of a text, for cross-attention. There is no padding mask, and none is needed: every
        position holds a meaningful token. What follows the last word is a learned embedding of "nothing", and a text
        that is left out consists of it alone; order and context of the words are in the tokens already.

        `x`, `vector` and `tokens` come in the precision of the weights. `noise_condition` comes in float32 or float64,
        for its sines need that; what is made of it is cast to that of `x`.
        """
        raise NotImplementedError

    def diffusers_config(self, classes: int) -> dict[str, Any] | None:
        """The config.json of the class of diffusers that it is, with so many classes; None if diffusers has none."""
        return None


def check_halvings(widths: tuple[int, ...], latent_shape: tuple[int, int, int]) -> None:
    """Raise ConfigError if latents cannot be halved for each of a U-Net's levels after the first."""
    halvings, (_, height, width) = len(widths) - 1, latent_shape
    if height % 2**halvings or width % 2**halvings:
        raise ConfigError(
            f"latents of {height} x {width} cannot be halved {halvings} times: give denoiser.network.widths fewer"
            " levels, and denoiser.network.attention none that are not there"
        )


def check_divisible(x: Tensor, factor: int) -> None:
    """Raise ConfigError if height and width of latents are not divisible by that by which a network divides them."""
    height, width = x.shape[-2:]
    if height % factor or width % factor:
        raise ConfigError(f"latents of {height} x {width} are not divisible by {factor}")
