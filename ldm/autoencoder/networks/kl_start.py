"""The start of a new AutoencoderKL: the best linear autoencoder of the training images that its main path can hold.

With its residual blocks at zero, what is left of an AutoencoderKL is a chain of convolutions: down by 2 x 2 patches of
channels in the encoder; nearest-neighbor upsampling and 3 x 3 convolutions in the decoder, which together are each
latent held over its f x f pixels and then filtered by (2f + 1) x (2f + 1) taps. Such a chain can come within 0.1 dB of
the best lapped transform (`ldm.autoencoder.lapped_transform`; emoji, f4), and is fitted to the same J.

Two layers stand in the way, the group norm and the SiLU before each last convolution. A channel that holds a large
constant makes the standard deviation of its group one, so the norm passes the others on as they are; and of a pair x
and -x the SiLUs differ by exactly x.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder.lapped_transform import SILENT, error, power_spectrum
from ldm.shapes import Images

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import Decoder, Encoder

MOST_CHANNELS = 16  # that a linear signal has at any place of the chain, or as many as the code has
MOST_VALUES = 1024  # of a patch
CONSTANT = 32.0  # beside channels of standard deviation 1
MEASURED = 2**17  # pixels, about, that principal components and the spread of signals are taken of
OTHERS = 0.1  # share of the channels beside the pairs that goes to the norm: the mean of a group changes with them
ITERATIONS = 100  # of L-BFGS


@dataclass(frozen=True)
class Shape:
    """The channels of the chain's signals; the last of `down`, and of `up`, is what is split into pairs."""

    image: int
    latent: int
    down: tuple[int, ...]  # after each halving, from the image on
    up: tuple[int, ...]  # after each doubling, from the latent on


def pairs(width: int, groups: int) -> int:
    """How many pairs of channels there are beside one constant channel per group, each within a group."""
    return groups * ((width // groups - 1) // 2)


def shape_of(widths: tuple[int, ...], groups: int, image: int, latent: int) -> Shape | None:
    """The channels of a linear start; None where the widths and the norm groups leave no room for one."""
    levels, most = len(widths) - 1, max(MOST_CHANNELS, latent)
    if image * 4**levels > MOST_VALUES or image > widths[0] or latent > widths[-1] or not levels:
        return None
    narrow = [min(*neighbors, most) for neighbors in itertools.pairwise(widths)]
    down, channels = [], image
    for width in narrow:
        down.append(channels := min(4 * channels, width))
    up = narrow[::-1]
    down[-1], up[-1] = min(down[-1], pairs(widths[-1], groups)), min(up[-1], pairs(widths[0], groups))
    fits = down[-1] >= latent and up[-1] >= image
    return Shape(image, latent, tuple(down), tuple(up)) if fits else None


@dataclass
class Chain:
    """The kernels of a linear autoencoder in the form of an AutoencoderKL's main path."""

    down: list[Tensor]  # outputs x inputs x 2 x 2, each with stride 2
    encoder_out: Tensor  # latent channels x inputs x 3 x 3
    up: list[Tensor]  # outputs x inputs x 3 x 3, each after nearest-neighbor upsampling
    decoder_out: Tensor  # image channels x inputs x 3 x 3

    @property
    def parameters(self) -> list[Tensor]:
        """All of them."""
        return [*self.down, self.encoder_out, *self.up, self.decoder_out]

    def encoder(self) -> Tensor:
        """The kernel from patches to the latent: latent channels x values x 3 x 3."""
        patch = torch.eye(self.down[0].shape[1], dtype=torch.float64)[:, :, None, None]
        for kernel in self.down:
            outputs, channels, side = kernel.shape[0], patch.shape[1], 2 * patch.shape[-1]
            patch = torch.einsum("oqab,qcij->ocaibj", kernel, patch).reshape(outputs, channels, side, side)
        return torch.einsum("oqyx,qv->ovyx", self.encoder_out, patch.flatten(1))

    def decoder(self) -> Tensor:
        """The kernel from the latent to patches: values x latent channels x 3 x 3."""
        held = torch.eye(self.up[0].shape[1], dtype=torch.float64)[:, :, None, None]
        for level, kernel in enumerate(self.up, start=1):
            held = filtered(held, kernel, 2 ** (len(self.up) - level))
        held = filtered(held, self.decoder_out, 1)
        hold = hold_matrix(2 ** len(self.up))
        patches = torch.einsum("ocab,pia,qjb->opqcij", held, hold, hold)
        return patches.flatten(0, 2)


def filtered(taps: Tensor, kernel: Tensor, spacing: int) -> Tensor:
    """The taps of a filter followed by a 3 x 3 `kernel` whose taps lie `spacing` pixels apart."""
    sums: list[Tensor] = []
    for y in range(3):
        for x in range(3):
            here = torch.einsum("op,pcij->ocij", kernel[:, :, y, x], taps)
            sums.append(F.pad(here, [side * spacing for side in (x, 2 - x, y, 2 - y)]))
    return torch.stack(sums).sum(0)


def hold_matrix(factor: int) -> Tensor:
    """Which neighbor of a latent each tap of the decoder's filter sees, from each pixel: pixels x 3 x taps."""
    matrix = torch.zeros(factor, 3, 2 * factor + 1, dtype=torch.float64)
    for pixel in range(factor):
        for tap in range(-factor, factor + 1):
            matrix[pixel, (pixel + tap) // factor + 1, tap + factor] = 1
    return matrix


def fit(images: Images, shape: Shape, noise: float) -> Chain:
    """The chain of least J for these images, with a code of mean 0 and variance 1; `noise` is τ."""
    factor = 2 ** len(shape.down)
    patches = F.pixel_unshuffle(images, factor)
    spectrum = power_spectrum(patches, patches.double().mean((0, 2, 3)), torch.eye(patches.shape[1]).double())
    chain = first_guess(few(images), shape)
    total = spectrum.weights @ torch.einsum("wii->w", spectrum.power).real
    parameters = [parameter.requires_grad_() for parameter in chain.parameters]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=ITERATIONS, history_size=20, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = error(spectrum, chain.encoder(), chain.decoder(), noise)[0] / total.clamp_min(1e-12)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        variances = error(spectrum, chain.encoder(), chain.decoder(), noise)[1]
        scale = torch.where(variances > SILENT * total, variances, 1.0).sqrt().view(-1, 1, 1, 1)
        chain.encoder_out /= scale
        chain.up[0] *= scale.view(1, -1, 1, 1)
        balance(chain, few(images))
    return chain


def few(images: Images) -> Images:
    """Some of the images, evenly from the first to the last."""
    return images[:: -(-len(images) // max(MEASURED // images[0, 0].numel(), 1))]


def balance(chain: Chain, images: Images) -> None:
    """Give every signal of the chain a standard deviation of 1 per channel, without changing what it computes."""
    signal = images.double() - images.double().mean((0, 2, 3), keepdim=True)
    signal = balance_half(chain.down, chain.encoder_out, signal, lambda x, kernel: F.conv2d(x, kernel, stride=2))
    codes = F.conv2d(signal, chain.encoder_out, padding=1)
    balance_half(chain.up, chain.decoder_out, codes, lambda x, kernel: F.conv2d(doubled(x), kernel, padding=1))


def balance_half(
    kernels: list[Tensor], last: Tensor, signal: Tensor, apply: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The same for encoder or decoder; returns the signal before the last kernel."""
    for kernel, following in itertools.pairwise([*kernels, last]):
        signal = apply(signal, kernel)
        spread = signal.std((0, 2, 3), keepdim=True)
        spread = torch.where(spread > SILENT, spread, 1.0)
        signal = signal / spread
        kernel /= spread.view(-1, 1, 1, 1)
        following *= spread
    return signal


def doubled(x: Tensor) -> Tensor:
    """Each value four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def first_guess(images: Images, shape: Shape) -> Chain:
    """Principal components of 2 x 2 patches, again and again; and a decoder of small random numbers."""
    down, signal = [], images.double()
    for channels in shape.down:
        patches = F.pixel_unshuffle(signal, 2)
        rows = patches.permute(0, 2, 3, 1).flatten(0, 2)
        axes = torch.linalg.eigh((rows - rows.mean(0)).mT.cov())[1][:, -channels:].flip(1).mT
        down.append(axes.reshape(channels, signal.shape[1], 2, 2).contiguous())
        signal = torch.einsum("oc,bcyx->boyx", axes, patches)
    encoder_out = torch.zeros(shape.latent, shape.down[-1], 3, 3, dtype=torch.float64)
    spread = signal.std((0, 2, 3)).clamp_min(1e-6)
    encoder_out[:, :, 1, 1] = torch.eye(*encoder_out.shape[:2]) / spread
    generator, up, channels = torch.Generator().manual_seed(0), [], shape.latent
    for outputs in (*shape.up, shape.image):
        kernel = torch.randn(outputs, channels, 3, 3, generator=generator, dtype=torch.float64)
        up.append(kernel / math.sqrt(9 * channels))
        channels = outputs
    return Chain(down, encoder_out, up[:-1], up[-1])


@torch.no_grad()
def write(chain: Chain, images: Images, encoder: "Encoder", decoder: "Decoder") -> None:
    """Put the chain into an encoder and a decoder, with residual blocks of zero.

    The channels that it does not need stay as they are.
    """
    for half in (encoder, decoder):
        zero_residual_blocks(half)
    mean, latent = images.mean((0, 2, 3)).to(encoder.conv_in.weight), len(chain.encoder_out)
    stages: list[tuple[Any, Any]] = [(block, block.downsamplers) for block in encoder.down_blocks]
    write_path(encoder.conv_in, stages, len(mean), chain.down, encoder.conv_norm_out)
    encoder.conv_in.bias[: len(mean)] = -mean
    stages = [(block, block.upsamplers) for block in decoder.up_blocks]
    write_path(decoder.conv_in, stages, latent, chain.up, decoder.conv_norm_out)
    write_output(encoder, encoder.mid_block.resnets[-1], chain.encoder_out)
    write_output(decoder, decoder.up_blocks[-1].resnets[-1], chain.decoder_out)
    decoder.conv_out.bias.copy_(mean)


def zero_residual_blocks(module: nn.Module) -> None:
    """Let every residual block and attention start as its skip connection alone."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    for part in module.modules():
        last = (
            part.conv2 if isinstance(part, ResnetBlock2D) else part.to_out[0] if isinstance(part, Attention) else None
        )
        for parameter in () if last is None else last.parameters():
            nn.init.zeros_(parameter)


def write_path(
    conv_in: nn.Conv2d, stages: list[tuple[Any, Any]], channels: int, kernels: list[Tensor], norm: nn.GroupNorm
) -> None:
    """Let the first `channels` of the input go through the kernels, one per change of size, and end in pairs.

    A stage is a block and the layers that change the size after it; the last has none.
    """
    layers: list[tuple[Any, Tensor | None]] = [(conv_in, None)]
    remaining = iter(kernels)
    for block, samplers in stages:
        if (shortcut := block.resnets[0].conv_shortcut) is not None:
            layers.append((shortcut, None))
        layers += [(sampler.conv, next(remaining)) for sampler in samplers or ()]
    signal = list(range(channels))
    for place, (layer, kernel) in enumerate(layers, start=1):
        kernel = torch.eye(len(signal))[:, :, None, None] if kernel is None else kernel
        outputs = list(range(len(kernel)))
        if place == len(layers):
            outputs, kernel = pair_channels(norm, len(kernel)), torch.cat([kernel, -kernel])
            layer.weight *= OTHERS
            layer.bias *= OTHERS
        first = (layer.kernel_size[0] - kernel.shape[-1]) // 2
        taps = slice(first, first + kernel.shape[-1])
        layer.weight[outputs], layer.bias[outputs] = 0, 0
        layer.weight[torch.tensor(outputs)[:, None], torch.tensor(signal), taps, taps] = kernel.to(layer.weight)
        signal = outputs


def pair_channels(norm: nn.GroupNorm, count: int) -> list[int]:
    """Where `count` signals lie before a norm, and then their negatives.

    The first channel of a group is for a constant. A signal and its negative are in one group, whose mean does not
    change with them.
    """
    each = norm.num_channels // norm.num_groups
    places = [first + 1 + 2 * pair for first in range(0, norm.num_channels, each) for pair in range((each - 1) // 2)]
    return [*places[:count], *(place + 1 for place in places[:count])]


def write_output(half: Any, last_block: Any, kernel: Tensor) -> None:
    """Let the norm, the SiLU and the last convolution of encoder or decoder be this kernel of the pairs."""
    norm, convolution = half.conv_norm_out, half.conv_out
    each, channels = norm.num_channels // norm.num_groups, pair_channels(norm, kernel.shape[1])
    last_block.conv2.bias[::each] = CONSTANT
    nn.init.constant_(norm.weight, CONSTANT * math.sqrt(each - 1) / each)  # the standard deviation of a group
    nn.init.constant_(norm.bias, CONSTANT / each)  # its mean
    norm.weight[::each], norm.bias[::each] = 0, 0
    nn.init.zeros_(convolution.weight)
    convolution.weight[: len(kernel), channels] = torch.cat([kernel, -kernel], dim=1).to(norm.weight)
    nn.init.zeros_(convolution.bias)
