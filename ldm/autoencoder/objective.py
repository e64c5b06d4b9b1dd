"""What the autoencoder is trained to do: give the image back through a latent that stays near a unit Gaussian."""

from collections.abc import Callable

from torch import Tensor, nn

from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.settings import Objective as ObjectiveSettings
from ldm.data.batches import ImageBatch
from ldm.losses import Losses
from ldm.randomness import StepRandom
from ldm.shapes import Images, full_precision


def l1(images: Images, reconstruction: Images) -> Tensor:
    """Mean absolute difference per image value."""
    return (images - reconstruction).abs().mean()


def mse(images: Images, reconstruction: Images) -> Tensor:
    """Mean squared difference per image value."""
    return (images - reconstruction).square().mean()


DISTANCES: dict[str, Callable[[Images, Images], Tensor]] = {"l1": l1, "mse": mse}


class ReconstructionObjective(nn.Module):
    """distance(images, decode(z)) + kl * KL / (image values), z drawn from the posterior.

    The KL is summed over the latent and divided by the number of image values, so that a weight means the same at any
    size: 1e-6 is the 1e-6 of latent diffusion (Rombach et al. 2022, appendix G), and weight 1 with a Gaussian
    likelihood is the evidence lower bound. Logged beside it: nats per latent element, and the latent's spread.
    """

    def __init__(self, autoencoder: Autoencoder, settings: ObjectiveSettings):
        super().__init__()
        self.autoencoder = autoencoder
        self.distance_name, self.distance = settings.distance, DISTANCES[settings.distance]
        self.kl_weight = settings.kl

    def forward(self, batch: ImageBatch, random: StepRandom) -> Losses:
        images = batch.images
        posterior = self.autoencoder.encode(images)
        noise = random.normal("posterior", *posterior.mean.shape[1:], device=posterior.mean.device)
        latents = posterior.at(noise)
        reconstruction = full_precision(self.autoencoder.decode(latents))
        distance = self.distance(images, reconstruction)
        kl = posterior.kl().mean()
        weighted_kl = self.kl_weight * kl / images[0].numel()
        terms = {
            self.distance_name: distance,
            "kl": weighted_kl,
            "kl_per_latent_element": kl / latents[0].numel(),
            "latent_std": latents.detach().std(),
        }
        return Losses(distance + weighted_kl, terms, {"reconstruction": reconstruction.detach()})
