"""What the autoencoder is trained to do: give the image back, whatever was done to it, through a code it is held to."""

import contextlib
from functools import partial

from torch import Tensor, nn

from ldm.autoencoder.adversarial import adaptive_weight, gradients_at, inputs_of, with_gradients
from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.critic import Critic
from ldm.autoencoder.distance import DISTANCES, emphasized
from ldm.autoencoder.equivariance import transformed
from ldm.autoencoder.fitness import hides_patches, refuse_misfits
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.patches import patch_statistics
from ldm.autoencoder.penalty import Encoded
from ldm.autoencoder.perceptual import Perceptual
from ldm.autoencoder.settings import Objective as ObjectiveSettings
from ldm.autoencoder.settings import Stage
from ldm.autoencoder.sparsity import code_figures
from ldm.autoencoder.stages import Schedule
from ldm.corruption import Corrupted
from ldm.data.batches import ImageBatch
from ldm.losses import Losses
from ldm.randomness import StepRandom
from ldm.shapes import Images, full_precision


class ReconstructionObjective(nn.Module):
    """distance + perceptual + kl * KL / (image values) + penalties + critic, between an image and what came back.

        image -> corruption -> encoder -> bottleneck -> corruption -> decoder -> distance to the clean image

    The KL is summed over the latent and divided by the number of image values, so that a weight means the same at any
    size: 1e-6 is the 1e-6 of latent diffusion (Rombach et al. 2022, appendix G), and weight 1 with a Gaussian
    likelihood is the evidence lower bound. Logged beside it: nats per latent element, and the latent's spread.

    In a stage about one layer, the image is what the layers below make of it. The latent may also be scaled and turned
    together with the image. The critic is held, not owned: it has an objective of its own. `steps` is the length of the
    run, over which the stages are laid; `classes` are those of the data.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        settings: ObjectiveSettings,
        critic: Critic | None = None,
        *,
        steps: int = 1,
        classes: int = 0,
    ):
        super().__init__()
        refuse_misfits(autoencoder, settings, classes)
        self.autoencoder, self.settings = autoencoder, settings
        dtype = autoencoder.output_logvar.dtype
        self.perceptual = None if settings.perceptual is None else Perceptual(settings.perceptual).to(dtype)
        self.held_critic = [critic]  # in a list, or it would become a part of this module
        autoencoder.output_logvar.requires_grad_(settings.distance == "gaussian")
        if hasattr(autoencoder.network, "mask_token"):
            autoencoder.network.mask_token.requires_grad_(hides_patches(settings))
        self.penalties = settings.penalties.chosen
        self.differentiates = any(penalty.differentiates for penalty in self.penalties.values())
        self.schedule = Schedule(autoencoder, settings.stages, steps)

    @property
    def judges(self) -> str:
        """What is known of the pretrained network in the loss: a hash of its weights; empty if there is none."""
        return "" if self.perceptual is None else self.perceptual.backbone.reference

    def forward(self, batch: ImageBatch, random: StepRandom) -> Losses:
        settings = self.settings
        stage, part = self.schedule.enter(random.step)
        given = part.below(batch.images)
        if part.has_code and random.step == self.schedule.span(random.step)[0]:
            self.autoencoder.bottleneck.begin(random.step)
        corrupted = self.corrupted(given, stage, random)
        inputs = corrupted.values.detach().requires_grad_() if self.differentiates else corrupted.values
        with twice_differentiable() if self.differentiates else contextlib.nullcontext():
            moments, posterior = part.encode(inputs, corrupted.hidden)
        has_kl = part.has_code and self.autoencoder.bottleneck.is_distribution
        code = latents = self.drawn(posterior, random) if has_kl else posterior.mode()
        target = batch.images if stage.target == "images" else given
        if settings.equivariance is not None:
            target, latents = transformed(target, latents, settings.equivariance, random)
        if settings.latent_corruption is not None:
            latents = settings.latent_corruption(latents, random, name="latent", patch=(1, 1)).values
        with inputs_of(self.autoencoder.network.last_layer) as last:
            reconstruction = full_precision(part.decode(latents, corrupted.hidden))

        if settings.target == "normalized-patches" and not stage.layer:
            mean, std = patch_statistics(target, self.autoencoder.network.factors)
            target = (target - mean) / std
        total, terms = self.judged(target, reconstruction, corrupted.touched, last, random.step)
        if has_kl:
            kl = posterior.kl().mean()
            terms["kl"] = settings.kl * kl / given[0].numel()
            terms["kl_per_latent_element"] = kl / code[0].numel()
            total = total + terms["kl"]
        encoded = Encoded(
            self.autoencoder,
            target,
            inputs,
            moments,
            posterior.mean,
            partial(part.decode, hidden=corrupted.hidden),
            reconstruction,
            batch.labels,
            random,
        )
        for name, penalty in self.penalties.items():
            if penalty.is_about_code and not part.has_code:
                continue
            if name == "classification" and (stage.layer or not stage.classification):
                continue
            terms[name] = penalty.weight * penalty(encoded)
            total = total + terms[name]
        terms |= code_figures(encoded, code, is_code=part.has_code)
        return Losses(total, terms, {"images": target, "reconstruction": reconstruction.detach()})

    def corrupted(self, given: Tensor, stage: Stage, random: StepRandom) -> Corrupted:
        """What the encoder gets to see in place of what it is given."""
        corruption = stage.corruption or (None if stage.layer else self.settings.corruption)
        if corruption is None:
            return Corrupted(given)
        patch = (1, 1) if stage.layer > 1 else self.autoencoder.network.factors
        return corruption(given, random, name="input", patch=patch)

    def drawn(self, posterior: Posterior, random: StepRandom) -> Tensor:
        """A sample of the posterior."""
        return posterior.at(random.normal("posterior", *posterior.mean.shape[1:], device=posterior.mean.device))

    def judged(
        self, images: Images, reconstruction: Images, touched: Tensor | None, last: list[Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The distances, and the critic's opinion where it has one in this step: their sum, and each by name."""
        terms: dict[str, Tensor] = {}
        critic = self.held_critic[0]
        logvar = self.autoencoder.output_logvar
        influence = 0.0 if critic is None else critic.influence(step)
        distances = partial(self.distances, images, touched, terms)
        if critic is None or influence == 0:
            return distances(reconstruction, logvar), terms
        distance, (at_images, at_logvar) = gradients_at(distances, [reconstruction, logvar])
        opinion, (opinion_at_images,) = gradients_at(critic.opinion, [reconstruction])
        weight = opinion.new_full((), critic.settings.weight * influence)
        if critic.settings.adaptive:
            weight = weight * adaptive_weight(
                at_images, opinion_at_images, last[0], self.autoencoder.network.last_layer
            )
        terms["critic_weight"] = weight
        terms["adversarial"] = opinion
        gradient = at_images + weight * opinion_at_images
        total = with_gradients(distance + weight * opinion, [reconstruction, logvar], [gradient, at_logvar])
        return total, terms

    def distances(
        self, images: Images, touched: Tensor | None, terms: dict[str, Tensor], reconstruction: Images, logvar: Tensor
    ) -> Tensor:
        """Between pixels, and between features; each is put down in `terms`."""
        settings = self.settings
        differences = DISTANCES[settings.distance](images, reconstruction, logvar)
        total = terms[settings.distance] = emphasized(differences, touched, settings.emphasis)
        if self.perceptual is not None and settings.perceptual is not None:
            perceptual = settings.perceptual.weight * self.perceptual(images, reconstruction).mean()
            terms["perceptual"] = perceptual
            total = total + perceptual
        return total


def twice_differentiable() -> contextlib.AbstractContextManager[None]:
    """Attention by plain matrix products: its fused kernels have no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: contextlib.AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return found
