"""The training loss of the autoencoder: reconstruction + KL + penalties (+ perceptual, + adversarial)."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ldm.autoencoder.bottleneck import Bottleneck
from ldm.autoencoder.config import DISTANCES, PERCEPTUAL, ReconstructionObjectiveConfig
from ldm.autoencoder.losses.adaptive_weight import (
    adaptive_weight,
    gradients_at,
    record_inputs,
    summed,
    with_known_gradients,
)
from ldm.autoencoder.losses.config import DiscriminatorConfig
from ldm.autoencoder.losses.distance import emphasized, normalized_patches
from ldm.autoencoder.losses.equivariance import transform_together
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.penalty import ForwardPass
from ldm.autoencoder.stages import Stage, StageSchedule
from ldm.batch import ImageBatch, Losses, Step
from ldm.corruption import Corrupted, Mask
from ldm.distributed import mean_over_processes
from ldm.randomness import StepRandom
from ldm.shapes import Images, full_precision

EPSILON = 1e-12


class AdversarialLoss(Protocol):
    """What the objective asks of a discriminator."""

    config: DiscriminatorConfig

    def ramp(self, step: int) -> float:
        """How much of the adversarial loss counts in this step, from 0 to 1."""
        ...

    def ramped_weight(self, step: int) -> float:
        """Its weight in this step."""
        ...

    def generator_terms(self, reconstruction: Images) -> dict[str, Tensor]:
        """The adversarial loss, whose gradient reaches the reconstruction alone."""
        ...


class ReconstructionObjective(nn.Module):
    """distance + perceptual + kl * KL / (image values) + rate * bits per pixel + penalties + adversarial loss.

        image -> corruption -> encoder -> bottleneck -> corruption -> decoder -> distance to the clean image

    The KL is summed over the latent and divided by the number of image values, so that a weight means the same at any
    size: 1e-6 is the 1e-6 of latent diffusion (Rombach et al. 2022, appendix G), and weight 1 with a Gaussian
    likelihood is the evidence lower bound. Logged beside it: nats per latent element, and the latent's spread. The rate
    is that of a quantized code: total / rate is R + λ D with λ = 1 / rate, D being the distance with all else in it.

    In a stage about one layer, the image is what the layers below make of it. The latent may also be scaled and rotated
    together with the image. The discriminator is held, not owned: it has an objective of its own. `steps` is the length
    of the run, over which the stages are laid. `check_compatibility` says whether the parts fit together.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        config: ReconstructionObjectiveConfig,
        discriminator: AdversarialLoss | None = None,
        *,
        steps: int = 1,
    ):
        super().__init__()
        self.autoencoder, self.config = autoencoder, config
        self.distance = DISTANCES[config.distance].load()
        dtype = autoencoder.output_logvar.dtype
        self.perceptual = None if config.perceptual is None else PERCEPTUAL.load()(config.perceptual).to(dtype)
        self.held_discriminator = [discriminator]  # in a list, or it would become a part of this module
        autoencoder.output_logvar.requires_grad_(DISTANCES[config.distance].learns_variance)
        autoencoder.network.train_mask_token(config.hides_patches)
        self.penalties = config.penalties.chosen
        self.needs_jacobian = any(penalty.needs_jacobian for penalty in self.penalties.values())
        self.schedule = StageSchedule(autoencoder, config.stages, steps)

    @property
    def perceptual_weights(self) -> str:
        """A hash of the pretrained network in the loss; empty if there is none."""
        return "" if self.perceptual is None else self.perceptual.backbone.reference

    @property
    def draws_on_host(self) -> str:
        """The setting for which the host must know the random numbers of a step; empty if there is none."""
        if self.config.equivariance is not None:
            return "objective.equivariance"
        corruptions = [
            ("objective.corruption", self.config.corruption),
            ("objective.latent_corruption", self.config.latent_corruption),
            *(("objective.stages", each.corruption) for each in self.config.stages),
        ]
        return next((name for name, each in corruptions if each is not None and each.draws_on_host), "")

    def forward(self, batch: ImageBatch, step: Step) -> Losses:
        stage = self.schedule.at(step.number)
        given = stage.input(batch.images)
        corrupted = self.corrupt(given, stage, step.rng)
        inputs = corrupted.values.detach().requires_grad_() if self.needs_jacobian else corrupted.values
        with math_attention() if self.needs_jacobian else nullcontext():
            moments, code = stage.encode(inputs, corrupted.hidden, step.rng)
        target = batch.images if stage.config.target == "images" else given
        target, latents = self.augment_latents(target, code.latents, step.rng)
        decode = partial(stage.decode, hidden=corrupted.hidden)
        adversary = self.adversary(step)
        is_weighted = adversary is not None and adversary.config.adaptive
        with record_inputs(self.autoencoder.network.output_layer if is_weighted else None) as layer_inputs:
            reconstruction = full_precision(decode(latents))
        if self.config.target == "normalized-patches" and stage.is_whole:
            target = normalized_patches(target, self.autoencoder.network.downsampling)

        total, terms = self.reconstruction_loss(target, reconstruction, corrupted, layer_inputs, step)
        for name, cost in code.costs().items():
            terms |= self.cost_terms(name, cost.mean(), given, code.latents)
            total = total + terms[name]
        forward = ForwardPass(
            autoencoder=self.autoencoder,
            images=target,
            inputs=inputs,
            moments=moments,
            code=code.posterior.mean,
            decode=decode,
            reconstruction=reconstruction,
            labels=batch.labels,
            step=step,
        )
        for name, penalty in self.penalties.items():
            if penalty.applies(stage):
                cost = penalty.weight * penalty(forward)
                terms[penalty.log_name or name] = cost
                total = total + cost
        terms |= code_statistics(forward, self.autoencoder.bottleneck, code.latents, is_code=stage.has_code)
        outputs = {"images": target, "reconstruction": reconstruction.detach()}
        if stage.has_code:  # and not the output of a layer below it
            outputs["code"] = code.posterior.mean.detach()
        return Losses(total, terms, outputs)

    def adversary(self, step: Step) -> AdversarialLoss | None:
        """The discriminator, from the step on in which the autoencoder hears of it."""
        discriminator = self.held_discriminator[0]
        return None if discriminator is None or discriminator.ramp(step.number) == 0 else discriminator

    def cost_terms(self, name: str, nats: Tensor, given: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """What the code costs, weighted, and beside it unweighted: bits per pixel of a rate, else nats per element."""
        if name == "rate":
            bits_per_pixel = nats / (math.log(2) * given[0, 0].numel())
            return {name: self.config.rate * bits_per_pixel, "bits_per_pixel": bits_per_pixel}
        weighted = self.config.kl * nats / given[0].numel()
        return {name: weighted, f"{name}_per_latent_element": nats / latents[0].numel()}

    def corrupt(self, given: Tensor, stage: Stage, rng: StepRandom) -> Corrupted:
        """What the encoder sees in place of the stage's input."""
        corruption = stage.config.corruption or (self.config.corruption if stage.is_whole else None)
        if corruption is None:
            return Corrupted(given)
        corrupted = corruption(given, rng, name="input", patch=stage.patch)
        if isinstance(corruption, Mask) and corrupted.hidden is not None:
            self.autoencoder.network.hides = corruption.hidden_count(corrupted.hidden[0].numel())
        return corrupted

    def augment_latents(self, target: Tensor, latents: Tensor, rng: StepRandom) -> tuple[Tensor, Tensor]:
        """Target and latents, transformed together, and the latents corrupted, as far as the config wants it."""
        if self.config.equivariance is not None:
            target, latents = transform_together(target, latents, self.config.equivariance, rng)
        if self.config.latent_corruption is not None:
            latents = self.config.latent_corruption(latents, rng, name="latent", patch=(1, 1)).values
        return target, latents

    def reconstruction_loss(
        self, images: Images, reconstruction: Images, corrupted: Corrupted, layer_inputs: list[Tensor], step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance and perceptual distance, with the adversarial loss once it has begun: their sum, and each term."""
        logvar = self.autoencoder.output_logvar
        distances = partial(self.distance_terms, images, corrupted.elements)
        discriminator = self.adversary(step)
        if discriminator is None:
            terms = distances(reconstruction, logvar)
            return summed(terms), terms
        terms, (at_images, at_logvar) = gradients_at(distances, [reconstruction, logvar])
        adversarial, (adversarial_at_images,) = gradients_at(discriminator.generator_terms, [reconstruction])
        ramped = step.value("adversarial", discriminator.ramped_weight)
        weight = ramped.to(logvar.dtype) if isinstance(ramped, Tensor) else logvar.new_full((), ramped)
        if discriminator.config.adaptive:
            network = self.autoencoder.network
            layer = network.output_layer
            assert isinstance(layer, nn.Conv2d)
            at_layer, adversarial_at_layer = map(network.output_gradient, (at_images, adversarial_at_images))
            weight = weight * adaptive_weight(at_layer, adversarial_at_layer, layer_inputs[0], layer)
        gradient = at_images + weight * adversarial_at_images
        total = summed(terms) + weight * summed(adversarial)
        total = with_known_gradients(total, [reconstruction, logvar], [gradient, at_logvar])
        return total, {**terms, "discriminator_weight": weight, **adversarial}

    def distance_terms(
        self, images: Images, elements: Tensor | None, reconstruction: Images, logvar: Tensor
    ) -> dict[str, Tensor]:
        """The distance between pixels and, where it is wanted, between features of a pretrained network, by name."""
        differences = self.distance(images, reconstruction, logvar)
        terms = {self.config.distance: emphasized(differences, elements, self.config.emphasis)}
        if self.perceptual is not None and self.config.perceptual is not None:
            terms["perceptual"] = self.config.perceptual.weight * self.perceptual(images, reconstruction).mean()
        return terms


def math_attention() -> AbstractContextManager[None]:
    """Attention by plain matrix products, whose second derivative exists; fused kernels have none."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


@torch.no_grad()
def code_statistics(
    forward: ForwardPass, bottleneck: Bottleneck, latents: Tensor, *, is_code: bool = True
) -> dict[str, Tensor]:
    """The standard deviation of the latents, and of their narrowest and widest channel; more of a sparse code.

    l0: units above 0 at a position, on average. dead_fraction: of the units, those that have not been above 0 for long.
    explained_variance: 1 - ‖image - reconstruction‖² / ‖image - mean image‖². shrinkage: E‖x'‖² / E[x' · x] around the
    mean image, 1 where reconstructions x' are as large as they should be, and less where they shrink (Rajamanoharan et
    al. 2024); shown up to 10.
    """
    code = forward.code.detach()
    stds = latents.detach().transpose(0, 1).flatten(1).std(1, correction=0)
    statistics = {
        "latent_std": latents.detach().std(correction=0),
        "latent_std_min": stds.min(),
        "latent_std_max": stds.max(),
    }
    if not bottleneck.tracks_usage or not is_code:
        return statistics
    dead = bottleneck.dead_units(forward.step.now) & ~bottleneck.active_units(code)
    mean = mean_over_processes(forward.images.mean(0))
    images, reconstruction = forward.images - mean, forward.reconstruction.detach() - mean
    products = [(images - reconstruction).square(), images.square(), reconstruction.square(), reconstruction * images]
    error, energy, size, overlap = mean_over_processes(torch.stack([each.mean() for each in products]))
    return statistics | {
        "l0": (code > 0).to(code.dtype).sum(1).mean(),
        "dead_fraction": dead.to(code.dtype).mean(),
        "explained_variance": 1 - error / energy.clamp_min(EPSILON),
        "shrinkage": (size / overlap.clamp_min(EPSILON)).clamp(max=10.0),
    }
