"""A diffusion transformer (DiT): a ViT over patches of the latent, conditioned by its layer norms (adaLN-zero).

    noisy latents -> patches -> tokens -> [block] x depth -> norm -> patches -> output
                                             |
    noise level + vector -> MLP -> scale, shift and gate of every layer norm

    block   x + gate * attention(scale * norm(x) + shift)
            x + cross-attention(norm(x) + place, tokens of a text)
            x + gate * MLP(scale * norm(x) + shift)

Peebles and Xie 2023; with QK normalization and rotary positions, as transformers came to have them since.
"""

from typing import ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.diffusion.config import DiTConfig
from ldm.diffusion.network import DenoiserNetwork, check_divisible
from ldm.errors import ConfigError
from ldm.nn.embedding import FourierFeatures, NoiseEmbedding
from ldm.nn.outer_linear import OuterLinear
from ldm.nn.positions import PlaceEmbedding, rotary_angles, sines_and_cosines
from ldm.nn.token_attention import TokenAttention

FEATURES = 256  # of the noise level


def layer_norm(width: int) -> nn.LayerNorm:
    """Without scale and shift of its own: they come from the condition."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class DiTBlock(nn.Module):
    """Attention and an MLP, each beside a skip; gated by zero at the start, so that the block starts as its skip."""

    def __init__(self, config: DiTConfig, token_channels: int):
        super().__init__()
        width = config.width
        self.modulation = OuterLinear(width, 6 * width)
        self.norm_attention, self.norm_mlp = layer_norm(width), layer_norm(width)
        self.attention = TokenAttention(width, config.heads, qk_norm=config.qk_norm)
        self.norm_cross, self.place, self.cross = None, None, None
        if token_channels:
            self.norm_cross = nn.LayerNorm(width, eps=1e-6)
            self.place = PlaceEmbedding(width)
            self.cross = TokenAttention(width, config.heads, qk_norm=config.qk_norm, source_channels=token_channels)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU("tanh"),
            nn.Dropout(config.dropout),
            nn.Linear(4 * width, width),
        )

    def forward(
        self, x: Tensor, condition: Tensor, tokens: Tensor | None, grid: tuple[int, int], angles: Tensor | None
    ) -> Tensor:
        parts = self.modulation(condition)[:, None].chunk(6, dim=-1)
        shift, scale, gate = parts[:3]
        x = x + gate * self.attention(self.norm_attention(x) * (1 + scale) + shift, angles=angles)
        if self.cross is not None and self.norm_cross is not None and self.place is not None and tokens is not None:
            x = x + self.cross(self.norm_cross(x) + self.place(grid), tokens)
        shift, scale, gate = parts[3:]
        x = x + gate * self.mlp(self.norm_mlp(x) * (1 + scale) + shift)
        return x


class DiT(DenoiserNetwork):
    """F(x; noise, vector, tokens): batch c h w -> batch c h w, h and w divisible by the patch.

    The output starts at zero, where the EDM loss is 1 at every noise level.
    """

    takes_tokens: ClassVar[bool] = True

    def __init__(self, config: DiTConfig, *, channels: int, token_channels: int = 0):
        super().__init__()
        width, values = config.width, channels * config.patch**2
        self.config, self.vector_channels = config, width
        self.first = OuterLinear(values, width)
        self.noise_features = FourierFeatures(FEATURES)
        self.noise_embedding = NoiseEmbedding(FEATURES, width)
        self.blocks = nn.ModuleList(DiTBlock(config, token_channels) for _ in range(config.depth))
        self.norm = layer_norm(width)
        self.modulation = OuterLinear(width, 2 * width)
        self.last = OuterLinear(width, values)
        for module in self.modules():
            if (
                isinstance(module, nn.Linear) and module.bias is not None
            ):  # embeddings of places have a start of their own
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for start_at_zero in (self.last, self.modulation, *(block.modulation for block in self.each_block())):
            nn.init.zeros_(start_at_zero.weight)
        for block in self.each_block():
            if block.cross is not None:  # a text has no effect at first, as it has no gate
                nn.init.zeros_(block.cross.to_out.weight)

    @classmethod
    def create(cls, config: DiTConfig, *, latent_shape: tuple[int, int, int], token_channels: int = 0) -> Self:
        return cls(config, channels=latent_shape[0], token_channels=token_channels)

    @classmethod
    def check(cls, config: DiTConfig, latent_shape: tuple[int, int, int]) -> None:
        """Height and width are whole numbers of patches."""
        _, height, width = latent_shape
        if height % config.patch or width % config.patch:
            raise ConfigError(
                f"latents of {height} x {width} are not made of patches of {config.patch} x {config.patch}: choose"
                " another denoiser.network.patch"
            )

    def each_block(self) -> list[DiTBlock]:
        """The blocks in order."""
        return [block for block in self.blocks if isinstance(block, DiTBlock)]

    def forward(
        self, x: Tensor, noise_condition: Tensor, vector: Tensor | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        patch, (batch, channels, height, width) = self.config.patch, x.shape
        check_divisible(x, patch)
        condition = self.noise_embedding(self.noise_features(noise_condition).to(x.dtype))
        condition = F.silu(condition if vector is None else condition + vector)
        grid, angles = (height // patch, width // patch), None
        x = x.reshape(batch, channels, grid[0], patch, grid[1], patch).permute(0, 2, 4, 1, 3, 5)
        x = self.first(x.reshape(batch, grid[0] * grid[1], -1))
        if self.config.positions == "rotary":
            angles = rotary_angles(grid, self.config.width // self.config.heads, x.device)
        else:
            x = x + sines_and_cosines(grid, self.config.width, x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x, condition, tokens, grid, angles)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        x = self.last(self.norm(x) * (1 + scale) + shift)
        x = x.view(batch, *grid, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(batch, channels, height, width)
