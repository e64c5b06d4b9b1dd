"""Weightings: each is the published loss, whatever the network predicts; a learned one becomes the log of the loss."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ldm.batch import Condition, LatentBatch
from ldm.config.reader import sections_of
from ldm.diffusion.config import PARAMETRIZATIONS
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gaussian import fit_gaussian
from ldm.diffusion.losses.config import (
    WEIGHTINGS,
    DenoisingObjectiveConfig,
    EDMWeightingConfig,
    EpsWeightingConfig,
    FlowWeightingConfig,
    LearnedWeightingConfig,
    LogNormalConfig,
    MinSNRWeightingConfig,
    PredictionWeightingConfig,
    SoftMinSNRWeightingConfig,
    UniformWeightingConfig,
    WeightingConfig,
)
from ldm.diffusion.losses.effective_weight import EffectiveWeight
from ldm.diffusion.losses.weighting import (
    UncertaintyObjective,
    create_uncertainty,
    error_scale,
)
from ldm.diffusion.objective import DenoisingObjective
from ldm.randomness import generator

SIGMAS = torch.logspace(-2, 2, 9, dtype=torch.float64)
SNR = SIGMAS**-2


class Wave(nn.Module):
    """A smooth network without a meaning."""

    def forward(self, scaled: Tensor, noise_condition: Tensor, *condition: Tensor | None) -> Tensor:
        return (1.7 * scaled + noise_condition.view(-1, 1, 1, 1)).sin()


def drawn(purpose: str, count: int = 9) -> Tensor:
    return torch.randn(count, 2, 3, 3, generator=generator(0, purpose), dtype=torch.float64)


def batch_of(sigma: Tensor) -> LatentBatch:
    return LatentBatch(drawn("latents", len(sigma)), drawn("noise", len(sigma)), sigma, Condition({}))


def loss_at(weighting: WeightingConfig, parametrization: str, place: int) -> float:
    """The loss of one latent at one noise level."""
    batch = LatentBatch(*(part[[place]] for part in batch_of(SIGMAS)))
    return float(DenoisingObjective(Denoiser(Wave(), parametrization=parametrization), weighting)(batch).total)


def squared(error: Tensor) -> Tensor:
    """Mean over each latent."""
    return error.square().flatten(1).mean(1)


# The published losses, from clean latent, noise, σ and the denoiser's answer: what is predicted, against its target.
PUBLISHED: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "eps": lambda clean, noise, s, answer: squared((clean + s * noise - answer) / s - noise),  # ε̂ against ε
    "uniform": lambda clean, noise, s, answer: squared(answer - clean),
    # v = (ε − σ x) / √(1 + σ²) of Salimans and Ho 2022: from α = 1 / √(1 + σ²), v̂ = (α z − x̂) / (1 − α²)^½
    "edm": lambda clean, noise, s, answer: squared(
        ((clean + s * noise) / (1 + s**2) - answer) * (1 + s**2).sqrt() / s - (noise - s * clean) / (1 + s**2).sqrt()
    ),
    # velocity ε − x of (1 − t) x + t ε, whose estimate is (z − x̂) / t for z = noisy / (1 + σ)
    "flow": lambda clean, noise, s, answer: squared(
        ((clean + s * noise) / (1 + s) - answer) * (1 + s) / s - (noise - clean)
    ),
}
OF_ONE_PARAMETRIZATION = {
    "eps": EpsWeightingConfig(),
    "uniform": UniformWeightingConfig(),
    "edm": EDMWeightingConfig(),
    "flow": FlowWeightingConfig(),
}


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_loss_is_the_published_one_whatever_the_network_predicts(name: str, parametrization: str) -> None:
    batch = batch_of(SIGMAS)
    s = SIGMAS.view(-1, 1, 1, 1)
    answer = Denoiser(Wave(), parametrization=parametrization)(batch.latents + s * batch.noise, SIGMAS)
    published = PUBLISHED[name](batch.latents, batch.noise, s, answer)
    ours = [loss_at(OF_ONE_PARAMETRIZATION[name], parametrization, place) for place in range(len(SIGMAS))]
    assert torch.allclose(torch.tensor(ours, dtype=torch.float64), published, rtol=1e-9)


@pytest.mark.parametrize(
    ("weighting", "weight"),
    [
        (EDMWeightingConfig(), 1 + SNR),
        (EpsWeightingConfig(), SNR),
        (FlowWeightingConfig(), (1 + SIGMAS) ** 2 * SNR),
        (UniformWeightingConfig(), torch.ones_like(SNR)),
        (MinSNRWeightingConfig(gamma=5.0), SNR.clamp_max(5)),
        (SoftMinSNRWeightingConfig(gamma=4.0), 4 * SNR / (4 + SNR)),  # Crowson et al. 2024
    ],
)
def test_a_weight_on_the_squared_error_is_its_formula(weighting: WeightingConfig, weight: Tensor) -> None:
    for parametrization in PARAMETRIZATIONS:
        scale = error_scale(weighting, Denoiser(Wave(), parametrization=parametrization), SIGMAS)
        assert torch.allclose(scale**-2, weight, rtol=1e-12)


@pytest.mark.parametrize(
    ("parametrization", "same"),
    [
        ("edm", EDMWeightingConfig()),
        ("eps", EpsWeightingConfig()),
        ("x0", UniformWeightingConfig()),
        ("flow", FlowWeightingConfig()),
    ],
)
def test_the_weight_of_a_prediction_is_the_one_that_goes_with_its_parametrization(
    parametrization: str, same: WeightingConfig
) -> None:
    denoiser = Denoiser(Wave(), parametrization=parametrization)
    scales = [error_scale(each, denoiser, SIGMAS) ** -2 for each in (PredictionWeightingConfig(), same)]
    assert torch.allclose(*scales, rtol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_of_noise_and_of_v_is_the_published_factor_on_their_own_losses(gamma: float) -> None:
    """Hang et al. 2023: min(SNR, γ) / SNR on the loss of ε, and min(SNR, γ) / (SNR + 1) on that of v."""
    for name, factor in {"eps": SNR.clamp_max(gamma) / SNR, "edm": SNR.clamp_max(gamma) / (SNR + 1)}.items():
        for place in range(len(SIGMAS)):
            plain = loss_at(PredictionWeightingConfig(), name, place)
            assert loss_at(MinSNRWeightingConfig(gamma=gamma), name, place) == pytest.approx(
                float(factor[place]) * plain, rel=1e-9
            )


def test_a_network_of_zeros_has_loss_one_with_edm_and_with_any_gaussian_skip() -> None:
    class Zero(nn.Module):
        def forward(self, scaled: Tensor, *rest: object) -> Tensor:
            return 0 * scaled

    latents = drawn("gaussian latents", 400) * 0.5
    for sigma in (0.1, 1.0, 10.0):
        batch = LatentBatch(
            drawn("unit", 2000), drawn("other", 2000), torch.full((2000,), sigma).double(), Condition({})
        )
        for weighting in (PredictionWeightingConfig(), EDMWeightingConfig()):
            assert float(DenoisingObjective(Denoiser(Zero()), weighting)(batch).total) == pytest.approx(1, abs=0.03)
    gaussian = fit_gaussian(latents)
    batch = LatentBatch(latents, drawn("other", 400), torch.full((400,), 1.0).double(), Condition({}))
    skip = Denoiser(Zero(), gaussian=gaussian)
    assert float(DenoisingObjective(skip)(batch).total) == pytest.approx(1, abs=0.08)
    assert float(DenoisingObjective(skip, EDMWeightingConfig())(batch).total) < 0.5  # of an EDM network's


def test_a_learned_weight_becomes_the_logarithm_of_the_loss() -> None:
    """Of losses that depend on σ as those of a denoiser do, and scatter around their mean."""
    uncertainty = create_uncertainty(LearnedWeightingConfig(channels=32))
    assert uncertainty is not None
    objective, rng = UncertaintyObjective(uncertainty), generator(0, "losses")
    optimizer = torch.optim.Adam(uncertainty.parameters(), 0.03)

    def expected(sigma: Tensor) -> Tensor:
        return 0.2 + 0.7 / (1 + (sigma.log() + 0.3).square())

    for _ in range(400):
        sigma = (1.2 * torch.randn(256, generator=rng) - 0.4).exp()
        losses = expected(sigma) * (0.5 + torch.rand(256, generator=rng))
        optimizer.zero_grad()
        objective(sigma, losses).total.backward()
        optimizer.step()
    sigma = torch.tensor([0.15, 0.4, 0.7, 1.5, 3.0])
    with torch.no_grad():
        assert (uncertainty(sigma) - expected(sigma).log()).abs().max() < 0.1


def test_the_two_gradients_of_a_learned_weighting_are_those_of_the_published_sum() -> None:
    """EDM2: e^−u ‖error‖² + u, minimized in the denoiser and in u at once."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, scaled: Tensor, *rest: object) -> Tensor:
            return self.factor * scaled

    config = LearnedWeightingConfig(channels=8)
    uncertainty, denoiser, batch = create_uncertainty(config), Denoiser(Scaled()), batch_of(SIGMAS)
    assert uncertainty is not None
    uncertainty.double()
    nn.init.normal_(uncertainty.linear.weight, generator=generator(0, "u"))
    trained = [*denoiser.parameters(), *uncertainty.parameters()]
    losses = DenoisingObjective(denoiser, config, uncertainty)(batch)
    UncertaintyObjective(uncertainty)(**losses.outputs).total.backward()
    losses.total.backward()
    ours = [parameter.grad.clone() for parameter in trained]
    answer = denoiser(batch.latents + SIGMAS.view(-1, 1, 1, 1) * batch.noise, SIGMAS)
    errors, u = squared(answer - batch.latents) / denoiser.c_out(SIGMAS) ** 2, uncertainty(SIGMAS)
    published = torch.autograd.grad(((-u).exp() * errors + u).mean(), trained)
    assert all(torch.allclose(one, other, rtol=1e-9) for one, other in zip(ours, published, strict=True))


def test_every_weighting_of_the_table_has_a_config() -> None:
    assert {config.kind for config in sections_of(WeightingConfig)} == set(WEIGHTINGS)


@pytest.mark.parametrize("kind", ["edm", "uniform", "min-snr"])
def test_the_effective_weight_is_the_loss_as_an_integral_over_ln_sigma(kind: str) -> None:
    """Against the mean over drawn noise levels of the weighted error, for an error that is a function of σ."""
    weighting = next(config for config in sections_of(WeightingConfig) if config.kind == kind)()
    config = DenoisingObjectiveConfig(noise_distribution=LogNormalConfig(mean=-0.2, std=1.0), weighting=weighting)
    denoiser = Denoiser(nn.Linear(1, 1))
    sigma = torch.logspace(-4, 4, 8001, dtype=torch.float64)
    integral = torch.trapezoid(EffectiveWeight(config, denoiser).at(sigma) * error_at(sigma), sigma.log())
    nodes = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    drawn_sigma = (-0.2 + nodes).exp()
    mean = (error_scale(weighting, denoiser, drawn_sigma) ** -2 * error_at(drawn_sigma)).mean()
    assert float(integral) == pytest.approx(float(mean), rel=1e-3)


def error_at(sigma: Tensor) -> Tensor:
    """As that of the best denoiser of unit Gaussian data."""
    return sigma**2 / (1 + sigma**2)


def test_the_line_of_a_dry_run_names_density_weighting_and_values() -> None:
    line = EffectiveWeight(DenoisingObjectiveConfig(), Denoiser(nn.Linear(1, 1))).describe()
    assert "log-normal" in line and "1 / c_out²" in line and "0.629 at 1," in line and "\n" not in line
