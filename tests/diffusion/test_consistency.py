"""The consistency objective: what it compares, whom its gradient reaches, and that its parts make its whole."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ldm.batch import NULL, ClassAttribute, Condition, ConditionSchema, LatentBatch
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.diffusion.config import PARAMETRIZATIONS, SAMPLERS, UNetConfig
from ldm.diffusion.consistency import ConsistencyObjective, ConsistencyStages
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.losses.config import ConsistencyObjectiveConfig
from ldm.diffusion.networks.unet import UNet
from ldm.nn.repeatable_dropout import DropoutMasks
from ldm.randomness import generator

SCHEMA = ConditionSchema((ClassAttribute("label", ("a", "b", "c")),))
KINDS = [name for name, facts in PARAMETRIZATIONS.items() if facts.keeps_clean_input] + ["gaussian"]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def denoiser_of(kind: str = "edm", dropout: float = 0.0) -> Denoiser:
    """With random weights and no zero left."""
    network = UNet(UNetConfig(widths=(8,), blocks=1, attention=(), dropout=dropout), channels=2)
    gaussian = None
    if kind == "gaussian":
        gaussian = LatentGaussian((2, 4, 4), 5)
        gaussian.basis.copy_(torch.linalg.qr(torch.randn(32, 5, generator=generator(0, "basis"))).Q)
        gaussian.eigenvalues.copy_(torch.linspace(3, 0.1, 5))
    parametrization = "edm" if gaussian else kind
    embedding = ConditionEmbedding(SCHEMA, network.vector_channels)
    denoiser = Denoiser(
        network, embedding, parametrization=parametrization, gaussian=gaussian, consistency=gaussian is not None
    )
    rng = generator(0, "weights")
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.2, generator=rng)
    return denoiser


def batch_of(count: int = 8, lowest: float = 0.1) -> LatentBatch:
    latents, noise = (torch.randn(count, 2, 4, 4, generator=generator(0, purpose)) for purpose in ("x", "n"))
    labels = Condition({"label": torch.arange(count) % 4 + NULL})
    return LatentBatch(latents, noise, torch.linspace(lowest, 10.0, count), labels)


def in_stage(objective: ConsistencyObjective, step: int) -> ConsistencyObjective:
    ConsistencyStages(objective, steps=objective.config.stages).begin_step(step)
    return objective


def root_mean_square(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).mean(1).sqrt()


@pytest.mark.parametrize("kind", KINDS)
def test_a_consistency_function_leaves_a_latent_without_noise_as_it_is(kind: str) -> None:
    latents = batch_of().latents
    assert torch.allclose(denoiser_of(kind).eval()(latents, 1e-7), latents, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_first_stage_it_is_the_error_of_a_denoiser_though_zero_has_no_logarithm(kind: str) -> None:
    """Where σ is small: r is 0 there, and its answer is the clean latent."""
    batch, denoiser = batch_of()._replace(sigma=torch.linspace(0.1, 3.0, 8)), denoiser_of(kind)
    objective = in_stage(ConsistencyObjective(denoiser, ConsistencyObjectiveConfig()), 0)
    loss = objective(batch).total
    noisy = batch.latents + batch.sigma.view(-1, 1, 1, 1) * batch.noise
    errors = root_mean_square(denoiser(noisy, batch.sigma, batch.condition) - batch.latents)
    assert torch.allclose(loss, (errors / batch.sigma).mean(), rtol=1e-9)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.network.parameters())


@pytest.mark.parametrize("weighting", ["gap", "edm"])
def test_in_later_stages_it_compares_with_a_lower_level_through_which_no_gradient_flows(weighting: str) -> None:
    batch, denoiser = batch_of(), denoiser_of("gaussian")
    config = ConsistencyObjectiveConfig(weighting=weighting)  # type: ignore[arg-type]
    loss = in_stage(ConsistencyObjective(denoiser, config), 6)(batch).total
    sigma, (x, n) = batch.sigma.view(-1, 1, 1, 1), batch[:2]
    lower = sigma * (1 - 2.0**-7 * (1 + 8 / (1 + (sigma / 2).exp())))
    with torch.no_grad():
        target = denoiser(x + lower * n, lower.flatten(), batch.condition)
    gap = sigma - lower if weighting == "gap" else sigma**2 / (1 + sigma**2)
    errors = root_mean_square(denoiser(x + sigma * n, batch.sigma, batch.condition) - target)
    expected = (errors / gap.flatten()).mean()
    assert torch.allclose(loss, expected, rtol=1e-9)
    found, wanted = (flat_gradient(value, denoiser) for value in (loss, expected))
    assert (found - wanted).norm() < 1e-6 * wanted.norm()


def flat_gradient(loss: Tensor, denoiser: Denoiser) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(denoiser.parameters()))])


def test_two_answers_with_different_dropout_masks_would_differ_however_near_the_levels_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ConsistencyObjectiveConfig(stages=1, shrink=1e6, weighting="edm")
    objective = in_stage(ConsistencyObjective(denoiser_of(dropout=0.5), config), 0)
    torch.manual_seed(0)
    assert 0 < objective(batch_of()).total < 1e-3
    monkeypatch.setattr(DropoutMasks, "repeated", DropoutMasks.drawn)  # as if nobody had cared
    torch.manual_seed(0)
    assert objective(batch_of()).total > 0.1


def test_autocast_does_not_hand_weights_that_were_cast_without_a_gradient_to_the_answer_with_one() -> None:
    torch.set_default_dtype(torch.float32)
    denoiser = denoiser_of()
    with torch.autocast("cpu", torch.bfloat16):
        in_stage(ConsistencyObjective(denoiser, ConsistencyObjectiveConfig()), 7)(batch_of()).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in denoiser.network.parameters())


def test_the_loss_of_a_batch_is_the_mean_over_its_parts() -> None:
    """So that processes and accumulated micro-batches make the same gradient as one batch."""
    batch = batch_of()
    guide = denoiser_of("edm").eval()
    objective = ConsistencyObjective(denoiser_of("gaussian"), ConsistencyObjectiveConfig(guidance=2.0), guide=guide)
    in_stage(objective, 5)
    parts = [LatentBatch(*(each[rows] for each in batch)) for rows in torch.arange(8).split(4)]
    assert torch.allclose(objective(batch).total, torch.stack([objective(part).total for part in parts]).mean())


@pytest.mark.parametrize("kind", ["edm", "gaussian"])
def test_paths_of_the_denoiser_are_steps_of_a_sampler_with_it(kind: str) -> None:
    """And so the noise of the clean latents is not in them, nor they themselves."""
    batch, guide = batch_of(1), denoiser_of(kind).eval()
    guide.consistency = False
    config = ConsistencyObjectiveConfig(paths="denoiser", weighting="prediction", guidance=3.0)
    denoiser = denoiser_of(kind)
    objective = in_stage(ConsistencyObjective(denoiser, config, guide=guide), 6)
    noisy = batch.latents + batch.sigma * batch.noise

    def guided(noisy: Tensor, sigma: Tensor) -> Tensor:
        without = guide(noisy, sigma)
        return without + 3 * (guide(noisy, sigma, batch.condition) - without)

    lower = objective.lower_level(batch.sigma)
    gaussian = guide.gaussian or LatentGaussian((2, 4, 4), 0)
    ahead = SAMPLERS["gaussian"].load()(guided, noisy, torch.cat([batch.sigma, lower]), gaussian=gaussian)
    with torch.no_grad():
        error = root_mean_square(
            denoiser(noisy, batch.sigma, batch.condition) - denoiser(ahead, lower, batch.condition)
        )
    assert torch.allclose(objective(batch).total, error / denoiser.c_out(batch.sigma), rtol=1e-6)


def test_guidance_moves_the_clean_latent_by_what_the_condition_changes_in_the_answer_of_the_guide() -> None:
    batch, guide = batch_of(), denoiser_of("edm").eval()
    objective = ConsistencyObjective(denoiser_of(), ConsistencyObjectiveConfig(guidance=3.0), guide=guide)
    noisy = batch.latents + batch.sigma.view(-1, 1, 1, 1) * batch.noise
    moved = objective.guided(batch.latents, noisy, batch.sigma, batch.condition) - batch.latents
    difference = guide(noisy, batch.sigma, batch.condition) - guide(noisy, batch.sigma)
    assert torch.allclose(moved, 2 * difference) and not moved.requires_grad
    without = batch.condition.values["label"] == NULL
    assert moved[without].eq(0).all() and moved[~without].any()
    assert not any("guide" in name for name in objective.state_dict())
