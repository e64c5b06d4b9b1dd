"""The denoiser: what each parametrization promises its network, and that all of them say the same."""

import math
from collections.abc import Callable
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.diffusion import config
from ldm.diffusion.denoiser import PARAMETRIZATIONS, Denoiser
from ldm.diffusion.noise import broadcast_sigma, sample_sigmas
from ldm.randomness import generator
from ldm.verify.score import Perceptron

LEVELS = torch.tensor([0.05, 0.1, 0.3, 1.0, 2.5, 10.0, 80.0], dtype=torch.float64)
CENTERS = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [-0.4, -0.9]], dtype=torch.float64)
SPREAD = 0.3


def log_density(noisy: Tensor, sigma: Tensor) -> Tensor:
    """log p_σ of the three-Gaussian mixture, up to a constant."""
    variance = SPREAD**2 + sigma**2
    distances = (noisy[:, None] - CENTERS.to(noisy)).square().sum(-1)
    return torch.logsumexp(-distances / (2 * variance[:, None]), dim=1) - variance.log()


def posterior_mean(noisy: Tensor, sigma: Tensor) -> Tensor:
    """E[clean | noisy] of the mixture: the mean of its three Gaussian answers, by their responsibilities."""
    variance = (SPREAD**2 + sigma**2)[:, None]
    centers = CENTERS.to(noisy)
    shares = torch.softmax(-(noisy[:, None] - centers).square().sum(-1) / (2 * variance), dim=1)
    answers = (SPREAD**2 * noisy[:, None] + sigma[:, None, None] ** 2 * centers) / variance[:, None]
    return (shares[..., None] * answers).sum(1)


def gradient(noisy: Tensor, sigma: Tensor) -> Tensor:
    """∇ log p_σ(noisy) by automatic differentiation."""
    noisy = noisy.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_density(noisy, sigma).sum(), noisy)
    return slope


class Constant(nn.Module):
    """A network that always says the same number, and remembers what it was given."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, scaled: Tensor, noise_condition: Tensor, labels: Tensor | None) -> Tensor:
        self.given = scaled, noise_condition, labels
        return torch.full_like(scaled, self.value)


class Representing(nn.Module):
    """The network that makes a denoiser of one parametrization equal to `answer`."""

    def __init__(self, parametrization: str, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.algebra = Denoiser(nn.Identity(), parametrization=parametrization)
        self.answer = answer

    def forward(self, scaled: Tensor, noise_condition: Tensor, labels: Tensor | None) -> Tensor:
        sigma = (4 * noise_condition).exp()
        noisy = scaled / self.algebra.c_in(broadcast_sigma(sigma, scaled))
        return self.algebra.target(noisy, sigma, self.answer(noisy, sigma))


def unit_pair(count: int, sigma_data: float = 1.0) -> tuple[Tensor, Tensor]:
    """Clean data of the given deviation and unit noise whose sample moments are exact: orthogonal, centered."""
    drawn = torch.randn(count, 2, dtype=torch.float64, generator=generator(0, "pair"))
    basis = torch.linalg.qr(drawn - drawn.mean(0)).Q * math.sqrt(count)
    return sigma_data * basis[:, :1], basis[:, 1:]


def noisy_mixture(sigma: float, count: int) -> tuple[Tensor, Tensor]:
    """Points of the smoothed mixture, with their noise level."""
    rng = generator(0, "points", int(1000 * sigma))
    centers = CENTERS[torch.randint(3, (count,), generator=rng)]
    scale = math.sqrt(SPREAD**2 + sigma**2)
    points = centers + scale * torch.randn(count, 2, dtype=torch.float64, generator=rng)
    return points, torch.full((count,), sigma, dtype=torch.float64)


def test_the_table_of_parametrizations_is_what_settings_offer() -> None:
    offered = get_args(get_type_hints(config.DenoiserConfig)["parametrization"])
    assert set(offered) == set(PARAMETRIZATIONS)


def test_an_unknown_parametrization_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'v'.*edm.*flow"):
        Denoiser(Constant(), parametrization="v")


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("parametrization", ["edm", "x0", "eps"])
def test_input_and_target_have_unit_variance_at_every_noise_level(parametrization: str, sigma_data: float) -> None:
    clean, noise = unit_pair(64, sigma_data)
    denoiser = Denoiser(network := Constant(), parametrization=parametrization, sigma_data=sigma_data)
    for level in LEVELS:
        noisy, sigma = clean + level * noise, level.expand(64)
        denoiser(noisy, sigma)
        assert abs(network.given[0].square().mean() - 1) < 1e-10
        assert abs(denoiser.target(noisy, sigma, clean).square().mean() - 1) < 1e-10


@pytest.mark.parametrize(("parametrization", "loss"), [("edm", 1.0), ("x0", 1.0), ("eps", 1.0), ("flow", 2.0)])
def test_a_network_that_says_nothing_has_the_same_loss_at_every_noise_level(parametrization: str, loss: float) -> None:
    clean, noise = unit_pair(64)
    denoiser = Denoiser(Constant(), parametrization=parametrization)
    for level in LEVELS:
        sigma = level.expand(64)
        errors = (denoiser(clean + level * noise, sigma) - clean).square().mean(1)
        assert abs((denoiser.weight(sigma) * errors).mean() - loss) < 1e-10


def test_the_input_of_a_flow_is_the_point_on_its_path_and_the_target_its_velocity() -> None:
    clean, noise = unit_pair(64)
    denoiser = Denoiser(network := Constant(), parametrization="flow")
    for time in (0.01, 0.3, 0.5, 0.9, 0.99):
        sigma = torch.full((64,), time / (1 - time), dtype=torch.float64)
        noisy = clean + broadcast_sigma(sigma, noise) * noise
        denoiser(noisy, sigma)
        assert torch.allclose(network.given[0], (1 - time) * clean + time * noise, rtol=0, atol=1e-12)
        assert abs(network.given[0].square().mean() - ((1 - time) ** 2 + time**2)) < 1e-10
        assert torch.allclose(denoiser.target(noisy, sigma, clean), noise - clean, rtol=0, atol=1e-10)


def test_the_target_of_edm_is_minus_v_and_that_of_eps_is_the_noise() -> None:
    clean, noise = unit_pair(64)
    for level in LEVELS:
        signal, share = 1 / (1 + level**2).sqrt(), level / (1 + level**2).sqrt()
        noisy, sigma = clean + level * noise, level.expand(64)
        velocity = signal * noise - share * clean
        assert torch.allclose(Denoiser(Constant()).target(noisy, sigma, clean), -velocity, rtol=0, atol=1e-10)
        eps = Denoiser(Constant(), parametrization="eps").target(noisy, sigma, clean)
        assert torch.allclose(eps, noise, rtol=0, atol=1e-10)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_weight_makes_the_loss_on_the_answer_the_loss_on_the_output(parametrization: str) -> None:
    clean, noise = unit_pair(64)
    denoiser = Denoiser(Constant(0.37), parametrization=parametrization, sigma_data=0.8)
    sigma = LEVELS.repeat(10)[:64]
    noisy = clean + broadcast_sigma(sigma, noise) * noise
    on_answer = denoiser.weight(sigma) * (denoiser(noisy, sigma) - clean).square().mean(1)
    on_output = (0.37 - denoiser.target(noisy, sigma, clean)).square().mean(1)
    assert torch.allclose(on_answer, on_output, rtol=1e-10)


def test_the_weight_of_edm_is_that_of_the_paper_and_takes_four_tensor_operations() -> None:
    class Counted(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.calls += 1
            return function(*args, **(kwargs or {}))

    with Counted() as counted:
        weight = Denoiser(Constant(), sigma_data=0.5).weight(LEVELS)
    assert torch.allclose(weight, (LEVELS**2 + 0.25) / (0.5 * LEVELS) ** 2, rtol=1e-12)
    assert counted.calls <= 4


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_without_noise_the_answer_is_the_input_unless_the_network_must_say_everything(parametrization: str) -> None:
    noisy = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=generator(0, "noisy"))
    denoised = Denoiser(Constant(0.5), parametrization=parametrization)(noisy, torch.full((3,), 1e-6))
    if parametrization == "x0":
        assert torch.equal(denoised, torch.full_like(noisy, 0.5))
    else:
        assert torch.allclose(denoised, noisy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 10.0])
def test_all_parametrizations_of_one_answer_give_it_and_its_score(parametrization: str, sigma: float) -> None:
    points, sigmas = noisy_mixture(sigma, 200)
    denoiser = Denoiser(Representing(parametrization, posterior_mean), parametrization=parametrization)
    answer = posterior_mean(points, sigmas)
    assert torch.allclose(denoiser(points, sigmas), answer, rtol=0, atol=1e-12)
    score = (answer - points) / sigma**2
    assert (denoiser.score(points, sigmas) - score).norm() < 1e-12 * score.norm() / min(sigma, 1)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_the_score_of_the_posterior_mean_is_the_gradient_of_the_log_density(parametrization: str, sigma: float) -> None:
    points, sigmas = noisy_mixture(sigma, 200)
    denoiser = Denoiser(Representing(parametrization, posterior_mean), parametrization=parametrization)
    assert torch.allclose(denoiser.score(points, sigmas), gradient(points, sigmas), rtol=0, atol=1e-10)


@pytest.mark.parametrize("parametrization", ["edm", "x0", "eps"])
def test_scaling_data_and_noise_together_scales_the_answer(parametrization: str) -> None:
    class Blind(Constant):
        def forward(self, scaled: Tensor, noise_condition: Tensor, labels: Tensor | None) -> Tensor:
            return scaled.tanh() + 0.3

    noisy, sigma = 5 * unit_pair(64)[0], LEVELS.repeat(10)[:64]
    small = Denoiser(Blind(), parametrization=parametrization, sigma_data=1.0)
    large = Denoiser(Blind(), parametrization=parametrization, sigma_data=7.0)
    assert torch.allclose(large(7 * noisy, 7 * sigma), 7 * small(noisy, sigma), rtol=1e-12)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_network_is_told_a_quarter_of_the_logarithm_of_sigma_and_the_labels(parametrization: str) -> None:
    labels = torch.arange(len(LEVELS))
    denoiser = Denoiser(network := Constant(), parametrization=parametrization)
    denoiser(torch.zeros(len(LEVELS), 3, 2, 2, dtype=torch.float64), LEVELS, labels)
    assert torch.equal(network.given[1], LEVELS.log() / 4)
    assert network.given[2] is labels


def test_autocast_lowers_the_precision_of_the_network_and_of_nothing_else() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, scaled: Tensor, noise_condition: Tensor, labels: Tensor | None) -> Tensor:
            self.output: Tensor = self.layer(scaled)
            return self.output

    torch.manual_seed(0)
    denoiser = Denoiser(network := Linear())
    noisy = 3 * torch.randn(5, 8, generator=generator(0, "noisy"))
    sigma = torch.tensor([1e-3, 0.1, 1.0, 10.0, 80.0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        denoised = denoiser(noisy, sigma)
    assert network.output.dtype == torch.bfloat16 and denoised.dtype == torch.float32
    level = broadcast_sigma(sigma, noisy)
    assert torch.equal(denoised, denoiser.c_skip(level) * noisy + denoiser.c_out(level) * network.output.float())
    assert torch.allclose(denoised[0], noisy[0], rtol=0, atol=5e-3)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_float64_is_float64_throughout_even_with_float32_noise_levels(parametrization: str) -> None:
    noisy = torch.randn(7, 3, dtype=torch.float64, generator=generator(0, "noisy"))
    denoiser = Denoiser(Constant(0.5), parametrization=parametrization)
    sigma = LEVELS.float()
    assert torch.equal(denoiser(noisy, sigma), denoiser(noisy, sigma.double()))
    assert denoiser(noisy, sigma).dtype == torch.float64


@pytest.mark.parametrize(
    ("record", "values"),
    [
        (config.UNetConfig, {"widths": ()}),
        (config.UNetConfig, {"blocks": 0}),
        (config.UNetConfig, {"attention": (2,)}),
        (config.UNetConfig, {"head_channels": 0}),
        (config.UNetConfig, {"dropout": 1.0}),
        (config.DenoisingObjectiveConfig, {"condition_dropout": 1.1}),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(record: type, values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        record(**values)


@pytest.fixture(scope="module")
def trained() -> Denoiser:
    """An EDM denoiser of the mixture, trained for seconds on noise levels from 0.05 to 2."""
    torch.manual_seed(0)
    denoiser = Denoiser(Perceptron(48), sigma_data=0.75)
    steps, batch = 4000, 1024
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = generator(0, "training")
    for _ in range(steps):
        clean = CENTERS.float()[torch.randint(3, (batch,), generator=rng)]
        clean = clean + SPREAD * torch.randn(batch, 2, generator=rng)
        sigma = sample_sigmas(config.LogUniformConfig(low=0.05, high=2.0), batch, rng)
        noisy = clean + broadcast_sigma(sigma, clean) * torch.randn(batch, 2, generator=rng)
        loss = (denoiser.weight(sigma) * (denoiser(noisy, sigma) - clean).square().mean(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return denoiser


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.5, 1.0, 2.0])
def test_a_trained_denoiser_points_along_the_score_of_the_smoothed_density(trained: Denoiser, sigma: float) -> None:
    points, sigmas = noisy_mixture(sigma, 4000)
    exact = gradient(points, sigmas)
    with torch.no_grad():
        score = trained.score(points.float(), sigmas.float()).double()
    assert (score - exact).norm() < 0.10 * exact.norm()
    assert (score * exact).sum() > 0.99 * score.norm() * exact.norm()
