"""The training of autoencoder and discriminator against each other: what reaches which of them, and when."""

import pytest
import torch
from torch import Tensor, nn

from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, KLNetworkConfig, ReconstructionObjectiveConfig
from ldm.autoencoder.losses.adaptive_weight import (
    adaptive_weight,
    gradients_at,
    record_inputs,
    summed,
    with_known_gradients,
)
from ldm.autoencoder.losses.config import DiscriminatorConfig, EquivarianceConfig
from ldm.autoencoder.losses.discriminator import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    Discriminator,
    DiscriminatorObjective,
    SaturationMonitor,
    gradient_penalty,
)
from ldm.autoencoder.losses.distance import gaussian
from ldm.autoencoder.model import create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import ImageBatch, Losses
from ldm.randomness import StepRandom
from tests.support.losses import losses_of

STEPS = 100
LATE = STEPS - 1


def discriminator_of(**config: object) -> Discriminator:
    torch.manual_seed(1)
    small = {"width": 8, "layers": 2, "start": 0.4, "warmup": 0.1} | config
    return Discriminator(DiscriminatorConfig(**small), image_channels=3, steps=STEPS).double()


def images(count: int = 4, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def game(discriminator: Discriminator | None, **objective: object) -> tuple[ReconstructionObjective, ImageBatch]:
    torch.manual_seed(0)
    network = KLNetworkConfig(widths=(8, 8), norm_groups=4, mid_attention=False)
    config = AutoencoderConfig(network=network, bottleneck=GaussianConfig(channels=2))
    autoencoder = create_trainable(config, image=(3, 16, 16)).double()
    batch = ImageBatch(images(), torch.zeros(4, dtype=torch.int64))
    return ReconstructionObjective(
        autoencoder, ReconstructionObjectiveConfig(kl=0.01, **objective), discriminator
    ), batch


def discriminator_losses(discriminator: Discriminator, losses: Losses) -> Losses:
    """What the discriminator is trained with after the autoencoder's step."""
    found: Losses = DiscriminatorObjective(discriminator)(losses.outputs["images"], losses.outputs["reconstruction"])
    return found


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


# ---- what each is trained by


def test_the_autoencoders_step_leaves_no_gradient_on_the_discriminator():
    discriminator = discriminator_of()
    objective, batch = game(discriminator)
    losses = losses_of(objective, batch, LATE)
    losses.total.backward()
    assert "adversarial" in losses.terms and not gradients(discriminator)
    assert not any(name.startswith("discriminator") for name, _ in objective.named_parameters()), "held, not owned"


@pytest.mark.parametrize("more", [{}, {"r1": 1.0}, {"lecam": 1.0}])
@pytest.mark.parametrize("loss", DISCRIMINATOR_LOSSES)
def test_the_discriminators_step_leaves_no_gradient_on_the_autoencoder_and_reaches_all_of_the_discriminator(loss, more):
    discriminator = discriminator_of(loss=loss, **more)
    objective, batch = game(discriminator)
    losses = losses_of(objective, batch, LATE)
    discriminator_losses(discriminator, losses).total.backward()
    assert not gradients(objective)
    assert set(gradients(discriminator)) == {name for name, _ in discriminator.named_parameters()}
    # Where all logits are inside the hinge, the two sides' gradients at the last bias cancel.
    assert all(bool(gradient.any()) for name, gradient in gradients(discriminator).items() if not name.endswith("bias"))


@pytest.mark.parametrize("loss", GENERATOR_LOSSES)
def test_the_adversarial_loss_alone_trains_the_decoder_and_the_encoder(loss):
    """Its gradient is what is left when that of everything else is taken away."""
    discriminator = discriminator_of(loss=loss)
    with_discriminator, batch = game(discriminator)
    without, _ = game(None)
    for objective in (with_discriminator, without):
        losses_of(objective, batch, LATE).total.backward()
    rest = gradients(without)
    for name, gradient in gradients(with_discriminator).items():
        assert bool((gradient - rest[name]).any()), name


def test_the_discriminator_is_shown_what_was_decoded_also_where_image_and_latent_were_transformed():
    plain, batch = game(discriminator_of())
    assert losses_of(plain, batch, LATE).outputs["images"].equal(batch.images)
    moving, batch = game(discriminator_of(), equivariance=EquivarianceConfig(probability=1.0))
    moved = losses_of(moving, batch, 3).outputs
    assert moved["images"].shape == moved["reconstruction"].shape != batch.images.shape
    assert not moved["reconstruction"].requires_grad


# ---- the weight of the adversarial loss


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_gradient_is_that_of_the_whole_loss_with_the_weight_held(adaptive):
    """Taking gradients at the reconstruction first saves work and changes nothing."""
    discriminator = discriminator_of(adaptive=adaptive, weight=0.7)
    objective, batch = game(discriminator, distance="gaussian")
    losses = losses_of(objective, batch, LATE)
    losses.total.backward()
    found, weight = gradients(objective), losses.terms["discriminator_weight"]
    objective.zero_grad()

    autoencoder = objective.autoencoder
    posterior = autoencoder.encode(batch.images)
    noise = StepRandom(0, LATE, 4).normal("posterior", *posterior.mean.shape[1:]).double()
    reconstruction = autoencoder.decode(posterior.reparameterize(noise))
    distance = gaussian(batch.images, reconstruction, autoencoder.output_logvar).mean()
    kl = 0.01 * posterior.kl().mean() / batch.images[0].numel()
    generator_loss = -discriminator(reconstruction).mean()
    last = autoencoder.network.output_layer.weight
    if adaptive:
        of_distance, of_generator = (
            torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (distance, generator_loss)
        )
        torch.testing.assert_close(weight, 0.7 * of_distance / of_generator, rtol=1e-6, atol=0)
    else:
        assert weight == 0.7
    total = distance + weight * generator_loss + kl
    torch.testing.assert_close(losses.total, total, rtol=1e-12, atol=0)
    total.backward()
    assert gradients(objective).keys() == found.keys()
    for name, gradient in gradients(objective).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert "autoencoder.output_logvar" in found


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_adaptive_weight_makes_both_gradients_at_the_last_layer_equally_long(layout):
    layer, given = nn.Conv2d(5, 3, 3, padding=1).double(), torch.randn(4, 5, 8, 8, dtype=torch.float64)
    distances, generator_loss = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    given, distances, generator_loss = (
        tensor.to(memory_format=layout) for tensor in (given, distances, generator_loss)
    )
    weight = adaptive_weight(distances, generator_loss, given, layer)
    lengths = []
    for gradient in (distances, weight * generator_loss):
        layer.zero_grad()
        layer(given).backward(gradient)
        lengths.append(layer.weight.grad.norm())
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-6, atol=0)


def test_an_adversarial_loss_without_a_gradient_does_not_divide_by_zero():
    layer, given = nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)
    nothing = torch.zeros(1, 1, 2, 2)
    assert adaptive_weight(nothing, nothing, given, layer) == 0
    assert adaptive_weight(torch.ones(1, 1, 2, 2), nothing, given, layer) <= 1e4


def test_known_gradients_are_handed_on_and_the_value_is_untouched():
    x = torch.randn(3, 2, requires_grad=True)
    terms, gradient = gradients_at(lambda leaf: {"cube": leaf.pow(3).sum(), "line": leaf.sum()}, [2 * x])
    assert not any(term.requires_grad for term in terms.values())
    total = with_known_gradients(summed(terms), [2 * x], gradient)
    assert terms["cube"] == (2 * x).pow(3).sum() and total == terms["cube"] + (2 * x).sum()
    torch.testing.assert_close(torch.autograd.grad(total, x)[0], 24 * x.square() + 2)


def test_a_gradient_that_overflowed_is_one_step_to_skip_and_not_a_loss_that_diverged():
    x = torch.randn(3, 2, requires_grad=True)
    total = with_known_gradients(torch.tensor(1.5), [x], [torch.full((3, 2), torch.inf)])
    assert total == 1.5 and not bool(torch.autograd.grad(total, x)[0].isfinite().any())
    layer, given = nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)
    both = torch.full((1, 1, 2, 2), torch.inf)
    assert bool(adaptive_weight(both, both, given, layer).isfinite())


def test_the_input_of_a_layer_is_seen_only_while_asked_for():
    layer = nn.Conv2d(1, 1, 1)
    with record_inputs(layer) as seen:
        layer(torch.ones(1, 1, 2, 2))
    layer(torch.zeros(1, 1, 2, 2))
    assert len(seen) == 1 and bool(seen[0].all())


# ---- when


def test_the_discriminator_starts_at_a_fraction_of_the_run_and_is_felt_after_that():
    discriminator = discriminator_of(start=0.4, warmup=0.1)
    assert [discriminator.learns(step) for step in (0, 39, 40, 99)] == [False, False, True, True]
    assert [discriminator.ramp(step) for step in (0, 40, 45, 50, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    objective, batch = game(discriminator)
    assert "adversarial" not in losses_of(objective, batch, 40).terms
    assert "adversarial" in losses_of(objective, batch, 41).terms


def test_a_discriminator_that_has_begun_does_not_start_again_when_the_run_grows_longer():
    before = discriminator_of()
    before.begin_step(39)
    longer = Discriminator(before.config, image_channels=3, steps=10 * STEPS)
    longer.load_state_dict(before.state_dict())
    assert longer.window(0) == (400, 1000), "not begun: the fraction is of the longer run"
    before.begin_step(40)
    longer.load_state_dict(before.state_dict())
    assert longer.window(0) == (40, 1000) and longer.ramp(50) == 1.0


def test_before_its_start_the_discriminator_changes_nothing():
    with_discriminator, batch = game(discriminator_of())
    without, _ = game(None)
    assert losses_of(with_discriminator, batch, 10).total.equal(losses_of(without, batch, 10).total)


# ---- what the discriminator is


@pytest.mark.parametrize("sides", [(1, 1), (5, 3), (16, 16), (16, 24)])
def test_any_size_has_logits(sides):
    assert discriminator_of()(torch.zeros(2, 3, *sides, dtype=torch.float64)).shape[:2] == (2, 1)


def test_a_logit_depends_on_its_own_image_alone():
    """With batch norm it would not, and the loss would depend on how the batch is cut."""
    discriminator = discriminator_of()
    whole = discriminator(images())
    parts = torch.cat([discriminator(image[None]) for image in images()])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)
    assert not [module for module in discriminator.modules() if "BatchNorm" in type(module).__name__]


@pytest.mark.parametrize("loss", DISCRIMINATOR_LOSSES)
def test_a_discriminator_that_tells_them_apart_has_the_smaller_loss(loss):
    right, wrong = torch.full((2, 1), 3.0), torch.full((2, 1), -3.0)
    undecided = DISCRIMINATOR_LOSSES[loss](torch.zeros(2, 1), torch.zeros(2, 1))
    assert DISCRIMINATOR_LOSSES[loss](right, wrong) < undecided < DISCRIMINATOR_LOSSES[loss](wrong, right)
    assert GENERATOR_LOSSES[loss](right) < GENERATOR_LOSSES[loss](wrong)


def test_the_gradient_penalty_of_a_linear_discriminator_is_the_squared_norm_of_its_weights():
    weights = torch.randn(3, 4, 4, dtype=torch.float64)
    given = images(5, 4).requires_grad_()
    logits = (given * weights).sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient_penalty(given, logits), weights.square().sum())


def test_lecam_holds_each_side_to_the_running_mean_of_the_other():
    """Corrected for its start, a running mean of the same logits is their mean from the first batch on."""
    discriminator = discriminator_of(lecam=0.5)
    objective, given = DiscriminatorObjective(discriminator), (images(), images().flip(0).square())
    real, fake = (discriminator(each).detach() for each in given)
    expected = 0.5 * ((real - fake.mean()).square().mean() + (fake - real.mean()).square().mean())
    for count in range(3):
        found = objective(*given)
        torch.testing.assert_close(found.terms["discriminator_lecam"], expected, rtol=1e-5, atol=0)
        assert discriminator.batches == count, "the means are kept after the update, not by the loss"
        discriminator.update_logit_means(found.outputs)
    restored = discriminator_of(lecam=0.5)
    restored.load_state_dict(discriminator.state_dict())
    assert restored.batches == 3, "what is remembered is part of a checkpoint"
    other = discriminator(0.1 * given[0]).detach()
    found = objective(0.1 * given[0], given[1]).terms["discriminator_lecam"]
    mean = (0.01 * other.mean() + (0.99 - 0.99**4) * real.mean()) / (1 - 0.99**4)
    expected = 0.5 * ((other - fake.mean()).square().mean() + (fake - mean).square().mean())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_without_lecam_no_means_are_kept():
    discriminator = discriminator_of()
    found = DiscriminatorObjective(discriminator)(images(), images())
    discriminator.update_logit_means(found.outputs)
    assert not found.outputs and discriminator.batches == 0 and not discriminator.logit_means.any()


def test_saturation_is_noticed_and_a_fair_accuracy_is_not():
    monitor = SaturationMonitor()
    assert not any(monitor({"step": step, "discriminator_accuracy": 0.8}) for step in range(100))
    assert not any(monitor({"step": step}) for step in range(100))
    said = [monitor({"step": step, "discriminator_accuracy": 1.0}) for step in range(10)]
    assert said[:9] == [None] * 9 and said[9] and "saturated at step 9" in said[9] and "discriminator.r1" in said[9]
