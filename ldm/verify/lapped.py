"""The lapped transform that a residual autoencoder starts at: a stationary point between PCA per patch and the optimum
of every frequency for itself, and what the untrained network computes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.autoencoder import lapped_transform
from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, ResidualNetworkConfig
from ldm.autoencoder.model import Autoencoder, create
from ldm.shapes import Images
from ldm.verify.check import Check, at_least, at_most
from ldm.verify.known_data import smooth_images
from ldm.verify.training import reproducible

PATCH, CHANNELS, NOISE = 4, 3, 0.1


def checks(*, small: bool = False) -> Iterator[Check]:
    """The fit, the network that starts at it, and the noise of its code."""
    images = smooth_images(100 if small else 400, 2, 32, 32)
    yield from of_fit(images, small=small)
    yield from of_network(images[:100, :, :16, :16])


def of_fit(images: Images, *, small: bool) -> list[Check]:
    """The gradient of the error at its minimum, and the error beside those of PCA and of unlimited kernels."""
    patches = F.pixel_unshuffle(images, PATCH)
    mean, dimensions = patches.mean((0, 2, 3)), patches.shape[1]
    spectrum = lapped_transform.power_spectrum(patches, mean, torch.eye(dimensions, dtype=torch.float64))
    start, components = lapped_transform.principal_components(spectrum, CHANNELS)
    iterations = 300 if small else 3000
    kernels = lapped_transform.minimize(spectrum, start, NOISE, iterations)
    # By relative changes of the kernels, which have no unit.
    encoder, decoder = (torch.ones_like(kernel).requires_grad_() for kernel in kernels)
    fitted = lapped_transform.error(spectrum, kernels[0] * encoder, kernels[1] * decoder, NOISE)[0]
    of_encoder, of_decoder = (
        each.abs().max() / fitted.detach() for each in torch.autograd.grad(fitted, (encoder, decoder))
    )
    of_pca = lapped_transform.error(spectrum, start, components, NOISE)[0]
    eigenvalues = torch.linalg.eigvalsh(spectrum.power)
    unlimited = spectrum.weights @ eigenvalues[:, :-CHANNELS].sum(1)
    return [
        at_most("largest relative gradient of its error, by the encoder", of_encoder, 1e-3 if small else 1e-5),
        at_most("largest relative gradient of its error, by the decoder", of_decoder, 1e-9),
        at_most("its squared error over that of PCA per patch", fitted / of_pca, 0.9),
        at_least("its squared error over that of the best transform of each frequency", fitted / unlimited, 1),
    ]


@reproducible("truth lapped network")
def of_network(images: Images) -> list[Check]:
    """Before it is trained the network is two convolutions; later the noise stays where it was set, beside the code."""
    autoencoder = create(
        AutoencoderConfig(
            network=ResidualNetworkConfig(downsampling=PATCH, width=8, blocks=1),
            bottleneck=GaussianConfig(channels=CHANNELS, noise=NOISE),
        ),
        image=(images.shape[1], images.shape[2], images.shape[3]),
    )
    autoencoder.initialize(lambda count: images[:count])
    transform = lapped_transform.fit(images, PATCH, CHANNELS, NOISE)
    mean = transform.mean.view(-1, 1, 1)
    with torch.no_grad():
        code = F.conv2d(F.pixel_unshuffle(images, PATCH) - mean, transform.encoder, padding=1)
        expected = F.pixel_shuffle(F.conv2d(code, transform.decoder, padding=1) + mean, PATCH)
        found = autoencoder.network.decode(code)
        spread = autoencoder.encode(images).mean.std((0, 2, 3), correction=0)
    return [
        at_most("untrained network less two convolutions, largest", (found - expected).abs().max(), 1e-9),
        at_most("standard deviation of its code, furthest from 1", (spread - 1).abs().max(), 1e-6),
        at_most("noise of a code that grows by .5 % a step, furthest from set", drift(autoencoder, images), 0.3),
    ]


@torch.no_grad()
def drift(autoencoder: Autoencoder, images: Tensor) -> float:
    """How far the noise gets from `NOISE` standard deviations of the code while the encoder scales its code up."""
    furthest = 0.0
    for step in range(120):
        for parameter in autoencoder.network.encoder.get_submodule("linear").parameters():
            parameter.mul_(1.005)
        posterior = autoencoder.encode(images[:40])
        spread = posterior.mean.std((0, 2, 3), correction=0)
        noise = posterior.variance.sqrt().mean((0, 2, 3)) / spread / NOISE
        furthest = max(furthest, float((noise - 1).abs().max()))
        autoencoder.bottleneck.update_usage(posterior.mean, step)
    return furthest
