"""The best linear autoencoder with overlapping patches, a lapped transform, fitted to the power spectrum of images.

An image is cut into patches of `patch` x `patch` pixels, and a patch less the mean patch is a vector u at one position
of the latent. Encoder E and decoder D are 3 x 3 convolutions on these positions, so that an atom is three patches wide
(lapped transforms: Malvar and Staelin 1989). With S(ω) = E[û ûᴴ] the spectrum of u over the images, they minimize

    J = mean_ω tr[(I − D E) S (I − D E)ᴴ] + τ² Σ_c v_c mean_ω ‖D_c‖²,   v_c = mean_ω [E S Eᴴ]_cc,

the squared error of an image that is decoded from its code plus noise of τ standard deviations of each code channel.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.shapes import Images

WINDOW = 32  # positions a side, at most, of what the spectrum is taken of
REACH = 4  # positions between two patches that may meet in J: two kernels reach two positions to each side
DIMENSIONS = 128  # of the patches, at most, if the code has no more than half of them
MOST_CHANNELS = 256  # of the code
MOST_PATCHES = 2**14  # that principal components are taken of
ITERATIONS = 100  # of L-BFGS, at most
OPERATIONS = 4e10  # that they may take, about
NOISE = 0.05  # where the noise of the code is learned
SILENT = 1e-10  # share of the images' variance below which a channel has nothing to say


@dataclass(frozen=True)
class LappedTransform:
    """The kernels of encoder (channels x values x 3 x 3) and decoder (values x channels x 3 x 3), and the mean patch.

    `values` are those of a patch, in the order of `torch.nn.functional.pixel_unshuffle`. Each code channel has mean 0
    and variance 1; one that has nothing to say has an encoder, and a decoder of zeros.
    """

    encoder: Tensor
    decoder: Tensor
    mean: Tensor  # of each value of a patch


def fit(images: Images, patch: int, channels: int, noise: float, *, uncorrelated: bool = False) -> LappedTransform:
    """The transform of these images with `channels` in its code, for noise of `noise` standard deviations.

    In float64: L-BFGS from the principal components of single patches, over the encoder alone, as the best decoder of
    an encoder has a closed form. Of larger patches only the leading principal components take part, 128 or twice the
    channels. The minimum of J has channels of like importance, which are not independent; where the code is to be coded
    channel by channel, they can be made `uncorrelated` (`in_code_basis`).
    """
    patches = F.pixel_unshuffle(images, patch)
    mean = patches.double().mean((0, 2, 3))
    basis = leading_components(patches, mean, min(patches.shape[1], max(DIMENSIONS, 2 * channels)))
    spectrum = power_spectrum(patches, mean, basis)
    encoder, decoder = minimize(spectrum, principal_components(spectrum, channels)[0], noise)
    if uncorrelated:
        encoder, decoder = in_code_basis(spectrum, encoder, decoder)
    return LappedTransform(
        torch.einsum("ckij,vk->cvij", encoder, basis), torch.einsum("vk,kcij->vcij", basis, decoder), mean
    )


def leading_components(patches: Tensor, mean: Tensor, count: int) -> Tensor:
    """An orthonormal basis, values x `count`, of what patches mostly differ in; the identity where that is all."""
    values = patches.shape[1]
    if count == values:
        return torch.eye(values, dtype=torch.float64)
    rows = patches.permute(0, 2, 3, 1).reshape(-1, values)
    rows = rows[:: -(-len(rows) // MOST_PATCHES)].double() - mean
    with torch.random.fork_rng(devices=[]):  # the algorithm draws its first guess from the global generator
        torch.manual_seed(0)
        components = torch.svd_lowrank(rows, q=min(count, *rows.shape), niter=4)[2]
        others = torch.randn(values, count - components.shape[1], dtype=rows.dtype)  # of few images
    return torch.linalg.qr(torch.cat([components, others], dim=1)).Q


@dataclass(frozen=True)
class Spectrum:
    """The power spectrum of the patches of images, at half of the frequencies: patches are real."""

    power: Tensor  # complex, frequencies x dimensions x dimensions
    weights: Tensor  # of each frequency, with the sum 1
    phases: Tensor  # complex, frequencies x 3 x 3: exp(iω) to the place in a kernel

    def response(self, kernel: Tensor) -> Tensor:
        """The frequency response of a kernel: frequencies x outputs x inputs."""
        return torch.einsum("oiyx,wyx->woi", kernel.to(self.power.dtype), self.phases)


def power_spectrum(patches: Tensor, mean: Tensor, basis: Tensor) -> Spectrum:
    """The spectrum of images, continued by the mean patch, in the coordinates of `basis`.

    J depends on the correlations of patches at most 4 positions apart, and these on 9 frequencies a side. Large images
    are cut into windows.
    """
    dimensions = basis.shape[1]
    window = WINDOW if dimensions <= DIMENSIONS else WINDOW // 2 if dimensions <= 2 * DIMENSIONS else WINDOW // 4
    height, width = (min(side, window) for side in patches.shape[-2:])
    sides = height + REACH, width + REACH  # what lies opposite stays out of reach
    half, count = sides[1] // 2 + 1, 0
    power = torch.zeros(sides[0] * half, dimensions**2, dtype=torch.complex128)
    for part in patches.split(max(2**20 // patches[0].numel(), 1)):
        here = torch.einsum("vk,bvyx->bkyx", basis, part.double() - mean[:, None, None])
        waves = torch.fft.rfft2(here.unfold(2, height, height).unfold(3, width, width), s=sides)
        waves = waves.permute(4, 5, 1, 0, 2, 3).reshape(len(power), dimensions, -1)
        power += (waves @ waves.mH).flatten(1)
        count += waves.shape[2]
    rows, columns = (phases(side, range(-REACH, REACH + 1)) for side in sides)
    both = torch.einsum("hy,wx,hw->yxhw", rows, columns[:half], halved(*sides)).flatten(2).flatten(0, 1)
    correlations = (both @ power).real / (count * height * width)
    known = 2 * REACH + 1
    rows = phases(known, range(-REACH, REACH + 1)).conj()
    both = torch.einsum("hy,wx->hwyx", rows, rows[: REACH + 1]).flatten(2).flatten(0, 1)
    rows = phases(known, range(-1, 2))
    return Spectrum(
        (both @ correlations.to(both.dtype)).view(-1, dimensions, dimensions),
        halved(known, known).flatten(),
        torch.einsum("hy,wx->hwyx", rows, rows[: REACH + 1]).reshape(-1, 3, 3),
    )


def phases(side: int, places: range) -> Tensor:
    """exp(iωp) at each frequency ω of so many positions, for some places p."""
    frequencies = 2 * math.pi * torch.arange(side, dtype=torch.float64) / side
    return torch.exp(1j * torch.outer(frequencies, torch.tensor(places, dtype=torch.float64)))


def halved(height: int, width: int) -> Tensor:
    """The weights, with the sum 1, of the frequencies of an `rfft2`: most stand for their negative, too."""
    weights = torch.full((height, width // 2 + 1), 2.0, dtype=torch.float64)
    weights[:, 0] = 1
    if width % 2 == 0:
        weights[:, -1] = 1
    return weights / (height * width)


def principal_components(spectrum: Spectrum, channels: int) -> tuple[Tensor, Tensor]:
    """Kernels of the principal components of single patches, with a code of variance 1: where the fit starts."""
    covariance = torch.einsum("w,wij->ij", spectrum.weights, spectrum.power.real)
    variances, axes = torch.linalg.eigh(covariance)
    axes, variances = axes[:, -channels:].flip(1), variances[-channels:].flip(0)
    scale = torch.where(variances > SILENT * covariance.trace(), variances, 1.0).sqrt()
    encoder, decoder = (torch.zeros(*shape, 3, 3).double() for shape in (axes.mT.shape, axes.shape))
    encoder[:, :, 1, 1], decoder[:, :, 1, 1] = axes.mT / scale[:, None], axes * scale
    return encoder, decoder


def error(spectrum: Spectrum, encoder: Tensor, decoder: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """J, the expected squared error per patch, and the variance of each code channel."""
    e, d = spectrum.response(encoder), spectrum.response(decoder)
    cross = e @ spectrum.power  # E S
    code = cross @ e.mH  # E S Eᴴ
    # tr[(I − D E) S (I − D E)ᴴ] = tr S − 2 Re tr D E S + tr DᴴD E S Eᴴ needs no matrix as large as S for D E.
    squared = torch.einsum("wii->w", spectrum.power).real - 2 * torch.einsum("wvc,wcv->w", d, cross).real
    squared = squared + torch.einsum("wcd,wdc->w", d.mH @ d, code).real
    variances = spectrum.weights @ torch.einsum("wcc->wc", code).real
    noisy = noise**2 * d.abs().square().sum(1) @ variances
    return spectrum.weights @ (squared + noisy), variances


def wiener_decoder(spectrum: Spectrum, encoder: Tensor, noise: float) -> Tensor:
    """The decoder that minimizes J for this encoder: with positions p of its kernel, Σ_p D_p A_pq = B_q for all q."""
    channels, places = len(encoder), spectrum.phases.flatten(1)
    e = spectrum.response(encoder)
    cross = e @ spectrum.power
    code = cross @ e.mH
    variances = spectrum.weights @ torch.einsum("wcc->wc", code).real
    weighted = (spectrum.weights[:, None] * places.conj()).mT
    lags = (spectrum.weights[:, None, None] * places[:, :, None] * places[:, None, :].conj()).flatten(1)
    a = (lags.mT @ code.flatten(1)).real.view(9, 9, channels, channels).transpose(1, 2).reshape(9 * channels, -1)
    # Where a channel is silent its row of the right side is 0, and the smallest ridge makes the decoder 0.
    ridge = noise**2 * variances + SILENT * variances.sum() + torch.finfo(a.dtype).tiny
    a = a + torch.diag(ridge.repeat(9))
    b = (weighted @ cross.mH.flatten(1)).real.view(9, -1, channels).transpose(1, 2).reshape(9 * channels, -1)
    solution: Tensor = torch.linalg.solve(a, b)
    return solution.view(3, 3, channels, -1).permute(3, 2, 0, 1)


def minimize(spectrum: Spectrum, encoder: Tensor, noise: float, iterations: int = ITERATIONS) -> tuple[Tensor, Tensor]:
    """The kernels that minimize J, from this encoder on; then each code channel is given variance 1."""
    total = spectrum.weights @ torch.einsum("wii->w", spectrum.power).real
    channels = len(encoder)
    operations = 30 * spectrum.power.numel() * channels + 700 * len(spectrum.power) * channels**2 + 500 * channels**3
    iterations = min(iterations, int(OPERATIONS / operations))
    if total > 0 and iterations:
        encoder = encoder.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [encoder],
            max_iter=iterations,
            history_size=20,
            tolerance_grad=1e-12,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            # At the best decoder the gradient of J by the decoder is 0, and that by the encoder is all there is.
            decoder = wiener_decoder(spectrum, encoder.detach(), noise)
            loss = error(spectrum, encoder, decoder, noise)[0] / total
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    encoder = encoder.detach()
    decoder = wiener_decoder(spectrum, encoder, noise)
    variances = error(spectrum, encoder, decoder, noise)[1]
    says = variances > SILENT * total
    scale = torch.where(says, variances, 1.0).sqrt()
    return encoder / scale.view(-1, 1, 1, 1), decoder * (scale * says).view(-1, 1, 1)


def in_code_basis(spectrum: Spectrum, encoder: Tensor, decoder: Tensor) -> tuple[Tensor, Tensor]:
    """The same transform in the basis of a transform code: channels are uncorrelated, and so are their errors.

    With C the covariance of the code and G that of the decoder's atoms, G^½ C G^½ = Q Λ Qᵀ: the new code Qᵀ G^½ z has
    covariance Λ and orthonormal atoms, so that an error in any channel is as large in the image (Goyal 2001). Then each
    channel is given variance 1 again, and atoms of length √λ, the most important first.
    """
    e = spectrum.response(encoder)
    covariance = torch.einsum("w,wcd->cd", spectrum.weights.to(e.dtype), e @ spectrum.power @ e.mH).real
    lengths, axes = torch.linalg.eigh(torch.einsum("vcyx,vdyx->cd", decoder, decoder))
    says = lengths > SILENT * lengths.sum()
    root = axes * torch.where(says, lengths, 0).sqrt() @ axes.mT
    inverse = axes * torch.where(says, lengths.rsqrt(), 0) @ axes.mT
    variances, basis = (each.flip(-1) for each in torch.linalg.eigh(root @ covariance @ root))
    says = variances > SILENT * variances.sum()
    std = torch.where(says, variances, 1).sqrt()
    return (
        torch.einsum("cd,dvyx->cvyx", (basis.mT @ root) / std[:, None], encoder),
        torch.einsum("vcyx,cd->vdyx", decoder, inverse @ basis * (std * says)),
    )
