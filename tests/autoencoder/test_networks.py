"""Every network of the table: images to moments and back, one setting away from each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ldm.autoencoder.config import (
    NETWORKS,
    AutoencoderConfig,
    GaussianConfig,
    IdentityConfig,
    KLNetworkConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    PixelNetworkConfig,
    PretrainedNetworkConfig,
    ResidualNetworkConfig,
    SparseConfig,
    TAESDNetworkConfig,
    TinyNetworkConfig,
    ViTNetworkConfig,
)
from ldm.autoencoder.model import Autoencoder, create, create_pixels, create_trainable
from ldm.autoencoder.saving import to_diffusers
from ldm.config import reader
from ldm.errors import CheckpointError, ConfigError

DOWNSAMPLING = [2, 4, 8, 16, 32]
CONVOLUTIONAL = [KLNetworkConfig, ResidualNetworkConfig, TinyNetworkConfig, TAESDNetworkConfig, PretrainedNetworkConfig]
ANY_SIZE = [*CONVOLUTIONAL, ViTNetworkConfig]
FULLY_CONNECTED = [LinearNetworkConfig, MLPNetworkConfig]
TRAINED = [*ANY_SIZE, *FULLY_CONNECTED]


def pretrained_folder(folder: Path, levels: int = 2, channels: int = 3, **more: Any) -> Path:
    torch.manual_seed(1)
    AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        latent_channels=2,
        **more,
    ).save_pretrained(folder)
    return folder


def config_of(kind: type, factor: int, folder: Path, channels: int = 3) -> Any:
    levels = factor.bit_length() - 1
    if kind is KLNetworkConfig:
        return KLNetworkConfig(widths=(8,) * (levels + 1), norm_groups=4)
    if kind is ResidualNetworkConfig:
        return ResidualNetworkConfig(downsampling=factor, width=8, blocks=1)
    if kind is TinyNetworkConfig:
        return TinyNetworkConfig(width=8, levels=levels, blocks=1)
    if kind is TAESDNetworkConfig:
        return TAESDNetworkConfig(width=8, blocks=(1,) * (levels + 1), latent_norm=True)
    if kind is ViTNetworkConfig:
        return ViTNetworkConfig(
            patch=factor, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2
        )
    if kind is not PretrainedNetworkConfig:
        return MLPNetworkConfig(widths=(8, 6)) if kind is MLPNetworkConfig else kind()
    return PretrainedNetworkConfig(path=str(pretrained_folder(folder, levels + 1, channels)))


def built(network: Any, *, channels: int = 3, size: int = 32, **more: Any) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(network=network, bottleneck=GaussianConfig(channels=2), **more)
    return create_trainable(config, image=(channels, size, size))


def images(channels: int = 3, side: int = 32) -> Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_every_network_is_in_one_of_these_lists():
    assert {kind.kind for kind in (*TRAINED, PixelNetworkConfig)} == set(NETWORKS)


@pytest.mark.parametrize("factor", DOWNSAMPLING)
@pytest.mark.parametrize("kind", ANY_SIZE)
def test_a_network_downsamples_by_its_factor_and_comes_back(kind: type, factor: int, tmp_path: Path):
    autoencoder = built(config_of(kind, factor, tmp_path, 1), channels=1).requires_grad_(False)
    assert (autoencoder.network.downsampling, autoencoder.network.image_channels) == ((factor, factor), 1)
    assert autoencoder.network.encode(images(1)).shape == (2, 4, 32 // factor, 32 // factor)
    assert autoencoder.reconstruct(images(1, 35)).shape == (2, 1, 35, 35)


@pytest.mark.parametrize("kind", FULLY_CONNECTED)
@pytest.mark.parametrize("sides", [(8, 8), (6, 10)])
def test_a_fully_connected_network_has_one_latent_position_and_comes_back(kind: type, sides: tuple[int, int]):
    config = AutoencoderConfig(network=config_of(kind, 0, Path()), bottleneck=GaussianConfig(channels=2))
    autoencoder = create_trainable(config, image=(3, *sides)).requires_grad_(False)
    pictures = torch.rand(2, 3, *sides)
    assert autoencoder.network.downsampling == sides and autoencoder.latent_shape(sides) == (2, 1, 1)
    assert autoencoder.network.encode(pictures).shape == (2, 4, 1, 1)
    assert autoencoder.reconstruct(pictures).shape == pictures.shape


@pytest.mark.parametrize("kind", FULLY_CONNECTED)
def test_a_fully_connected_network_refuses_another_size_in_one_line(kind: type):
    autoencoder = built(config_of(kind, 0, Path()), size=8)
    with pytest.raises(
        ConfigError, match=r"^the fully connected autoencoder\.network\.kind .* size 8 alone, not of 16$"
    ):
        autoencoder.reconstruct(images(3, 16))


def test_pixels_go_through_untouched_and_are_nothing_to_train():
    pictures, autoencoder = images(3, 7), create_pixels((3, 7, 7))
    assert autoencoder.encode(pictures).mean.equal(pictures) and autoencoder.reconstruct(pictures).equal(pictures)
    assert autoencoder.latent_shape((7, 7)) == (3, 7, 7) and not [*autoencoder.network.parameters()]
    with pytest.raises(ConfigError, match=r"^autoencoder\.network\.kind pixels has nothing to train"):
        built(PixelNetworkConfig())


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_the_output_layer_is_the_one_that_makes_the_image(kind: type, tmp_path: Path):
    network = built(config_of(kind, 2, tmp_path)).requires_grad_(False).network
    latents, last = torch.randn(2, 2, 4, 4), network.output_layer
    assert isinstance(last, nn.Conv2d) and any(last is part for part in network.modules())
    before = network.decode(latents)
    shift = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, *network.downsampling)
    last.bias += network.output_gradient(shift)[0, :, 0, 0]
    torch.testing.assert_close(network.decode(latents) - before, shift[..., :1, :1].expand_as(before))


@pytest.mark.parametrize("kind", [ViTNetworkConfig, *FULLY_CONNECTED])
def test_a_shift_of_the_output_layer_is_a_shift_of_the_image_also_where_it_is_no_convolution(kind: type):
    network = built(config_of(kind, 4, Path()), size=8).requires_grad_(False).network
    latents, last = torch.randn(2, 2, *(8 // factor for factor in network.downsampling)), network.output_layer
    before = network.decode(latents)
    last.bias += 3.0
    torch.testing.assert_close(network.decode(latents), before + 3)


@pytest.mark.parametrize("kind", [kind for kind in TRAINED if kind not in (TAESDNetworkConfig, ResidualNetworkConfig)])
def test_the_decoder_in_weight_is_what_the_code_meets_first(kind: type, tmp_path: Path):
    """Scaling its columns up and the code down is the same image; not behind TAESD's clamp. Of a residual network it is
    a copy of two weights."""
    network = built(config_of(kind, 4, tmp_path), size=8).requires_grad_(False).network
    latents, scale = torch.randn(2, 2, *(8 // factor for factor in network.downsampling)), torch.tensor([0.5, 4.0])
    before = network.decode(latents)
    weight = network.decoder_in_weight
    weight *= scale.view(1, 2, *[1] * (weight.ndim - 2))
    assert not network.decode(latents).allclose(before, atol=1e-3)
    torch.testing.assert_close(network.decode(latents / scale.view(2, 1, 1)), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TRAINED)
def test_every_weight_of_a_network_learns(kind: type, tmp_path: Path):
    autoencoder = built(config_of(kind, 4, tmp_path))
    if kind is ResidualNetworkConfig:  # its branches start at zero, and hide what lies before them
        for parameter in autoencoder.network.parameters():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    hidden = torch.arange(64).view(1, 8, 8).expand(2, 8, 8) % 3 == 0 if kind is ViTNetworkConfig else None
    posterior = autoencoder.encode(images(), hidden)
    loss = (autoencoder.decode(posterior.mean, hidden) - images()).square().mean() + posterior.logvar.square().mean()
    loss.backward()
    for name, parameter in autoencoder.named_parameters():
        assert not parameter.requires_grad or bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("kind", ANY_SIZE)
def test_a_size_that_the_downsampling_does_not_divide_is_refused_with_the_setting(kind: type, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data\.size 30 is not divisible by 4.*autoencoder\.network\..*28 or 32"):
        built(config_of(kind, 4, tmp_path), size=30)


@pytest.mark.parametrize("kind", TRAINED)
def test_the_output_variance_waits_for_an_objective_that_learns_it(kind: type, tmp_path: Path):
    autoencoder = built(config_of(kind, 2, tmp_path))
    assert autoencoder.output_logvar.shape == (3, 1, 1) and not autoencoder.output_logvar.requires_grad
    assert "output_logvar" in autoencoder.state_dict()
    before = autoencoder.reconstruct(images())
    autoencoder.output_logvar.fill_(3.0)
    assert torch.equal(autoencoder.reconstruct(images()), before)
    autoencoder.save(tmp_path / "saved")
    torch.testing.assert_close(Autoencoder.load(tmp_path / "saved").reconstruct(images()), before, rtol=1e-4, atol=1e-5)


# ---- tiny


def test_a_tiny_network_has_neither_norm_nor_attention_and_one_width():
    network = built(TinyNetworkConfig(width=8, levels=3, blocks=2)).network
    layers = {type(module) for module in network.modules() if not list(module.children())}
    assert layers == {nn.Conv2d, nn.ReLU, nn.Upsample}
    widths = {m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {8, 3, 4}


def test_a_tiny_decoder_is_local():
    """Far from a changed latent, no pixel changes: large images can be decoded in tiles."""
    network = built(TinyNetworkConfig(width=8, levels=2, blocks=1)).requires_grad_(False).network
    latents = torch.randn(1, 2, 32, 32)
    changed = latents.clone()
    changed[..., 0, 0] += 10
    difference = (network.decode(changed) - network.decode(latents)).abs().amax((0, 1))
    assert difference[:4, :4].max() > 0 and difference[64:].max() == 0 and difference[:, 64:].max() == 0


def test_a_tiny_autoencoder_comes_back_with_its_statistics(tmp_path: Path):
    autoencoder = built(TinyNetworkConfig(width=8, levels=2, blocks=1), channels=4).eval()
    autoencoder.standardize(torch.tensor([0.3, -2.0]), torch.tensor([5.0, 0.2]))
    autoencoder.save(tmp_path / "vae")
    for source in (tmp_path, tmp_path / "vae"):
        found = Autoencoder.load(source)
        assert (
            not found.training
            and found.config == autoencoder.config
            and found.image == autoencoder.image == (4, 32, 32)
        )
        assert all(torch.equal(found.state_dict()[name], value) for name, value in autoencoder.state_dict().items())


@pytest.mark.parametrize("damage", ["config.json", "levels", "weights", "no weights"])
def test_a_damaged_tiny_folder_is_refused_in_one_line(damage: str, tmp_path: Path):
    built(TinyNetworkConfig(width=8, levels=2, blocks=1)).save(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    if damage == "config.json":
        config.write_text(config.read_text()[:20])
    elif damage == "levels":
        config.write_text(config.read_text().replace('"levels": 2', '"levels": 3'))
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        weights.unlink()
    with pytest.raises(CheckpointError) as caught:
        Autoencoder.load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# ---- every network with every bottleneck


COMBINATIONS = [
    (kind, bottleneck)
    for kind in TRAINED
    for bottleneck in (
        GaussianConfig(channels=2),
        IdentityConfig(channels=2),
        SparseConfig(channels=6, k=2),
        SparseConfig(channels=6),
    )
    if kind is not PretrainedNetworkConfig or isinstance(bottleneck, GaussianConfig)
]


@pytest.mark.parametrize(("kind", "bottleneck"), COMBINATIONS)
def test_every_network_and_bottleneck_comes_back_from_disk_with_its_statistics(
    kind: type, bottleneck: Any, tmp_path: Path
):
    torch.manual_seed(0)
    config = AutoencoderConfig(network=config_of(kind, 2, tmp_path / "pretrained"), bottleneck=bottleneck)
    autoencoder, pictures = create_trainable(config, image=(3, 8, 8), classes=0).eval(), images(3, 8)
    channels = bottleneck.channels
    autoencoder.standardize(torch.linspace(-2, 2, channels), torch.linspace(0.5, 3, channels))
    autoencoder.save(tmp_path / "run" / "vae")
    for source in (tmp_path / "run", tmp_path / "run" / "vae"):
        found = Autoencoder.load(source)
        assert not found.training and found.bottleneck.config == bottleneck
        before, after = autoencoder.encode(pictures), found.encode(pictures)
        torch.testing.assert_close(after.mean, before.mean, rtol=1e-4, atol=1e-5)
        assert (after.logvar is None) == (before.logvar is None)
        torch.testing.assert_close(after.variance, before.variance, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.reconstruct(pictures), autoencoder.reconstruct(pictures), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FULLY_CONNECTED)
def test_a_tied_network_comes_back_tied(kind: type, tmp_path: Path):
    network = kind(tied=True) if kind is LinearNetworkConfig else kind(widths=(8,), tied=True)
    config = AutoencoderConfig(network=network, bottleneck=IdentityConfig(channels=3))
    autoencoder = create_trainable(config, image=(3, 8, 8)).eval()
    autoencoder.save(tmp_path)
    found = Autoencoder.load(tmp_path).requires_grad_(False)
    assert found.config == config and found.reconstruct(images(3, 8)).equal(autoencoder.reconstruct(images(3, 8)))
    found.network.encoder[0].weight += 1
    assert found.network.matrix(1).equal(found.network.encoder[0].weight.T)


def test_a_head_comes_back_with_its_classes(tmp_path: Path):
    config = AutoencoderConfig(network=MLPNetworkConfig(widths=(8,)), bottleneck=IdentityConfig(channels=3))
    autoencoder = create_trainable(config, image=(3, 8, 8), classes=5)
    autoencoder.save(tmp_path)
    found = Autoencoder.load(tmp_path)
    assert found.head is not None and found.head.weight.equal(autoencoder.head.weight)


@pytest.mark.parametrize(
    "bottleneck", [IdentityConfig(channels=2), SparseConfig(channels=2, k=1), GaussianConfig(channels=2, noise=0.1)]
)
def test_a_pretrained_network_is_refused_another_bottleneck_in_one_line(bottleneck: Any, tmp_path: Path):
    config = AutoencoderConfig(
        network=PretrainedNetworkConfig(path=str(pretrained_folder(tmp_path))), bottleneck=bottleneck
    )
    with pytest.raises(ConfigError, match=r"^autoencoder\.network\.kind pretrained needs .*gaussian, with noise null$"):
        create_trainable(config, image=(3, 32, 32))


# ---- from what exists


def test_a_pretrained_network_starts_as_the_autoencoder_it_names(tmp_path: Path):
    mean, std = [0.5, -1.0], [2.0, 4.0]
    folder = pretrained_folder(tmp_path, scaling_factor=0.5, latents_mean=mean, latents_std=std)
    autoencoder, kl = (
        built(PretrainedNetworkConfig(path=str(folder))).eval(),
        AutoencoderKL.from_pretrained(folder).eval(),
    )
    with torch.no_grad():
        raw, expected = kl.encode(images()).latent_dist.mean, kl.decode(kl.encode(images()).latent_dist.mean).sample
        scaled = (raw - torch.tensor(mean).view(2, 1, 1)) * 0.5 / torch.tensor(std).view(2, 1, 1)
        torch.testing.assert_close(autoencoder.encode(images()).mean, scaled, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(autoencoder.decode(scaled), expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_another_length_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="instead of 2 numbers"):
        Autoencoder.load(pretrained_folder(tmp_path, latents_mean=[0.0] * 4, latents_std=[1.0] * 4))


def test_channels_that_are_not_those_of_the_file_are_refused_with_both(tmp_path: Path):
    network = PretrainedNetworkConfig(path=str(pretrained_folder(tmp_path)))
    with pytest.raises(ConfigError, match=r"data\.channels is 1, but .*has 3"):
        built(network, channels=1)
    config = AutoencoderConfig(network=network, bottleneck=GaussianConfig(channels=4))
    with pytest.raises(ConfigError, match=r"autoencoder\.bottleneck\.channels is 4, but .*has 2"):
        create(config, image=(3, 32, 32))


def test_a_path_that_has_gone_is_named_with_its_setting(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"^autoencoder\.network\.path: .*gone does not exist"):
        built(PretrainedNetworkConfig(path=str(tmp_path / "gone")))


@pytest.mark.parametrize("network", [TinyNetworkConfig(width=8, levels=2, blocks=1), ResidualNetworkConfig(width=8)])
def test_a_network_that_brings_its_code_is_nothing_to_start_a_pretrained_network_from(network: Any, tmp_path: Path):
    """Whatever the bottleneck is: with its noise set, the refusal was that a gaussian one needs a gaussian one."""
    built(network).save(tmp_path)
    for bottleneck in (GaussianConfig(channels=2), GaussianConfig(channels=2, noise=0.1)):
        config = AutoencoderConfig(PretrainedNetworkConfig(path=str(tmp_path)), bottleneck)
        with pytest.raises(CheckpointError, match=rf"its network is {network.kind}, and .* begins with one of kl"):
            create(config, image=(3, 32, 32))


def test_freezing_the_encoder_leaves_the_latents_without_gradient(tmp_path: Path):
    autoencoder = built(PretrainedNetworkConfig(path=str(pretrained_folder(tmp_path))), freeze_encoder=True)
    learning = {name.split(".")[1] for name, p in autoencoder.named_parameters() if p.requires_grad}
    assert learning == {"decoder", "post_quant_conv"}
    assert not autoencoder.encode(images()).mean.requires_grad


@pytest.mark.parametrize("kind", [kind for kind in TRAINED if kind is not PretrainedNetworkConfig])
def test_freezing_the_encoder_of_a_new_network_is_refused(kind: type, tmp_path: Path):
    instead = r"use network\.encoder_lr_factor 0" if kind is ResidualNetworkConfig else "use kind pretrained"
    with pytest.raises(ValueError, match=f"^freeze_encoder .*{instead}") as refused:
        built(config_of(kind, 2, tmp_path), freeze_encoder=True)
    assert "\n" not in str(refused.value)
    values = reader.to_dict(AutoencoderConfig(network=config_of(kind, 2, tmp_path)))
    with pytest.raises(ConfigError, match=f"freeze_encoder .*{instead}"):
        reader.from_dict(AutoencoderConfig, values | {"freeze_encoder": True})


def test_sample_size_of_the_exported_config_is_that_of_the_training_images():
    """diffusers takes its tiles from it; its own default is 32, whatever the autoencoder was trained on."""
    config = AutoencoderConfig(network=KLNetworkConfig(widths=(8, 8), norm_groups=4))
    autoencoder = create_trainable(config, image=(3, 16, 24))
    assert to_diffusers(autoencoder).config.sample_size == 24
