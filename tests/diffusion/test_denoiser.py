"""The denoiser: targets, weights and precision of each parametrization, and what its network is given.

Variances, losses, the limit of no noise, conversions and trained scores are measured by `ldm verify denoiser score`.
"""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.batch import ClassAttribute, Condition, ConditionSchema
from ldm.diffusion import config
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.diffusion.config import PARAMETRIZATIONS
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gaussian import fit_gaussian
from ldm.diffusion.losses.config import DenoisingObjectiveConfig
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.networks.unet import UNet
from ldm.diffusion.noise import broadcast_sigma
from ldm.errors import ConfigError
from ldm.randomness import generator
from ldm.verify.score import CENTERS, STD, exact_score

LEVELS = torch.tensor([0.05, 0.1, 0.3, 1.0, 2.5, 10.0, 80.0], dtype=torch.float64)


class Constant(nn.Module):
    """A network that always says the same number, and remembers what it was given."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, *given: Tensor | None) -> Tensor:
        self.given = given
        assert given[0] is not None
        return torch.full_like(given[0], self.value)


def unit_pair(count: int) -> tuple[Tensor, Tensor]:
    """Clean data and noise of unit variance."""
    return torch.randn(2, count, 1, dtype=torch.float64, generator=generator(0, "pair")).unbind()


def test_an_unknown_parametrization_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=rf"parametrization must be {'.'.join(PARAMETRIZATIONS)}, not v"):
        config.DenoiserConfig(parametrization="v")


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_a_denoiser_could_not_be_pickled(name: str) -> None:
    """For its parametrization is made of functions without a name."""
    denoiser = Denoiser(Constant(2.0), parametrization=name)
    again, noisy = pickle.loads(pickle.dumps(denoiser)), torch.ones(2, 1, 3, 3)
    assert torch.equal(again(noisy, 0.5), denoiser(noisy, 0.5))
    assert copy.deepcopy(denoiser).parametrization is denoiser.parametrization is again.parametrization


def test_the_input_of_a_flow_is_the_point_on_its_path_and_the_target_its_velocity() -> None:
    clean, noise = unit_pair(64)
    denoiser = Denoiser(network := Constant(), parametrization="flow")
    for time in (0.01, 0.3, 0.5, 0.9, 0.99):
        sigma = torch.full((64,), time / (1 - time), dtype=torch.float64)
        noisy = clean + broadcast_sigma(sigma, noise) * noise
        denoiser(noisy, sigma)
        assert torch.allclose(network.given[0], (1 - time) * clean + time * noise, rtol=0, atol=1e-12)
        assert torch.allclose(denoiser.target(noisy, sigma, clean), noise - clean, rtol=0, atol=1e-10)


def test_the_target_of_eps_is_the_noise_and_that_of_x0_the_clean_tensor() -> None:
    clean, noise = unit_pair(64)
    for level in LEVELS:
        noisy, sigma = clean + level * noise, level.expand(64)
        for parametrization, expected in (("eps", noise), ("x0", clean)):
            target = Denoiser(Constant(), parametrization=parametrization).target(noisy, sigma, clean)
            assert torch.allclose(target, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_the_weight_makes_the_loss_on_the_answer_the_loss_on_the_output(parametrization: str) -> None:
    clean, noise = unit_pair(64)
    denoiser = Denoiser(Constant(0.37), parametrization=parametrization, sigma_data=0.8)
    sigma = LEVELS.repeat(10)[:64]
    noisy = clean + broadcast_sigma(sigma, noise) * noise
    on_answer = denoiser.loss_weight(sigma) * (denoiser(noisy, sigma) - clean).square().mean(1)
    on_output = (0.37 - denoiser.target(noisy, sigma, clean)).square().mean(1)
    assert torch.allclose(on_answer, on_output, rtol=1e-10)


def test_the_weight_of_edm_is_that_of_the_paper_and_takes_four_tensor_operations() -> None:
    class Counted(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.calls += 1
            return function(*args, **(kwargs or {}))

    with Counted() as counted:
        weight = Denoiser(Constant(), sigma_data=0.5).loss_weight(LEVELS)
    assert torch.allclose(weight, (LEVELS**2 + 0.25) / (0.5 * LEVELS) ** 2, rtol=1e-12)
    assert counted.calls <= 4


def test_the_score_that_ldm_verify_holds_denoisers_to_is_the_gradient_of_the_log_density() -> None:
    """By automatic differentiation of the density of the smoothed mixture of three Gaussians."""
    centers = torch.tensor(CENTERS, dtype=torch.float64)
    for sigma in (0.1, 0.5, 2.0):
        points = 1.5 * torch.randn(200, 2, dtype=torch.float64, generator=generator(0, "points"))
        points.requires_grad_()
        distances = (points[:, None] - centers).square().sum(-1)
        log_density = torch.logsumexp(-distances / (2 * (STD**2 + sigma**2)), dim=1)
        (gradient,) = torch.autograd.grad(log_density.sum(), points)
        assert torch.allclose(exact_score(points.detach(), sigma), gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "parametrization", [name for name, facts in PARAMETRIZATIONS.items() if not facts.input_is_path]
)
def test_scaling_data_and_noise_together_scales_the_answer(parametrization: str) -> None:
    """Of all but flow, whose path has a scale of its own."""

    class Blind(nn.Module):
        def forward(self, scaled: Tensor, *_: Tensor | None) -> Tensor:
            return scaled.tanh() + 0.3

    noisy, sigma = 5 * unit_pair(64)[0], LEVELS.repeat(10)[:64]
    small = Denoiser(Blind(), parametrization=parametrization, sigma_data=1.0)
    large = Denoiser(Blind(), parametrization=parametrization, sigma_data=7.0)
    assert torch.allclose(large(7 * noisy, 7 * sigma), 7 * small(noisy, sigma), rtol=1e-12)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_a_network_is_given_a_quarter_of_ln_sigma_and_the_embedded_condition(parametrization: str) -> None:
    condition = Condition({"label": torch.arange(len(LEVELS)) % 3})
    embedding = ConditionEmbedding(ConditionSchema((ClassAttribute("label", ("a", "b", "c")),)), 5)
    denoiser = Denoiser(network := Constant(), embedding, parametrization=parametrization)
    noisy = torch.zeros(len(LEVELS), 3, 2, 2, dtype=torch.float64)
    for given in (condition, None):
        denoiser(noisy, LEVELS, given)
        _, noise_condition, vector, tokens = network.given
        assert torch.equal(noise_condition, LEVELS.log() / 4)
        assert torch.equal(vector, embedding(given, LEVELS)[0]) and tokens is None


def test_autocast_lowers_the_precision_of_the_network_and_of_nothing_else() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, scaled: Tensor, *_: Tensor | None) -> Tensor:
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


@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_and_input_of_different_precision_meet_at_the_door_of_the_network(weights: torch.dtype) -> None:
    """`model.denoiser(x.double(), s)` and half-precision weights died in the first convolution."""
    torch.manual_seed(0)
    network = UNet(config.UNetConfig(widths=(8, 16), blocks=1, head_channels=8), channels=2)
    schema = ConditionSchema((ClassAttribute("label", ("a", "b")),))
    denoiser = Denoiser(network, ConditionEmbedding(schema, network.vector_channels)).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    noisy, sigma = torch.randn(2, 2, 4, 4), torch.tensor([0.1, 5.0])
    condition = Condition({"label": torch.tensor([0, 1])})
    with torch.no_grad():
        expected = denoiser(noisy, sigma, condition)
        denoiser.to(weights)
        for given, returned in ((torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
            denoised = denoiser(noisy.to(given), sigma.to(given), condition)
            assert denoised.dtype == returned
            tolerance = 2e-2 if weights == torch.bfloat16 else 4e-3
            assert torch.allclose(denoised.float(), expected, rtol=0, atol=tolerance)


def skipped(skip: config.SkipConfig) -> Denoiser:
    """A denoiser with this skip, and with weights that are not at their start."""
    schema = ConditionSchema((ClassAttribute("label", ("a", "b")),))
    parts = config.DenoiserConfig(config.UNetConfig(widths=(8, 16), blocks=1, head_channels=8), skip=skip)
    torch.manual_seed(0)
    denoiser = create_denoiser(DiffusionModelConfig((2, 4, 4), schema, parts, config.SamplingConfig()))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return denoiser.eval()


def test_a_scalar_skip_is_edm_bit_for_bit_and_a_gaussian_one_that_knows_nothing_is_to_rounding() -> None:
    """c_skip x + c_out F(c_in x; ln σ / 4) of Karras et al. 2022, and the weights of a seed are the same."""
    noisy, sigma = torch.randn(7, 2, 4, 4, generator=generator(0, "noisy")), LEVELS.float()
    denoiser, level = skipped(config.ScalarSkipConfig()), sigma.view(-1, 1, 1, 1)
    vector, _ = denoiser.embedding(None, sigma)
    output = denoiser.network((level**2 + 1) ** -0.5 * noisy, sigma.log() / 4, vector)
    by_hand = 1 / (level**2 + 1) * noisy + (level**-2 + 1) ** -0.5 * output
    assert torch.equal(denoiser(noisy, sigma), by_hand)
    for rank in (0, 5):
        unfitted = skipped(config.GaussianSkipConfig(rank=rank))
        assert torch.allclose(unfitted(noisy, sigma), by_hand, rtol=1e-5, atol=1e-6)


def test_a_gaussian_skip_is_state_and_no_parameter_and_cancels_in_guidance() -> None:
    denoiser = skipped(config.GaussianSkipConfig(rank=3))
    names = set(denoiser.state_dict()) - set(dict(denoiser.named_parameters()))
    assert names == {f"gaussian.{name}" for name in ("mean", "basis", "eigenvalues", "rest")}
    noisy, condition = torch.randn(1, 2, 4, 4, generator=generator(0, "noisy")), Condition({"label": torch.tensor([1])})
    before = denoiser(noisy, 0.5, condition) - denoiser(noisy, 0.5)
    gaussian = fit_gaussian(torch.randn(40, 2, 4, 4, generator=generator(0, "latents")), rank=3)
    assert denoiser.gaussian is not None
    change = (gaussian.c_out(torch.tensor([0.5])) / denoiser.c_out(torch.tensor([0.5]))).item()
    denoiser.gaussian.load_state_dict(gaussian.state_dict())
    after = denoiser(noisy, 0.5, condition) - denoiser(noisy, 0.5)
    assert before.abs().max() > 0.01 and torch.allclose(after, change * before, rtol=1e-4, atol=1e-5)


def test_a_gaussian_skip_is_refused_for_other_parametrizations() -> None:
    for parametrization in set(PARAMETRIZATIONS) - {"edm"}:
        with pytest.raises(
            ValueError, match=f"skip.kind gaussian is a skip of parametrization edm, not of {parametrization}"
        ):
            config.DenoiserConfig(parametrization=parametrization, skip=config.GaussianSkipConfig())


def test_a_noise_level_is_one_number_or_one_per_sample_and_positive() -> None:
    denoiser, noisy = Denoiser(Constant(0.5)).eval(), torch.ones(3, 2)
    expected = denoiser(noisy, torch.full((3,), 2.0))
    for sigma in (2, 2.0, torch.tensor(2.0), torch.tensor([2.0])):
        assert torch.equal(denoiser(noisy, sigma), expected)
        assert torch.equal(denoiser.score(noisy, sigma), (expected - noisy) / 4)
    for sigma in (0, -0.3, torch.tensor([1.0, 0.0, 2.0]), torch.tensor(torch.nan)):
        with pytest.raises(ConfigError, match="is not above 0: it is a noise level"):
            denoiser(noisy, sigma)
    with pytest.raises(ConfigError, match="sigma has 2 noise levels for 3 samples"):
        denoiser(noisy, torch.ones(2))


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (config.UNetConfig, {"widths": ()}),
        (config.UNetConfig, {"widths": (8, 0)}),
        (config.UNetConfig, {"blocks": 0}),
        (config.UNetConfig, {"attention": (2,)}),
        (config.UNetConfig, {"head_channels": 0}),
        (config.UNetConfig, {"dropout": 1.0}),
        (config.UNetConfig, {"dropout": math.nan}),
        (DenoisingObjectiveConfig, {"condition_dropout": 1.1}),
    ],
)
def test_configs_outside_their_range_are_refused_by_name(cls: type, values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        cls(**values)
