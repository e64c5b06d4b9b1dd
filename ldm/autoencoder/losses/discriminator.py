"""The discriminator: a PatchGAN that joins the training late, its loss, and the adversarial loss it gives."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ldm.autoencoder.losses.config import DiscriminatorConfig
from ldm.autoencoder.model import padded
from ldm.batch import Losses
from ldm.distributed import mean_over_processes
from ldm.nn.convolution import group_norm
from ldm.shapes import Images, full_precision

EMA_DECAY = 0.99  # of the averages of the logits that LeCAM pulls towards


class Discriminator(nn.Module):
    """Images to one logit per patch, positive for what it takes to be real (PatchGAN, Isola et al. 2017).

    Group norm instead of batch norm, so that a logit depends on its own image alone. Images of any size: one whose
    sides 2 ** layers does not divide is first padded.
    """

    logit_means: Tensor
    batches: Tensor

    def __init__(self, config: DiscriminatorConfig, *, image_channels: int, steps: int):
        super().__init__()
        self.config, self.optim, self.factor = config, config.optim, 2**config.layers
        self.steps = steps
        self.first_step = round(config.start * steps)  # in updates of the autoencoder
        self.warmup = max(round(config.warmup * steps), 1)
        self.has_begun = False
        width = config.width
        layers: list[nn.Module] = [nn.Conv2d(image_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, config.layers):
            wider = config.width * min(2**level, 8)
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1), group_norm(wider), nn.LeakyReLU(0.2)]
            width = wider
        wider = config.width * min(2**config.layers, 8)
        layers += [nn.Conv2d(width, wider, 3, padding=1), group_norm(wider), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(wider, 1, 3, padding=1))
        self.register_buffer("logit_means", torch.zeros(2))  # of real images and of reconstructions
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, images: Images) -> Tensor:
        """Logits, batch x 1 x h x w."""
        return full_precision(self.layers(padded(images, (self.factor, self.factor))))

    def learns(self, step: int) -> bool:
        """Whether the discriminator is trained in this step of the run, counted from 0."""
        return step >= self.first_step

    def window(self, step: int) -> tuple[int, int]:
        """The first step in which it learns, and the end of the run: the learning rate's schedule."""
        return self.first_step, self.steps

    def phase(self, step: int) -> Hashable:
        """Whether it learns, and whether the autoencoder hears of it."""
        return self.learns(step), self.ramp(step) > 0

    def begin_step(self, step: int) -> None:
        """From its first step on, a longer run must not change any more when it began."""
        self.has_begun |= self.learns(step)

    def ramp(self, step: int) -> float:
        """How much of the adversarial loss counts in this step: 0 at first, rising to 1 over the warm-up."""
        return min(max((step - self.first_step) / self.warmup, 0.0), 1.0)

    def ramped_weight(self, step: int) -> float:
        """The weight of the adversarial loss in this step."""
        return self.config.weight * self.ramp(step)

    def get_extra_state(self) -> Tensor:
        """When it began, for checkpoints."""
        return torch.tensor([self.first_step, self.warmup, self.has_begun])

    def set_extra_state(self, state: Tensor) -> None:
        """Take back what `get_extra_state` gave, if the discriminator had begun by then."""
        first_step, warmup, has_begun = state.tolist()
        if has_begun:
            self.first_step, self.warmup, self.has_begun = first_step, warmup, True

    def generator_terms(self, reconstruction: Images) -> dict[str, Tensor]:
        """The adversarial loss of the autoencoder, which is the generator here.

        Its gradient reaches the reconstruction, never the discriminator's weights.
        """
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return {"adversarial": GENERATOR_LOSSES[self.config.loss](functional_call(self, frozen, (reconstruction,)))}

    @torch.no_grad()
    def update_logit_means(self, outputs: dict[str, Tensor]) -> None:
        """Keep the running means of the logits that its objective computed with LeCAM, after the update."""
        if "logit_means" in outputs:
            self.logit_means.copy_(outputs["logit_means"])
            self.batches.add_(1)


def create_discriminator(
    config: DiscriminatorConfig | None, *, image_channels: int, steps: int
) -> Discriminator | None:
    """An untrained discriminator for a run of `steps`, or None without a config."""
    return None if config is None else Discriminator(config, image_channels=image_channels, steps=steps)


class DiscriminatorObjective(nn.Module):
    """The discriminator's loss: to tell images from their reconstructions.

    Beside it, where they are asked for, the gradient penalty R1 (Mescheder et al. 2018, per patch) and the
    regularization LeCAM (Tseng et al. 2021, equation 5), which holds the logits of each side to the running mean of
    the other's.
    """

    def __init__(self, discriminator: Discriminator):
        super().__init__()
        self.discriminator, self.config = discriminator, discriminator.config

    def forward(self, images: Images, reconstruction: Images) -> Losses:
        """`reconstruction` carries no gradient: nothing of this step may reach the autoencoder."""
        images = images.detach().requires_grad_(self.config.r1 > 0)
        real, fake = self.discriminator(images), self.discriminator(reconstruction.detach())
        loss = DISCRIMINATOR_LOSSES[self.config.loss](real, fake)
        terms = {
            "discriminator": loss,
            "discriminator_logits_real": real.mean(),
            "discriminator_logits_reconstruction": fake.mean(),
            "discriminator_accuracy": ((real > 0).to(real).mean() + (fake < 0).to(fake).mean()) / 2,
        }
        outputs: dict[str, Tensor] = {}
        if self.config.lecam:
            outputs["logit_means"] = self.updated_logit_means(real, fake)
            running = outputs["logit_means"] / (1 - EMA_DECAY ** (self.discriminator.batches + 1))
            lecam = (real - running[1]).square().mean() + (fake - running[0]).square().mean()
            terms["discriminator_lecam"] = self.config.lecam * lecam
            loss = loss + terms["discriminator_lecam"]
        if self.config.r1:
            terms["discriminator_r1"] = 0.5 * self.config.r1 * gradient_penalty(images, real)
            loss = loss + terms["discriminator_r1"]
        return Losses(loss, terms, outputs)

    def updated_logit_means(self, real: Tensor, fake: Tensor) -> Tensor:
        """The running means of the logits, of real images and of reconstructions, with these taken in."""
        means = mean_over_processes(torch.stack([real.mean(), fake.mean()]))
        return self.discriminator.logit_means.lerp(means, 1 - EMA_DECAY)


def gradient_penalty(images: Images, logits: Tensor) -> Tensor:
    """Squared norm of the gradient of an image's summed logits, per patch; the mean over the images."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean() / logits[0].numel()


class SaturationMonitor:
    """Reads the log, and warns once the discriminator has won: its gradient then teaches nothing."""

    patience = 10  # lines of the log in a row

    def __init__(self) -> None:
        self.lines = 0

    def __call__(self, line: dict[str, Any]) -> str | None:
        accuracy = line.get("discriminator_accuracy")
        self.lines = self.lines + 1 if accuracy is not None and accuracy > 0.995 else 0
        if self.lines < self.patience:
            return None
        return (
            f"discriminator saturated at step {line['step']} (accuracy > 99.5 % for {self.patience} log lines):"
            " lower objective.discriminator.optim.lr or raise objective.discriminator.r1"
        )


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Half of E[max(0, 1 - D(x))] + E[max(0, 1 + D(x'))] (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """Half of the logistic loss of both sides (Goodfellow et al. 2014)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


DISCRIMINATOR_LOSSES = {"hinge": hinge, "non-saturating": cross_entropy}
GENERATOR_LOSSES = {"hinge": lambda fake: -fake.mean(), "non-saturating": lambda fake: F.softplus(-fake).mean()}
