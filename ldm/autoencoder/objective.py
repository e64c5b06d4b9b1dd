"""What the autoencoder is trained to do: give the image back, whatever was done to it, through a code it is held to."""

import contextlib
from functools import partial

from torch import Tensor, nn

from ldm.autoencoder.bottleneck import Posterior
from ldm.autoencoder.code_statistics import code_statistics
from ldm.autoencoder.compatibility import check_compatibility, hides_patches
from ldm.autoencoder.config import ReconstructionObjectiveConfig, StageConfig
from ldm.autoencoder.losses.adaptive_weight import adaptive_weight, gradients_at, record_inputs, with_known_gradients
from ldm.autoencoder.losses.discriminator import Discriminator
from ldm.autoencoder.losses.distance import DISTANCES, emphasized
from ldm.autoencoder.losses.equivariance import transform_together
from ldm.autoencoder.losses.normalized_patches import patch_statistics
from ldm.autoencoder.losses.perceptual import Perceptual
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.penalty import ForwardPass
from ldm.autoencoder.stages import Schedule
from ldm.batch import ImageBatch, Losses
from ldm.corruption import Corrupted
from ldm.randomness import StepRandom
from ldm.shapes import Images, full_precision


class ReconstructionObjective(nn.Module):
    """distance + perceptual + kl * KL / (image values) + penalties + discriminator, between an image and what came back.

        image -> corruption -> encoder -> bottleneck -> corruption -> decoder -> distance to the clean image

    The KL is summed over the latent and divided by the number of image values, so that a weight means the same at any
    size: 1e-6 is the 1e-6 of latent diffusion (Rombach et al. 2022, appendix G), and weight 1 with a Gaussian
    likelihood is the evidence lower bound. Logged beside it: nats per latent element, and the latent's spread.

    In a stage about one layer, the image is what the layers below make of it. The latent may also be scaled and turned
    together with the image. The discriminator is held, not owned: it has an objective of its own. `steps` is the length of the
    run, over which the stages are laid; `classes` are those of the data.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        config: ReconstructionObjectiveConfig,
        discriminator: Discriminator | None = None,
        *,
        steps: int = 1,
        classes: int = 0,
    ):
        super().__init__()
        check_compatibility(autoencoder, config, classes)
        self.autoencoder, self.config = autoencoder, config
        dtype = autoencoder.output_logvar.dtype
        self.perceptual = None if config.perceptual is None else Perceptual(config.perceptual).to(dtype)
        self.held_discriminator = [discriminator]  # in a list, or it would become a part of this module
        autoencoder.output_logvar.requires_grad_(config.distance == "gaussian")
        if hasattr(autoencoder.network, "mask_token"):
            autoencoder.network.mask_token.requires_grad_(hides_patches(config))
        self.penalties = config.penalties.chosen
        self.needs_jacobian = any(penalty.needs_jacobian for penalty in self.penalties.values())
        self.schedule = Schedule(autoencoder, config.stages, steps)

    @property
    def perceptual_weights(self) -> str:
        """What is known of the pretrained network in the loss: a hash of its weights; empty if there is none."""
        return "" if self.perceptual is None else self.perceptual.backbone.reference

    def forward(self, batch: ImageBatch, rng: StepRandom) -> Losses:
        config = self.config
        stage, part = self.schedule.enter(rng.step)
        given = part.below(batch.images)
        if part.has_code and rng.step == self.schedule.window(rng.step)[0]:
            self.autoencoder.bottleneck.begin(rng.step)
        corrupted = self.corrupted(given, stage, rng)
        inputs = corrupted.values.detach().requires_grad_() if self.needs_jacobian else corrupted.values
        with twice_differentiable() if self.needs_jacobian else contextlib.nullcontext():
            moments, posterior = part.encode(inputs, corrupted.hidden)
        has_kl = part.has_code and self.autoencoder.bottleneck.is_distribution
        code = latents = self.drawn(posterior, rng) if has_kl else posterior.mode()
        target = batch.images if stage.target == "images" else given
        if config.equivariance is not None:
            target, latents = transform_together(target, latents, config.equivariance, rng)
        if config.latent_corruption is not None:
            latents = config.latent_corruption(latents, rng, name="latent", patch=(1, 1)).values
        with record_inputs(self.autoencoder.network.output_layer) as last:
            reconstruction = full_precision(part.decode(latents, corrupted.hidden))

        if config.target == "normalized-patches" and not stage.layer:
            mean, std = patch_statistics(target, self.autoencoder.network.downsampling)
            target = (target - mean) / std
        total, terms = self.judged(target, reconstruction, corrupted.corrupted_elements, last, rng.step)
        if has_kl:
            kl = posterior.kl().mean()
            terms["kl"] = config.kl * kl / given[0].numel()
            terms["kl_per_latent_element"] = kl / code[0].numel()
            total = total + terms["kl"]
        encoded = ForwardPass(
            self.autoencoder,
            target,
            inputs,
            moments,
            posterior.mean,
            partial(part.decode, hidden=corrupted.hidden),
            reconstruction,
            batch.labels,
            rng,
        )
        for name, penalty in self.penalties.items():
            if penalty.needs_latent and not part.has_code:
                continue
            if name == "classification" and (stage.layer or not stage.classification):
                continue
            terms[name] = penalty.weight * penalty(encoded)
            total = total + terms[name]
        terms |= code_statistics(encoded, code, is_code=part.has_code)
        return Losses(total, terms, {"images": target, "reconstruction": reconstruction.detach()})

    def corrupted(self, given: Tensor, stage: StageConfig, rng: StepRandom) -> Corrupted:
        """What the encoder gets to see in place of what it is given."""
        corruption = stage.corruption or (None if stage.layer else self.config.corruption)
        if corruption is None:
            return Corrupted(given)
        patch = (1, 1) if stage.layer > 1 else self.autoencoder.network.downsampling
        return corruption(given, rng, name="input", patch=patch)

    def drawn(self, posterior: Posterior, rng: StepRandom) -> Tensor:
        """A sample of the posterior."""
        return posterior.at(rng.normal("posterior", *posterior.mean.shape[1:], device=posterior.mean.device))

    def judged(
        self, images: Images, reconstruction: Images, corrupted_elements: Tensor | None, last: list[Tensor], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The distances, and the discriminator's opinion where it has one in this step: their sum, and each by name."""
        terms: dict[str, Tensor] = {}
        discriminator = self.held_discriminator[0]
        logvar = self.autoencoder.output_logvar
        ramp = 0.0 if discriminator is None else discriminator.ramp(step)
        distances = partial(self.distances, images, corrupted_elements, terms)
        if discriminator is None or ramp == 0:
            return distances(reconstruction, logvar), terms
        distance, (at_images, at_logvar) = gradients_at(distances, [reconstruction, logvar])
        generator_loss, (opinion_at_images,) = gradients_at(discriminator.generator_loss, [reconstruction])
        weight = generator_loss.new_full((), discriminator.config.weight * ramp)
        if discriminator.config.adaptive:
            weight = weight * adaptive_weight(
                at_images, opinion_at_images, last[0], self.autoencoder.network.output_layer
            )
        terms["discriminator_weight"] = weight
        terms["adversarial"] = generator_loss
        gradient = at_images + weight * opinion_at_images
        total = with_known_gradients(
            distance + weight * generator_loss, [reconstruction, logvar], [gradient, at_logvar]
        )
        return total, terms

    def distances(
        self,
        images: Images,
        corrupted_elements: Tensor | None,
        terms: dict[str, Tensor],
        reconstruction: Images,
        logvar: Tensor,
    ) -> Tensor:
        """Between pixels, and between features; each is put down in `terms`."""
        config = self.config
        differences = DISTANCES[config.distance](images, reconstruction, logvar)
        total = terms[config.distance] = emphasized(differences, corrupted_elements, config.emphasis)
        if self.perceptual is not None and config.perceptual is not None:
            perceptual = config.perceptual.weight * self.perceptual(images, reconstruction).mean()
            terms["perceptual"] = perceptual
            total = total + perceptual
        return total


def twice_differentiable() -> contextlib.AbstractContextManager[None]:
    """Attention by plain matrix products: its fused kernels have no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: contextlib.AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return found
