"""What the autoencoder is trained to do: give the image back through a latent that stays near a unit Gaussian."""

from functools import partial

from torch import Tensor, nn

from ldm.autoencoder.adversarial import adaptive_weight, gradients_at, inputs_of, with_gradients
from ldm.autoencoder.critic import Critic
from ldm.autoencoder.distance import DISTANCES
from ldm.autoencoder.equivariance import transformed
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.perceptual import Perceptual
from ldm.autoencoder.settings import Objective as ObjectiveSettings
from ldm.data.batches import ImageBatch
from ldm.data.corruption import hide_patches, mix_in_noise
from ldm.losses import Losses
from ldm.randomness import StepRandom
from ldm.shapes import Images, full_precision


class ReconstructionObjective(nn.Module):
    """distance + perceptual + kl * KL / (image values) + critic, between an image and what its latent decodes to.

    The KL is summed over the latent and divided by the number of image values, so that a weight means the same at any
    size: 1e-6 is the 1e-6 of latent diffusion (Rombach et al. 2022, appendix G), and weight 1 with a Gaussian
    likelihood is the evidence lower bound. Logged beside it: nats per latent element, and the latent's spread.

    In training the encoder may see the image with patches hidden, and the decoder may get the latent with noise mixed
    in, or scaled and turned together with the image. The critic is held, not owned: it has an objective of its own.
    """

    def __init__(self, autoencoder: Autoencoder, settings: ObjectiveSettings, critic: Critic | None = None):
        super().__init__()
        self.autoencoder, self.settings = autoencoder, settings
        dtype = autoencoder.output_logvar.dtype
        self.perceptual = None if settings.perceptual is None else Perceptual(settings.perceptual).to(dtype)
        self.held_critic = [critic]  # in a list, or it would become a part of this module
        autoencoder.output_logvar.requires_grad_(settings.distance == "gaussian")

    @property
    def judges(self) -> str:
        """What is known of the pretrained network in the loss: a hash of its weights; empty if there is none."""
        return "" if self.perceptual is None else self.perceptual.backbone.reference

    def forward(self, batch: ImageBatch, random: StepRandom) -> Losses:
        images, settings, network = batch.images, self.settings, self.autoencoder.network
        posterior = self.autoencoder.encode(hide_patches(images, settings.hidden, network.factor, random))
        noise = random.normal("posterior", *posterior.mean.shape[1:], device=posterior.mean.device)
        latents = code = posterior.at(noise)
        if settings.equivariance is not None:
            images, latents = transformed(images, latents, settings.equivariance, random)
        with inputs_of(network.last_layer) as given:
            decoded = self.autoencoder.decode(mix_in_noise(latents, settings.latent_noise, random))
        reconstruction = full_precision(decoded)

        kl = posterior.kl().mean()
        weighted_kl = settings.kl * kl / batch.images[0].numel()
        total, terms = self.judged(images, reconstruction, given, random.step)
        spread = code.detach().transpose(0, 1).flatten(1).std(1, correction=0)
        terms |= {
            "kl": weighted_kl,
            "kl_per_latent_element": kl / code[0].numel(),
            "latent_std": code.detach().std(correction=0),
            "latent_std_min": spread.min(),
            "latent_std_max": spread.max(),
        }
        return Losses(total + weighted_kl, terms, {"images": images, "reconstruction": reconstruction.detach()})

    def judged(
        self, images: Images, reconstruction: Images, given: list[Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The distances, and the critic's opinion where it has one in this step: their sum, and each by name."""
        terms: dict[str, Tensor] = {}
        critic = self.held_critic[0]
        logvar = self.autoencoder.output_logvar
        influence = 0.0 if critic is None else critic.influence(step)
        distances = partial(self.distances, images, terms)
        if critic is None or influence == 0:
            return distances(reconstruction, logvar), terms
        distance, (at_images, at_logvar) = gradients_at(distances, [reconstruction, logvar])
        opinion, (opinion_at_images,) = gradients_at(critic.opinion, [reconstruction])
        weight = opinion.new_full((), critic.settings.weight * influence)
        if critic.settings.adaptive:
            weight = weight * adaptive_weight(
                at_images, opinion_at_images, given[0], self.autoencoder.network.last_layer
            )
        terms["critic_weight"] = weight
        terms["adversarial"] = opinion
        gradient = at_images + weight * opinion_at_images
        total = with_gradients(distance + weight * opinion, [reconstruction, logvar], [gradient, at_logvar])
        return total, terms

    def distances(self, images: Images, terms: dict[str, Tensor], reconstruction: Images, logvar: Tensor) -> Tensor:
        """Between pixels, and between features; each is put down in `terms`."""
        settings = self.settings
        total = terms[settings.distance] = DISTANCES[settings.distance](images, reconstruction, logvar)
        if self.perceptual is not None and settings.perceptual is not None:
            perceptual = settings.perceptual.weight * self.perceptual(images, reconstruction).mean()
            terms["perceptual"] = perceptual
            total = total + perceptual
        return total
