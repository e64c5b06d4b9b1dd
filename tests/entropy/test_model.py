"""Entropy models: exact networks, symbols that come back, payloads of the length that the model says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.entropy.config import ENTROPY_MODELS, EntropyModelConfig
from ldm.entropy.fit import ContextNetwork, bits_of, fit, mask_of
from ldm.entropy.integer_network import BITS, SCALES, inputs_of
from ldm.entropy.model import EntropyModel
from ldm.entropy.tables import POSITIONS
from ldm.errors import CheckpointError
from tests.support.codecs import integer_model, smooth_latents

KINDS = list(ENTROPY_MODELS)
CONTEXT = [kind for kind in KINDS if ENTROPY_MODELS[kind].has_context]


@pytest.fixture(scope="module")
def models() -> dict[str, EntropyModel]:
    latents = smooth_latents(64)
    return {kind: fit(latents, EntropyModelConfig(kind=kind, width=8, steps=40), [1.0, 0.5]) for kind in KINDS}


def quantized(latent: torch.Tensor, steps: list[int]) -> np.ndarray:
    return np.rint(latent.numpy() * POSITIONS / np.reshape(steps, (-1, 1, 1))).astype(np.int64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [3, 64, 300])
def test_symbols_come_back_and_the_payload_is_as_long_as_the_model_says(
    models: dict[str, EntropyModel], kind: str, step: int
) -> None:
    (latent,) = smooth_latents(1, side=21, seed=5)
    latent[0, 3, 4] = 40.0  # beyond every table
    symbols = quantized(latent, [step, step // 2])
    payload = models[kind].encode(symbols, [step, step // 2])
    assert (models[kind].decode(payload, symbols.shape, [step, step // 2]) == symbols).all()
    bits = models[kind].bits(symbols, [step, step // 2])
    assert abs(8 * len(payload) - bits) <= 0.01 * bits + 64


def test_context_costs_less_than_none_where_neighbors_resemble_each_other(models: dict[str, EntropyModel]) -> None:
    latents = smooth_latents(8, seed=9)
    bits = {
        kind: sum(model.bits(quantized(each, [64, 64]), [64, 64]) for each in latents) for kind, model in models.items()
    }
    assert bits["channel-checkerboard"] < 0.9 * bits["factorized"]
    assert max(bits["channel"], bits["checkerboard"]) < 0.97 * bits["factorized"]


@pytest.mark.parametrize("kind", CONTEXT)
def test_a_network_sees_in_training_what_it_sees_when_it_codes(kind: str) -> None:
    """Of a pass, the masked window of the whole latent is the window of what was coded before."""
    facts, config = ENTROPY_MODELS[kind], EntropyModelConfig(kind=kind, radius=2)
    mask = mask_of(config, 3)
    whole = np.random.default_rng(0).integers(1, 100, (3, 6, 7))
    known = np.zeros_like(whole)
    rows, columns = np.divmod(np.arange(42), 7)
    for members in facts.passes(3):
        for channel, parity in members:
            here = (rows + columns) % facts.parities == parity
            seen = inputs_of(known, 5, 2)[here]
            assert (seen == (inputs_of(whole, 5, 2) * mask[channel * facts.parities + parity])[here]).all()
        for channel, parity in members:
            here = ((rows + columns) % facts.parities == parity).reshape(6, 7)
            known[channel][here] = whole[channel][here]
    assert (known == whole).all()


def test_predictions_are_those_of_integers_without_bounds() -> None:
    """In whatever order float64 sums are taken: the same as in Python's integers, and in reversed order."""
    network = integer_model("checkerboard", 2).network
    assert network is not None
    rng = np.random.default_rng(0)
    inputs = rng.integers(-2047, 2048, (50, network.hidden.shape[2])).astype(np.float64)
    mean, scale = network.predict(1, inputs)
    for row, found in zip(inputs.astype(int).tolist(), zip(mean.tolist(), scale.tolist(), strict=True), strict=True):
        hidden = [
            min(max(sum(map(int.__mul__, row, weights)) + bias >> BITS, 0), 2**14)
            for weights, bias in zip(
                network.hidden[1].astype(int).tolist(), network.hidden_bias[1].astype(int).tolist(), strict=True
            )
        ]
        sums = [
            sum(map(int.__mul__, row, linear)) + sum(map(int.__mul__, hidden, output)) + bias
            for linear, output, bias in zip(
                *(part[1].astype(int).tolist() for part in (network.linear, network.output, network.output_bias)),
                strict=True,
            )
        ]
        assert found[0] == min(max(sums[0] >> BITS, -2047), 2047)
        assert found[1] == min(max(sums[1] >> BITS + 8, 0), SCALES - 1)
    backwards = replace(network, hidden=network.hidden[..., ::-1].copy(), linear=network.linear[..., ::-1].copy())
    for one, other in zip(network.predict(1, inputs), backwards.predict(1, inputs[:, ::-1].copy()), strict=True):
        assert (one == other).all()


def test_rounding_the_trained_network_hardly_moves_its_predictions() -> None:
    config = EntropyModelConfig(kind="channel", width=8, steps=1)
    network = ContextNetwork(config, 2)
    with torch.no_grad():
        for parameter in (network.linear, network.output):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 4)
    rows = inputs_of(np.random.default_rng(0).integers(-500, 500, (2, 6, 6)), 64, 1)
    with torch.no_grad():
        mean, scale = network(torch.from_numpy(rows / POSITIONS).float()[None], [1])
    masked = rows * mask_of(config, 2)[1]
    found = network.to_integers().predict(1, masked)
    assert np.abs(found[0] - mean[0].numpy() * POSITIONS).max() < 4
    assert np.abs(found[1] - scale[0].numpy()).max() < 0.6


def test_bits_in_training_are_those_of_a_logistic_distribution() -> None:
    """Untrained, every element is logistic with mean 0 and standard deviation 1."""
    network = ContextNetwork(EntropyModelConfig(kind="channel", width=4), 2)
    symbols = torch.tensor([[[[0.0, 3.0]], [[-2.0, 40.0]]]])
    steps = torch.tensor([128.0, 64.0]).view(-1, 1, 1)
    scale = 3**0.5 / torch.pi
    edges = [(symbols.double() + side) * steps / POSITIONS / scale for side in (-0.5, 0.5)]
    exact = -torch.log2(edges[1].sigmoid() - edges[0].sigmoid() + 1e-7).mean()
    assert abs(float(bits_of(network, symbols * steps, steps).detach()) - float(exact)) < 2e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_the_same_once_its_numbers_are_read_again(models: dict[str, EntropyModel], kind: str) -> None:
    model = models[kind]
    again = EntropyModel.from_tensors(model.config, 2, model.tensors())
    symbols = quantized(smooth_latents(1, seed=3)[0], [40, 40])
    assert again.encode(symbols, [40, 40]) == model.encode(symbols, [40, 40])
    with pytest.raises(CheckpointError):
        EntropyModel.from_tensors(model.config, 3, model.tensors())
    with pytest.raises(CheckpointError, match="integers called"):
        EntropyModel.from_tensors(model.config, 2, {"values": model.tables.values})


def test_a_network_that_cannot_be_summed_exactly_is_refused(models: dict[str, EntropyModel]) -> None:
    tensors = models["channel"].tensors()
    for name, change, words in (
        ("hidden", lambda values: values + 2**40, "too large"),
        ("hidden", lambda values: values[:, :, 1:], "shape"),
        ("output_bias", lambda values: values + 2**53, "too large"),
    ):
        with pytest.raises(CheckpointError, match=words):
            EntropyModel.from_tensors(models["channel"].config, 2, {**tensors, name: change(tensors[name])})
