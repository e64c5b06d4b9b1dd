"""Each penalty is what its paper says, and its gradient reaches what it should and nothing else."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.autoencoder.bottleneck import IdentityBottleneck
from ldm.autoencoder.config import (
    DISTANCES,
    AutoencoderConfig,
    GaussianConfig,
    IdentityConfig,
    KLNetworkConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    ReconstructionObjectiveConfig,
    SparseConfig,
    TinyNetworkConfig,
    ViTNetworkConfig,
)
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.penalty import (
    AuxKLoss,
    ClassificationLoss,
    JacobianPenalty,
    KLSparsity,
    L1Penalty,
    L2Penalty,
    PenaltiesConfig,
    bernoulli_kl,
)
from ldm.batch import ImageBatch
from ldm.corruption import Mask
from ldm.errors import ConfigError
from tests.support.losses import checked_objective, losses_of
from tests.support.runs import train_alike
from tests.support.scripts import metrics

MLP = MLPNetworkConfig(widths=(10,), activation="tanh")
KL = KLNetworkConfig(widths=(4, 8), norm_groups=2)  # with attention in the middle
TINY = TinyNetworkConfig(width=4, levels=1, blocks=1)
VIT = ViTNetworkConfig(patch=2, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2)
NETWORKS = pytest.mark.parametrize("network", [LinearNetworkConfig(), MLP, KL, TINY, VIT], ids=lambda each: each.kind)


def of(
    network: Any, bottleneck: Any, *, size: int = 4, classes: int = 0, seed: int = 0, **objective: Any
) -> tuple[ReconstructionObjective, ImageBatch]:
    """An objective in double precision, of penalties and other parts of its config, and a batch."""
    torch.manual_seed(seed)
    config = AutoencoderConfig(network=network, bottleneck=bottleneck)
    autoencoder = create_trainable(config, image=(2, size, size), classes=classes).double()
    names = {name: objective.pop(name) for name in list(objective) if name in PenaltiesConfig.__dataclass_fields__}
    found = checked_objective(
        autoencoder, ReconstructionObjectiveConfig(penalties=PenaltiesConfig(**names), **objective), classes=classes
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 2, size, size, generator=generator, dtype=torch.float64) * 2 - 1
    return found, ImageBatch(images, torch.arange(6) % max(classes, 1))


def reached(objective: ReconstructionObjective, term: Tensor) -> set[str]:
    """The parameters of the autoencoder that a term alone has a gradient for."""
    objective.zero_grad()
    term.backward()
    named = objective.autoencoder.named_parameters()
    return {name for name, each in named if each.grad is not None and bool((each.grad != 0).any())}


def encoder_of(objective: ReconstructionObjective) -> set[str]:
    sides = ("network.encoder.", "network.quant_conv.")
    return {name for name, _ in objective.autoencoder.named_parameters() if name.startswith(sides)}


# ---- what each is


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_unit_that_never_or_always_fires_has_a_finite_kl(dtype):
    rates = torch.tensor([0.0, 1.0], dtype=dtype)
    assert bool(bernoulli_kl(0.05, rates).isfinite().all()) and bool((bernoulli_kl(0.05, rates) > 0.5).all())


@NETWORKS
def test_l1_is_the_sum_over_the_code_per_image_value(network):
    objective, batch = of(network, IdentityConfig(channels=3), l1=L1Penalty(weight=0.7))
    code = objective.autoencoder.encode(batch.images).mean
    expected = 0.7 * code.abs().flatten(1).sum(1).mean() / batch.images[0].numel()
    torch.testing.assert_close(losses_of(objective, batch).terms["l1_sparsity"], expected, rtol=1e-9, atol=0)


@NETWORKS
def test_the_rate_of_a_unit_is_its_mean_over_batch_and_positions(network):
    objective, batch = of(
        network, SparseConfig(channels=5, activation="sigmoid"), kl_sparsity=KLSparsity(weight=2.0, rate=0.1)
    )
    code = objective.autoencoder.encode(batch.images).mean
    rates = Bernoulli(code.transpose(0, 1).flatten(1).mean(1))
    expected = (
        2 * kl_divergence(Bernoulli(torch.tensor(0.1, dtype=torch.float64)), rates).sum() / batch.images[0].numel()
    )
    torch.testing.assert_close(losses_of(objective, batch).terms["kl_sparsity"], expected, rtol=1e-6, atol=0)


@NETWORKS
def test_l2_is_the_sum_of_squares_of_all_matrices_and_of_no_bias(network):
    objective, batch = of(network, IdentityConfig(channels=3), l2=L2Penalty(weight=0.01))
    parameters = dict(objective.autoencoder.network.named_parameters())
    matrices = {name: each for name, each in parameters.items() if each.ndim > 1}
    term = losses_of(objective, batch).terms["l2"]
    expected = 0.01 * sum(float(each.detach().square().sum()) for each in matrices.values())
    assert term.item() == pytest.approx(expected, rel=1e-9)
    assert reached(objective, term) == {f"network.{name}" for name in matrices}
    for each in matrices.values():
        torch.testing.assert_close(each.grad, 0.02 * each.detach(), rtol=1e-9, atol=0)


def test_classification_is_the_cross_entropy_of_a_linear_layer_on_the_mean_code():
    for network in (MLP, KL, VIT):
        objective, batch = of(
            network, IdentityConfig(channels=3), classes=4, classification=ClassificationLoss(weight=0.3)
        )
        head = objective.autoencoder.head
        logits = objective.autoencoder.encode(batch.images).mean.mean((2, 3)) @ head.weight.T + head.bias
        expected = -0.3 * logits.log_softmax(1)[torch.arange(6), batch.labels].mean()
        torch.testing.assert_close(losses_of(objective, batch).terms["classification"], expected, rtol=1e-9, atol=0)


def test_the_total_is_the_sum_of_the_distance_and_all_penalties():
    sparse = SparseConfig(channels=5, activation="sigmoid")
    penalties = {
        "l1": L1Penalty(),
        "kl_sparsity": KLSparsity(),
        "jacobian": JacobianPenalty(),
        "l2": L2Penalty(),
        "aux_k": AuxKLoss(),
    }
    objective, batch = of(MLP, sparse, classes=2, classification=ClassificationLoss(), distance="mse", **penalties)
    found = losses_of(objective, batch)
    expected = sum(found.terms[penalty.log_name or name] for name, penalty in penalties.items())
    expected = expected + found.terms["classification"] + found.terms["mse"]
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)


# ---- what each trains


@NETWORKS
@pytest.mark.parametrize("name", ["l1", "kl_sparsity", "jacobian"])
def test_a_penalty_on_the_code_trains_all_of_the_encoder_and_nothing_of_the_decoder(network, name):
    sparse = SparseConfig(channels=5, activation="sigmoid")
    penalty = {"l1": L1Penalty(), "kl_sparsity": KLSparsity(), "jacobian": JacobianPenalty()}[name]
    objective, batch = of(network, sparse if name == "kl_sparsity" else IdentityConfig(channels=3), **{name: penalty})
    term = losses_of(objective, batch).terms[penalty.log_name or name]
    found, expected = reached(objective, term), encoder_of(objective)
    if name == "jacobian":  # of an affine or normalized map, some biases move no derivative
        expected = {each for each in expected if not each.endswith("bias")}
        found = {each for each in found if not each.endswith("bias")}
    assert found == expected


def test_classification_trains_head_and_encoder_and_nothing_of_the_decoder():
    objective, batch = of(MLP, IdentityConfig(channels=3), classes=3, classification=ClassificationLoss())
    found = reached(objective, losses_of(objective, batch).terms["classification"])
    assert found == encoder_of(objective) | {"head.weight", "head.bias"}


@NETWORKS
def test_a_penalty_leaves_the_distance_as_it_was(network):
    with_penalty, batch = of(
        network, IdentityConfig(channels=3), l1=L1Penalty(), jacobian=JacobianPenalty(), distance="mse"
    )
    without, _ = of(network, IdentityConfig(channels=3), distance="mse")
    found, plain = losses_of(with_penalty, batch), losses_of(without, batch)
    torch.testing.assert_close(found.terms["mse"], plain.terms["mse"], rtol=1e-12, atol=0)
    assert "l1_sparsity" not in plain.terms


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_penalty_called_like_the_distance_does_not_take_its_place_in_the_log(distance):
    """The terms of the log sum up to the loss, each under a name of its own."""
    penalties = {"l1": L1Penalty(), "l2": L2Penalty(), "jacobian": JacobianPenalty()}
    objective, batch = of(MLP, GaussianConfig(channels=3), distance=distance, kl=1.0, **penalties)
    losses = losses_of(objective, batch)
    parts = {name: losses.terms[name] for name in (distance, "kl", "l1_sparsity", "l2", "jacobian")}
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(), losses.total, rtol=1e-12, atol=0)
    plain, _ = of(MLP, GaussianConfig(channels=3), distance=distance, kl=1.0)
    torch.testing.assert_close(parts[distance], losses_of(plain, batch).terms[distance], rtol=1e-12, atol=0)


# ---- Jacobian


def exact(objective: ReconstructionObjective, images: Tensor) -> Tensor:
    """‖J‖² of the standardized code per element of it, from the Jacobian formed in full, the mean over the images."""
    encode = lambda pixels: objective.autoencoder.encode(pixels[None]).mean[0]  # noqa: E731
    with sdpa_kernel(SDPBackend.MATH):
        code = objective.autoencoder.encode(images).mean
        jacobians = torch.stack([torch.func.jacrev(encode)(image) for image in images])  # n c h w C H W
    std = code.transpose(0, 1).flatten(1).std(1, correction=0).view(1, -1, 1, 1)
    squares = jacobians.square().sum((4, 5, 6)) / std.square()
    return (squares.flatten(1).sum(1) / code[0].numel()).mean()


@NETWORKS
@pytest.mark.parametrize(
    "bottleneck", [IdentityConfig(channels=3), GaussianConfig(channels=3)], ids=lambda each: each.kind
)
def test_the_jacobian_penalty_without_probes_is_that_of_the_jacobian_formed_in_full(network, bottleneck):
    objective, batch = of(network, bottleneck, jacobian=JacobianPenalty(weight=0.5, probes=0))
    found = losses_of(objective, batch).terms["jacobian"]
    torch.testing.assert_close(found, 0.5 * exact(objective, batch.images), rtol=1e-6, atol=0)


def test_random_probes_are_right_on_average_also_of_a_code_with_positions():
    objective, batch = of(TINY, IdentityConfig(channels=3), jacobian=JacobianPenalty(weight=1.0, probes=1))
    expected = exact(objective, batch.images).item()
    found = torch.tensor([losses_of(objective, batch, step).terms["jacobian"].item() for step in range(200)])
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(200) and found.std() > 0


@NETWORKS
def test_the_gradient_of_the_jacobian_penalty_is_the_derivative_of_its_value(network):
    """By finite differences, with attention too."""
    objective, batch = of(network, IdentityConfig(channels=3), jacobian=JacobianPenalty(weight=1.0, probes=2))
    objective.zero_grad()
    losses_of(objective, batch).terms["jacobian"].backward()
    parameters = [each for each in objective.autoencoder.parameters() if each.grad is not None]
    directions = [torch.randn(each.shape, dtype=torch.float64) for each in parameters]
    slope = sum((each.grad * way).sum() for each, way in zip(parameters, directions, strict=True))
    values, width = [], 1e-6
    for sign in (1, -1):
        with torch.no_grad():
            for each, way in zip(parameters, directions, strict=True):
                each += sign * width * way
        values.append(losses_of(objective, batch).terms["jacobian"].detach())
        with torch.no_grad():
            for each, way in zip(parameters, directions, strict=True):
                each -= sign * width * way
    torch.testing.assert_close((values[0] - values[1]) / (2 * width), slope, rtol=1e-4, atol=1e-7)


def test_the_jacobian_penalty_works_with_hidden_patches():
    objective, batch = of(
        VIT, IdentityConfig(channels=3), corruption=Mask(fraction=0.5), jacobian=JacobianPenalty(probes=0)
    )
    found = losses_of(objective, batch)
    found.total.backward()
    assert bool(found.total.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in objective.autoencoder.parameters() if p.grad is not None)


class Foreign(AutoencoderNetwork):
    """A network with one module more than is good for a Jacobian."""

    downsampling, image_channels = (1, 1), 2

    def __init__(self, module: nn.Module):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(2, 3, 1), module)
        self.decoder = nn.Conv2d(3, 2, 1)

    @property
    def output_layer(self) -> nn.Module:
        return self.decoder

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.encoder(images)

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.decoder(latents)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.BatchNorm2d(3), "batch norm"),
        (nn.SyncBatchNorm(3), "batch norm"),
        (nn.Dropout(0.1), "dropout"),
        (nn.Dropout2d(0.1), "dropout"),
        (nn.AlphaDropout(0.1), "dropout"),
        (nn.GroupNorm(1, 3), None),
        (nn.Dropout(0.0), None),
    ],
)
def test_a_network_that_has_no_jacobian_of_one_image_is_refused(module, says):
    autoencoder = Autoencoder(Foreign(module), IdentityBottleneck(IdentityConfig(channels=3)))
    config = ReconstructionObjectiveConfig(penalties=PenaltiesConfig(jacobian=JacobianPenalty()))
    if says is None:
        checked_objective(autoencoder, config)
        return
    with pytest.raises(ConfigError, match=rf"^objective\.penalties\.jacobian .*{says}.*$") as refused:
        checked_objective(autoencoder, config)
    assert "\n" not in str(refused.value)


# ---- AuxK: dead units


def with_dead(dead: list[int], *, units: int = 32) -> tuple[ReconstructionObjective, ImageBatch]:
    """A sparse autoencoder whose units all fire, after a long time in which these have not."""
    bottleneck = SparseConfig(channels=6, k=2, dead_after=10)
    objective, batch = of(LinearNetworkConfig(), bottleneck, aux_k=AuxKLoss(weight=1.0, units=units), distance="mse")
    objective.autoencoder.network.encoder[0].bias.data += 3.0
    objective.autoencoder.bottleneck.last_active.fill_(99)
    objective.autoencoder.bottleneck.last_active[dead] = 0
    return objective, batch


def test_aux_k_trains_dead_units_alone():
    objective, batch = with_dead([1, 4])
    term = losses_of(objective, batch, 100).terms["aux_k"]
    assert reached(objective, term) == {
        "network.encoder.0.weight",
        "network.encoder.0.bias",
        "network.decoder.0.weight",
    }
    network = objective.autoencoder.network
    of_units = (network.encoder[0].weight.grad != 0).any(1)
    of_columns = (network.decoder[0].weight.grad.abs() > 1e-12).any(0)
    assert of_units.nonzero().flatten().tolist() == of_columns.nonzero().flatten().tolist() == [1, 4]


def test_aux_k_trains_nothing_where_no_unit_is_dead():
    objective, batch = with_dead([])
    term = losses_of(objective, batch, 100).terms["aux_k"]
    assert not reached(objective, term)


def test_aux_k_costs_nothing_where_no_unit_is_dead():
    objective, batch = with_dead([])
    assert losses_of(objective, batch, 100).terms["aux_k"] == 0


def test_aux_k_is_the_error_of_the_residual_over_its_own_square():
    objective, batch = with_dead([0, 3, 5], units=2)
    found = losses_of(objective, batch, 100)
    network = objective.autoencoder.network
    values = network.encode(batch.images).flatten(1)
    kept = torch.zeros_like(values)
    for row, image in enumerate(values):
        for unit in sorted([0, 3, 5], key=lambda unit: -image[unit].abs())[:2]:
            kept[row, unit] = image[unit]
    columns = network.decoder[0].weight / network.decoder[0].weight.norm(dim=0)
    rest = (batch.images - found.outputs["reconstruction"]).flatten(1)
    expected = (rest - kept @ columns.T).square().mean() / rest.square().mean()
    torch.testing.assert_close(found.terms["aux_k"], expected, rtol=1e-9, atol=0)


def test_aux_k_trains_a_unit_that_is_below_0_everywhere():
    """ReLU in its place would have no gradient there, and the unit would stay dead for good."""
    objective, batch = with_dead([1])
    network = objective.autoencoder.network
    network.encoder[0].bias.data[1] = -4.0
    assert network.encode(batch.images)[:, 1].max() < 0
    losses_of(objective, batch, 100).terms["aux_k"].backward()
    assert bool(network.encoder[0].weight.grad[1].any()) and not network.encoder[0].weight.grad[[0, 2, 3, 4, 5]].any()


def test_aux_k_brings_a_dead_unit_back():
    """Adam on the whole loss: without the penalty, a unit that no image reaches stays dead."""
    dead = {}
    for name, penalties in (("with", {"aux_k": AuxKLoss(weight=1.0)}), ("without", {})):
        objective, batch = of(
            LinearNetworkConfig(), SparseConfig(channels=6, dead_after=5), distance="mse", **penalties
        )
        objective.autoencoder.network.encoder[0].bias.data[:2] = -2.0
        optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
        for step in range(1, 121):
            optimizer.zero_grad()
            found = losses_of(objective, batch, step)
            found.total.backward()
            optimizer.step()
            objective.autoencoder.bottleneck.update_usage(found.outputs["code"], step)
        dead[name] = objective.autoencoder.bottleneck.dead_units(121)[:2].tolist()
    assert dead == {"with": [False, False], "without": [True, True]}


# ---- what does not fit


@pytest.mark.parametrize(
    ("bottleneck", "penalty", "says"),
    [
        (
            IdentityConfig(channels=3),
            {"kl_sparsity": KLSparsity()},
            "objective.penalties.kl_sparsity needs autoencoder.bottleneck.kind sparse",
        ),
        (SparseConfig(channels=5), {"kl_sparsity": KLSparsity()}, "activation sigmoid"),
        (GaussianConfig(channels=3), {"kl_sparsity": KLSparsity()}, "activation sigmoid"),
        (IdentityConfig(channels=3), {"aux_k": AuxKLoss()}, "objective.penalties.aux_k needs"),
        (GaussianConfig(channels=3), {"aux_k": AuxKLoss()}, "kind sparse"),
        (IdentityConfig(channels=3), {"classification": ClassificationLoss()}, "at least two classes"),
    ],
)
def test_a_penalty_that_does_not_fit_is_refused_in_one_line_with_its_name(bottleneck, penalty, says):
    with pytest.raises(ConfigError) as refused:
        of(MLP, bottleneck, **penalty)
    message = str(refused.value)
    assert says in message and "\n" not in message and message.startswith(f"objective.penalties.{next(iter(penalty))} ")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *(
            (kind, {"weight": w})
            for kind in (L1Penalty, KLSparsity, JacobianPenalty, AuxKLoss, L2Penalty, ClassificationLoss)
            for w in (0, -1.0)
        ),
        *((L1Penalty, {"weight": weight}) for weight in (math.nan, math.inf)),
        *((KLSparsity, {"rate": rate}) for rate in (0.0, 1.0, -0.1, 1.1, math.nan)),
        (JacobianPenalty, {"probes": -1}),
        *((AuxKLoss, {"units": units}) for units in (0, -1)),
    ],
)
def test_a_setting_without_a_meaning_is_refused_by_name(kind, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))) as refused:
        kind(**wrong)
    assert "\n" not in str(refused.value)


# ---- several processes


@pytest.mark.parametrize(
    ("bottleneck", "penalties"),
    [
        ("{kind: sparse, channels: 12, activation: sigmoid}", {"kl_sparsity": 3, "jacobian": 0.1}),
        ("{kind: sparse, channels: 24, k: 2, dead_after: 1}", {"aux_k": 1}),
    ],
    ids=["kl_sparsity and jacobian", "aux_k"],
)
def test_two_processes_equal_one_in_float64(
    bottleneck: str, penalties: dict[str, float], shapes_folder: Path, tmp_path: Path
):
    weighted = json.dumps({name: {"weight": weight} for name, weight in penalties.items()})
    file = tmp_path / "config.yaml"
    file.write_text(f"""
data: {{kind: folder, path: "{shapes_folder}", size: 8}}
autoencoder: {{network: {{kind: mlp, widths: [16]}}, bottleneck: {bottleneck}}}
objective: {{distance: mse, penalties: {weighted}}}
optim: {{lr: 1e-2, warmup: 1, clip: 1e6}}
run: {{steps: 12, batch_size: 8, log_every: 1, checkpoint_every: 100, sample_every: 100, precision: fp32}}
""")
    train_alike(tmp_path, "train_vae", file)
    for name in penalties:
        terms = [[line[name] for line in metrics(tmp_path / run) if name in line] for run in ("one", "two")]
        assert terms[0] == pytest.approx(terms[1], rel=1e-6) and len(terms[0]) == 12
    assert "aux_k" not in penalties or any(line.get("dead_fraction", 0) > 0 for line in metrics(tmp_path / "one"))
