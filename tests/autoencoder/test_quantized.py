"""The quantized bottleneck: real rounding when it counts, a rate that is the mass of a cell, gradients in training."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from ldm.autoencoder.config import (
    AutoencoderConfig,
    QuantizedConfig,
    ReconstructionObjectiveConfig,
    ResidualNetworkConfig,
)
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.quantized import QuantizedBottleneck
from ldm.batch import ImageBatch
from ldm.compression.codec import Codec
from ldm.compression.fitting import learned_step
from ldm.entropy.config import ENTROPY_MODELS, EntropyModelConfig
from ldm.entropy.logistic_mixture import LogisticMixture
from ldm.randomness import StepRandom
from tests.support.codecs import small_images
from tests.support.losses import losses_of


def quantized_autoencoder(**options: object) -> Autoencoder:
    """At f4, started from small images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResidualNetworkConfig(downsampling=4, width=8, blocks=1)
        config = AutoencoderConfig(network, QuantizedConfig(channels=4, **options))
        autoencoder = create_trainable(config, image=(3, 16, 16))
    autoencoder.initialize(lambda count: small_images(min(count, 64)))
    return autoencoder


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return quantized_autoencoder().eval()


def test_the_rate_is_minus_the_logarithm_of_the_mass_of_a_cell_and_all_cells_together_have_mass_1():
    mixture = LogisticMixture(2).double()
    mixture.initialize(torch.tensor([0.5, -3.0]).double(), torch.tensor([0.1, 20.0]).double())
    cells = torch.tensor([0.05, 1.5]).double().view(-1, 1, 1)
    values = torch.arange(-400, 401).double().view(1, 1, 1, -1) * cells
    nats = mixture.nats(values, cells)
    torch.testing.assert_close((-nats).exp().sum(3), torch.ones(1, 2, 1).double(), rtol=0, atol=1e-6)
    edges = [mixture.cumulative((values + side * cells)[0, :, 0]) for side in (-0.5, 0.5)]
    torch.testing.assert_close((-nats).exp()[0, :, 0], edges[1] - edges[0], rtol=1e-9, atol=1e-12)
    far = torch.full((1, 2, 1, 1), 1e4, dtype=torch.float64, requires_grad=True)
    mixture.nats(far, cells).sum().backward()
    assert far.grad is not None and bool((far.grad > 0).all()) and bool(far.grad.isfinite().all())


def test_the_code_is_really_rounded_where_it_is_not_trained(autoencoder: Autoencoder):
    images, bottleneck = small_images(4, seed=1), autoencoder.bottleneck
    with torch.no_grad():
        symbols = autoencoder.raw_posterior(images).mean / bottleneck.cell
        torch.testing.assert_close(symbols, symbols.round(), rtol=0, atol=1e-4)
        unrounded = autoencoder.unrounded(images).mean / bottleneck.cell
        assert 0.05 < float((unrounded - symbols).abs().max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("relaxation", ["mixed", "noise", "straight-through"])
def test_in_training_steps_entropy_model_and_encoder_all_learn_and_the_rate_counts_in_bits_per_pixel(relaxation: str):
    autoencoder = quantized_autoencoder(relaxation=relaxation)
    config, batch = (
        ReconstructionObjectiveConfig(distance="mse", rate=0.5),
        ImageBatch(small_images(8), torch.zeros(8, dtype=torch.int64)),
    )
    losses = losses_of(ReconstructionObjective(autoencoder, config), batch)
    torch.testing.assert_close(losses.terms["rate"], 0.5 * losses.terms["bits_per_pixel"])
    torch.testing.assert_close(losses.total, losses.terms["mse"] + losses.terms["rate"])
    losses.total.backward()
    for name, parameter in autoencoder.named_parameters():
        # The hidden layer of the prior meets an output of zeros in the first step.
        if "prior.hidden" not in name and (name.startswith("bottleneck") or "linear" in name):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    bottleneck, rng = autoencoder.bottleneck, StepRandom(0, 3, 8)
    moments = autoencoder.moments(batch.images)
    shifts = ((bottleneck(moments, rng).latents - moments) / bottleneck.cell).detach()
    uniform = rng.uniform("quantization", 4, 4, 4) - 0.5
    same = torch.allclose(shifts, uniform, atol=1e-3)
    assert same == (relaxation == "noise") and float(shifts.abs().max()) <= 0.5 + 1e-3


def test_the_rate_in_training_is_near_that_of_the_rounded_code(autoencoder: Autoencoder):
    moments = autoencoder.moments(small_images(32, seed=2))
    rng = StepRandom(0, 0, 32)
    noisy, rounded = (autoencoder.bottleneck(moments, each).costs()["rate"].mean().item() for each in (rng, None))
    assert abs(noisy / rounded - 1) < 0.05


def test_the_priors_by_name_are_the_entropy_models():
    assert list(get_args(get_type_hints(QuantizedConfig)["prior"])) == list(ENTROPY_MODELS)


def test_an_error_of_one_step_is_as_large_in_the_image_in_every_channel_and_channels_are_uncorrelated_at_the_start():
    autoencoder = quantized_autoencoder()
    network, code = autoencoder.network, autoencoder.moments(small_images(64)).detach()
    errors = []
    for channel in range(4):
        moved = code.clone()
        moved[:, channel, 2, 2] += autoencoder.bottleneck.cell[channel].item()
        errors.append((network.decode(moved) - network.decode(code)).square().sum().sqrt())
    assert float((max(errors) / min(errors)).detach()) < 1.05
    correlations = torch.corrcoef(code.transpose(0, 1).flatten(1)) - torch.eye(4)
    assert float(correlations.abs().max()) < 0.1
    ratio = autoencoder.bottleneck.cell.detach().flatten().log().mean().exp() / 0.25
    assert 0.8 < float(ratio) < 1.25


def test_a_codec_of_it_has_the_steps_that_were_learned(autoencoder: Autoencoder):
    bottleneck = autoencoder.bottleneck
    assert isinstance(bottleneck, QuantizedBottleneck)
    config = EntropyModelConfig(kind="factorized")
    codec = Codec.fit(autoencoder, small_images(48).split(16), small_images(6, seed=1), config=config)
    step = learned_step(codec.autoencoder)
    assert step is not None
    steps = torch.tensor(codec.ratios) * step * codec.autoencoder.latent_std.flatten()
    assert (steps / bottleneck.cell.flatten() - 1).abs().max().item() < 0.1
    image = small_images(1, seed=3)
    (file,) = codec.compress(image, step=step)
    with torch.no_grad():
        expected = autoencoder.reconstruct(image)
    error = (codec.decompress([file])[0] - expected[0]).square().mean().sqrt()
    assert float(error) < 0.25 * float((expected - image).square().mean().sqrt())


def test_images_of_one_color_made_every_step_not_a_number():
    autoencoder = create_trainable(
        AutoencoderConfig(ResidualNetworkConfig(downsampling=4, width=8, blocks=1), QuantizedConfig(channels=4)),
        image=(3, 16, 16),
    )
    autoencoder.initialize(lambda count: torch.ones(min(count, 16), 3, 16, 16))
    assert autoencoder.bottleneck.cell.isfinite().all()


def test_an_autoencoder_saved_before_there_were_priors_with_context_did_not_open(tmp_path: Path):
    """Its config does not say which prior it has."""
    saved = quantized_autoencoder(prior="factorized").eval()
    saved.save(tmp_path / "vae")
    described = json.loads((tmp_path / "vae" / "config.json").read_text())
    del described["bottleneck"]["prior"]
    (tmp_path / "vae" / "config.json").write_text(json.dumps(described))
    opened = Autoencoder.load(tmp_path / "vae")
    images = small_images(2)
    assert opened.reconstruct(images).equal(saved.reconstruct(images))
