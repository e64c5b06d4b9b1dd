"""Every denoiser network: where it starts, what its output depends on, what reaches its parameters, how it is saved."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.batch import ClassAttribute, ConditionSchema
from ldm.diffusion.config import (
    DENOISER_NETWORKS,
    SAMPLERS,
    DenoiserConfig,
    DenoiserNetworkConfig,
    DiTConfig,
    EDM2Config,
    GaussianSkipConfig,
    SamplingConfig,
    UNet2DConfig,
    UNetConfig,
)
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser, load_denoiser, save_denoiser
from ldm.diffusion.network import DenoiserNetwork
from ldm.diffusion.sampling import noise_levels, sample_latents
from ldm.randomness import generator
from ldm.training.config import MuonConfig
from ldm.training.muon import hidden_weights
from ldm.training.optim import GuardedOptimizer
from tests.support.scripts import ROOT

UNET = UNetConfig(widths=(8, 16), blocks=1, head_channels=8)
DIT = DiTConfig(width=16, depth=2, heads=2)
EDM2 = EDM2Config(widths=(8, 16), blocks=1, head_channels=8)
UNET2D = UNet2DConfig(widths=(8, 16), blocks=1, head_channels=8, norm_groups=4)
VARIANTS: dict[str, DenoiserNetworkConfig] = {
    "unet": UNET,
    "unet, one level": replace(UNET, widths=(8,), attention=(0,)),
    "unet, three levels, two blocks": replace(UNET, widths=(8, 12, 16), blocks=2, attention=(0, 2)),
    "unet, no attention": replace(UNET, attention=()),
    "unet, odd widths": replace(UNET, widths=(9, 15), attention=(0, 1), head_channels=4),
    "unet, qk norm": replace(UNET, qk_norm=True),
    "dit": DIT,
    "dit, single positions, sines": replace(DIT, patch=1, positions="sin-cos", qk_norm=False),
    "edm2": EDM2,
    "edm2, three levels, two blocks": replace(EDM2, widths=(8, 12, 8), blocks=2, attention=(0, 2)),
    "unet2d": UNET2D,
}
BY_KIND = {config.kind: config for config in (UNET, DIT, EDM2, UNET2D)}
LAST = {  # what alone learns at the start, as it multiplies all that comes before
    "unet": {"last.weight", "last.bias"},
    "dit": {"last.weight", "last.bias"},
    "edm2": {"gain"},
    "unet2d": {"model.conv_out.weight", "model.conv_out.bias"},
}
SCHEMA = ConditionSchema((ClassAttribute("label", ("disc", "square")),))


def drawn(*shape: int, purpose: str = "latents") -> Tensor:
    return torch.randn(*shape, generator=generator(0, purpose))


def created(config: DenoiserNetworkConfig, channels: int = 4) -> DenoiserNetwork:
    network: DenoiserNetwork = DENOISER_NETWORKS[config.kind].load().create(config, latent_shape=(channels, 8, 8))
    return network


def awoken(module: Any) -> Any:
    """The same with all of its weights random, without a zero, as after some training."""
    rng = generator(0, "weights")
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5, generator=rng)
    return module.eval()


def vectors(network: DenoiserNetwork, count: int) -> Tensor:
    """Something to condition on."""
    return drawn(count, network.vector_channels, purpose="vectors")


@pytest.fixture(params=VARIANTS)
def config(request: pytest.FixtureRequest) -> DenoiserNetworkConfig:
    """Networks of every kind and shape that a config can ask for."""
    return VARIANTS[request.param]


def test_every_network_is_here() -> None:
    assert list(BY_KIND) == list(DENOISER_NETWORKS)


def test_the_output_starts_at_zero(config: DenoiserNetworkConfig) -> None:
    network = created(config)
    assert not network(drawn(2, 4, 8, 8), drawn(2), vectors(network, 2)).any()


@pytest.mark.parametrize("kind", BY_KIND)
def test_at_the_start_only_the_last_layer_learns(kind: str) -> None:
    """The price of starting at zero is one step in which nothing else moves."""
    network = created(BY_KIND[kind])
    (network(drawn(4, 4, 8, 8), drawn(4)) - 1).square().mean().backward()
    learning = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == LAST[kind]


def test_a_gradient_reaches_every_parameter(config: DenoiserNetworkConfig) -> None:
    network = awoken(created(config))
    vector = vectors(network, 4).requires_grad_()
    network(drawn(4, 4, 8, 8), drawn(4, purpose="noise"), vector).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert vector.grad is not None and vector.grad.any(dim=1).all()


def test_a_sample_does_not_depend_on_its_batch(config: DenoiserNetworkConfig) -> None:
    """Not a bit of sample 0 changes with its neighbors, and splitting the batch changes rounding at most."""
    network, x, noise = awoken(created(config)), drawn(6, 4, 8, 8), drawn(6, purpose="noise")
    vector, first = vectors(network, 6), torch.arange(6) == 0
    whole = network(x, noise, vector)
    others = x.clone()
    others[1:] = 100 * drawn(5, 4, 8, 8, purpose="neighbors")
    alone = network(others, noise.where(first, 7.0), vector.where(first[:, None], 2.0))
    assert alone[0].equal(whole[0])
    split = torch.cat([network(x[part], noise[part], vector[part]) for part in torch.arange(6).split([1, 2, 3])])
    assert (split - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("kind", BY_KIND)
def test_every_vector_and_every_noise_level_changes_the_answer(kind: str) -> None:
    network, x = awoken(created(BY_KIND[kind])), drawn(1, 4, 8, 8)
    given = [*vectors(network, 3).split(1), None]
    answers = [network(x, torch.tensor([noise]), vector) for noise in (-1.0, 1.0) for vector in given]
    for place, answer in enumerate(answers):
        assert all((answer - other).abs().max() > 1e-3 * answer.abs().max() for other in answers[place + 1 :])


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (20, 4)])
def test_latents_of_any_size_keep_their_shape(kind: str, shape: tuple[int, int]) -> None:
    network = awoken(created(BY_KIND[kind]))
    type(network).check(BY_KIND[kind], (4, *shape))
    assert network(drawn(2, 4, *shape), drawn(2)).shape == (2, 4, *shape)


@pytest.mark.parametrize("kind", BY_KIND)
def test_autocast_changes_rounding_alone(kind: str) -> None:
    network = awoken(created(BY_KIND[kind]))
    given = drawn(2, 4, 8, 8), drawn(2, purpose="noise"), vectors(network, 2)
    exact = network(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert (network(*given) - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("kind", BY_KIND)
def test_dropout_is_off_when_it_is_zero_and_when_the_network_is_not_training(kind: str) -> None:
    x, noise = drawn(2, 4, 8, 8), drawn(2, purpose="noise")
    for dropout, training, random in [(0.0, True, False), (0.5, False, False), (0.5, True, True)]:
        network = awoken(created(replace(BY_KIND[kind], dropout=dropout))).train(training)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert network(x, noise).equal(network(x, noise)) != random


@pytest.mark.parametrize("kind", BY_KIND)
def test_two_steps_equal_one_a_restart_and_one_and_two_processes_one(kind: str) -> None:
    """With Muon, whatever it takes; the halves of a batch, averaged, give the gradient of the whole."""
    x, noise = drawn(4, 4, 8, 8), drawn(4, purpose="noise")

    def gradients(network: nn.Module, *parts: slice) -> list[Tensor]:
        for part in parts:
            (network(x[part], noise[part]) - x[part]).square().mean().div(len(parts)).backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    def advance(network: nn.Module, optimizer: GuardedOptimizer) -> None:
        gradients(network, slice(None))
        optimizer.step(1e-2, torch.ones(()))

    network = awoken(created(BY_KIND[kind]))
    whole = gradients(copy.deepcopy(network), slice(None))
    halves = gradients(copy.deepcopy(network), slice(0, 2), slice(2, 4))
    size = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(whole)))
    assert max((one - other).abs().max() for one, other in zip(whole, halves, strict=True)) < 1e-5 * size
    optimizer = GuardedOptimizer(network, MuonConfig(), None)
    advance(network, optimizer)
    resumed = created(BY_KIND[kind]).eval()
    resumed.load_state_dict(network.state_dict())
    restarted = GuardedOptimizer(resumed, MuonConfig(), None)
    restarted.load({name: value.clone() for name, value in optimizer.tensors().items()})
    advance(network, optimizer)
    advance(resumed, restarted)
    assert all(value.equal(resumed.state_dict()[name]) for name, value in network.state_dict().items())


def test_muon_leaves_ends_embeddings_and_modulation_of_new_networks_to_adamw() -> None:
    """They were taken for hidden layers where they are wide. (Our U-Net's were taken from the beginning, and stay.)"""
    left = {}
    for kind in ("dit", "edm2", "unet2d"):
        config = replace(DIT, width=64) if kind == "dit" else replace(BY_KIND[kind], widths=(32, 64))
        network = created(replace(config, norm_groups=8) if kind == "unet2d" else config, channels=64)
        matrices = {name for name, parameter in network.named_parameters() if parameter.ndim > 1}
        left[kind] = {re.sub(r"\d", "N", name) for name in matrices - hidden_weights(network)}
        assert len(matrices & hidden_weights(network)) > 5
    blocks = {"down.N.condition.weight", "middle.N.condition.weight", "up.N.condition.weight"}
    ends = {"first.weight", "last.weight"}
    assert left == {
        "dit": ends | {"noise_embedding.N.weight", "modulation.weight", "blocks.N.modulation.weight"},
        "edm2": ends | blocks | {"noise_embedding.weight"},
        "unet2d": {f"model.{name}.weight" for name in ("conv_in", "conv_out")}
        | {"model.time_embedding.linear_N.weight"},
    }


def model_of(config: DenoiserNetworkConfig, schema: ConditionSchema = SCHEMA, **settings: Any) -> DiffusionModelConfig:
    return DiffusionModelConfig((4, 4, 4), schema, DenoiserConfig(config, **settings), SamplingConfig())


@pytest.mark.parametrize("schema", [SCHEMA, ConditionSchema(())], ids=["classes", "unconditional"])
@pytest.mark.parametrize("kind", BY_KIND)
def test_what_is_saved_is_read_bit_for_bit(kind: str, schema: ConditionSchema, tmp_path: Path) -> None:
    model = model_of(BY_KIND[kind], schema)
    denoiser = awoken(create_denoiser(model))
    save_denoiser(denoiser, model, tmp_path)
    found, config = load_denoiser(tmp_path)
    assert config == model
    assert all(value.equal(found.state_dict()[name]) for name, value in denoiser.state_dict().items())


@pytest.mark.parametrize("kind", BY_KIND)
def test_every_sampler_draws_with_it_and_with_a_gaussian_skip(kind: str) -> None:
    denoiser = awoken(create_denoiser(model_of(BY_KIND[kind], skip=GaussianSkipConfig(rank=2))))
    sigmas = noise_levels(SamplingConfig(sigma_max=5), 2, {})
    noise = drawn(1, 4, 4, 4)

    def step_noise(step: int) -> Tensor:
        return drawn(1, 4, 4, 4, purpose=f"step {step}")

    for sampler in SAMPLERS:
        with torch.no_grad():
            drawn_latents = sample_latents(
                denoiser, noise, sigmas, sampler=sampler, noise=step_noise, gaussian=denoiser.gaussian
            )
        assert drawn_latents.shape == noise.shape


def test_the_numbers_of_parameters_are_those_of_the_documentation() -> None:
    """Of latents of four channels, without classes; the table has one line for each network and size."""
    page = (ROOT / "docs" / "networks.md").read_text()
    stated = re.findall(r"^\| `(\w+)` \| `(\w+)` \|.*\| ([\d,]+) \|$", page, re.MULTILINE)
    found = []
    for kind, config in BY_KIND.items():
        for preset, settings in config.PRESETS.items():
            with torch.device("meta"):
                network = created(type(config)(**settings))
            found.append((kind, preset, f"{sum(p.numel() for p in network.parameters()):,}"))
    assert stated == found


REFUSALS: list[tuple[str, Callable[[], object]]] = [
    (r"width must be a multiple of 4 \* heads.*not 20 with 3", lambda: DiTConfig(width=20, heads=3)),
    (r"widths must be multiples of norm_groups 32 .*not 48", lambda: UNet2DConfig(widths=(32, 48))),
    (r"attention must name levels from 0 to 1", lambda: EDM2Config(attention=(2,))),
]


@pytest.mark.parametrize(("message", "create"), REFUSALS, ids=["dit", "unet2d", "edm2"])
def test_settings_that_do_not_fit_are_refused(message: str, create: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message):
        create()


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_text_reaches_every_answer_and_its_gradient_every_parameter(kind: str) -> None:
    cls: type[DenoiserNetwork] = DENOISER_NETWORKS[kind].load()
    assert cls.takes_tokens
    network = awoken(cls.create(BY_KIND[kind], latent_shape=(4, 8, 8), token_channels=5))
    x, noise, tokens = drawn(2, 4, 8, 8), drawn(2, purpose="noise"), drawn(2, 3, 5, purpose="tokens").requires_grad_()
    answer, other = network(x, noise, None, tokens), network(x, noise, None, tokens.detach().roll(1, 0))
    assert (answer - other).abs().amax((1, 2, 3)).min() > 1e-3 * answer.abs().max()
    answer.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert tokens.grad is not None and tokens.grad.any(dim=2).all()
