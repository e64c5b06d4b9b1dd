"""A masked autoencoder (He et al. 2022): its encoder sees the visible patches and nothing else, its loss looks at the
hidden ones, and what it learns without labels tells digits apart.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.autoencoder.config import AutoencoderConfig, IdentityConfig, ReconstructionObjectiveConfig, ViTNetworkConfig
from ldm.autoencoder.model import Autoencoder
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.corruption import Mask
from ldm.randomness import StepRandom, generator
from ldm.shapes import Images, Labels
from ldm.verify.check import Check, at_least, at_most, info, skipped
from ldm.verify.known_data import digits
from ldm.verify.training import objective_at, objective_of, reproducible, train

MASK = Mask(unit="patch", fraction=0.75)
NEIGHBORS = 5
TRAINING = 1297  # of the 1797 digits; the others ask for their neighbors among these


def checks(*, small: bool = False) -> Iterator[Check]:
    """What the encoder is given, what the loss looks at, what is learned."""
    yield from of_visibility()
    yield from of_loss()
    yield from of_features(small=small)


@reproducible("truth masked visibility")
def of_visibility() -> list[Check]:
    """4 of 16 patches, by counting what arrives at the first block, and by changing the others."""
    objective, images = masked(), some_images(32)
    network, (pixels, patches) = objective.autoencoder.network, hidden_of(images)
    lengths: list[int] = []
    hook = network.encoder.get_submodule("blocks.0").register_forward_hook(
        lambda block, given, got: lengths.append(given[0].shape[1])
    )
    with torch.no_grad():
        code = network.encode(images, patches)
        changed = torch.where(pixels, torch.randn_like(images), images)
        other = network.encode(changed, patches)
        seen = network.encode(changed) - network.encode(images)
    hook.remove()
    return [
        at_most("patches that the encoder is given, of 16", max(lengths[:2]), 4),
        at_most("hidden pixels changed: largest change of the code", (code - other).abs().max(), 0),
        at_least("the same pixels changed when nothing is hidden: largest change", seen.abs().max(), 1e-3),
        at_most("code of a hidden patch, largest value", (code * patches[:, None]).abs().max(), 0),
    ]


@reproducible("truth masked loss")
def of_loss() -> list[Check]:
    """With emphasis 1 the loss is the mean over hidden pixels, whatever the visible ones look like."""
    objective, images = masked(), some_images(32)
    losses = objective_at(objective, images)
    elements, _ = hidden_of(images)
    squared = (losses.outputs["images"] - losses.outputs["reconstruction"]).square()
    known = squared[elements.expand_as(squared)].mean()
    share = elements.double().mean()
    return [
        at_most("loss against the mean over hidden pixels, relative error", (losses.total / known - 1).abs(), 1e-12),
        at_most("share of hidden pixels less 0.75, absolute", (share - 0.75).abs(), 0),
    ]


@reproducible("truth masked features", torch.float32)
def of_features(*, small: bool) -> list[Check]:
    """Digits by their neighbors among frozen features, the mean over all patches, before and after training."""
    name = f"digits by their {NEIGHBORS} neighbors"
    try:
        images, labels = digits()
    except ImportError:
        return [skipped(name, "needs scikit-learn")]
    order = torch.randperm(len(images), generator=generator(0, "truth masked split"))
    images, labels = images[order], labels[order]
    objective = masked(steps=200 if small else 1500)
    rng = accuracy(objective.autoencoder, images, labels)
    train(objective, images[:TRAINING], lr=2e-3, batch=32 if small else 128)
    found = accuracy(objective.autoencoder, images, labels)
    # 200 steps of a quarter of the images are a beginning.
    gain = 0.05 if small else 0.2
    return [
        info(f"{name}: accuracy, random weights", rng),
        info(f"{name}: accuracy, trained", found),
        at_least(f"{name}: gain in accuracy", found - rng, gain),
    ]


def masked(*, steps: int = 1) -> ReconstructionObjective:
    """A small vision transformer on digits of 8 x 8 in patches of 2, 12 of 16 hidden."""
    network = ViTNetworkConfig(patch=2, width=48, depth=3, heads=4, decoder_width=32, decoder_depth=1, decoder_heads=4)
    return objective_of(
        AutoencoderConfig(network=network, bottleneck=IdentityConfig(channels=48)),
        ReconstructionObjectiveConfig(distance="mse", corruption=MASK, emphasis=1.0),
        images=some_images(1),
        steps=steps,
    )


def some_images(count: int) -> Images:
    """Random pixels."""
    return torch.rand(count, 1, 8, 8, generator=generator(0, "truth masked images")) * 2 - 1


def hidden_of(images: Images) -> tuple[Tensor, Tensor]:
    """The pixels and the patches that the objective hides of these images in step 0."""
    corrupted = MASK(images, StepRandom(0, 0, len(images)), name="input", patch=(2, 2))
    return torch.as_tensor(corrupted.elements), torch.as_tensor(corrupted.hidden)


@torch.no_grad()
def accuracy(autoencoder: Autoencoder, images: Images, labels: Labels) -> float:
    """How often most of the nearest training digits are of the right class."""
    features: Tensor = autoencoder.encode(images).mode().mean((2, 3))
    near = torch.cdist(features[TRAINING:], features[:TRAINING]).topk(NEIGHBORS, largest=False).indices
    return float((labels[:TRAINING][near].mode(1).values == labels[TRAINING:]).double().mean())
