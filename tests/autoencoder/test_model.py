"""The autoencoder owns its statistics, works at any size, and is diffusers' own AutoencoderKL on disk."""

import io
import json
import os
import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.autoencoder.config import NETWORKS, AutoencoderConfig, GaussianConfig, KLNetworkConfig
from ldm.autoencoder.formats import diffusers
from ldm.autoencoder.model import Autoencoder, create_trainable, padded
from ldm.config import reader
from ldm.errors import CheckpointError, ConfigError

MEAN, STD = torch.tensor([0.3, -2.0]), torch.tensor([5.0, 0.2])
WEIGHTS = "diffusion_pytorch_model.safetensors"


def small(channels: int = 3, levels: int = 3, seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    network = KLNetworkConfig(widths=(8,) * levels, norm_groups=4)
    config = AutoencoderConfig(network=network, bottleneck=GaussianConfig(channels=2))
    return create_trainable(config, image=(channels, 16, 16)).eval().requires_grad_(False)


def pretrained_kl(**more: object) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=2,
        **more,
    ).requires_grad_(False)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ---- what it is made of


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_the_network_has_the_parameters_of_an_autoencoder_kl_by_name_and_shape(channels: int, levels: int):
    widths = (8, 16, 16, 24, 32)[:levels]
    config = KLNetworkConfig(widths=widths, blocks=2, norm_groups=4)
    with torch.device("meta"):
        network = NETWORKS["kl"].load()
        ours = network(config, image=(channels, 64, 64), encoder_channels=8, latent_channels=4)
        theirs = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=widths,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=4,
        )
    shapes = [{name: value.shape for name, value in module.state_dict().items()} for module in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.downsampling == (2 ** (levels - 1),) * 2


@pytest.mark.parametrize(("size", "offered"), [(18, "use 16 or 20"), (3, "use 4"), (15, "use 12 or 16")])
def test_a_size_that_the_downsampling_does_not_divide_is_refused_with_the_nearest_ones(size: int, offered: str):
    with pytest.raises(ConfigError) as caught:
        create_trainable(AutoencoderConfig(), image=(3, size, size))
    message = str(caught.value)
    assert f"data.size {size}" in message and "autoencoder.network.widths" in message
    assert message.endswith(offered) and "\n" not in message


def test_a_size_with_two_sides_is_refused_as_it_was_written():
    for sides, offered in (((16, 18), r"use 16 or \[16, 20\]"), ((3, 30), r"use \[4, 32\]")):
        with pytest.raises(ConfigError, match=rf"^data\.size \[{sides[0]}, {sides[1]}\] is not .*{offered}$"):
            create_trainable(AutoencoderConfig(), image=(3, *sides))


def test_norm_groups_that_do_not_divide_a_width_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^norm_groups 16 does not divide 24, one of widths$"):
        KLNetworkConfig(widths=(16, 24), norm_groups=16)
    values = reader.to_dict(AutoencoderConfig())
    values["network"]["widths"] = [16, 24]
    with pytest.raises(ConfigError, match=r"^network: norm_groups 16 does not divide 24, one of widths$"):
        reader.from_dict(AutoencoderConfig, values)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (KLNetworkConfig, {"widths": ()}),
        (KLNetworkConfig, {"widths": (16, 0)}),
        (KLNetworkConfig, {"blocks": 0}),
        (KLNetworkConfig, {"norm_groups": 0}),
        (GaussianConfig, {"channels": 0}),
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(config: type, values: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(values))):
        config(**values)


# ---- statistics


def test_standardizing_changes_latents_and_no_image():
    autoencoder, pictures = small(), images(2, 3, 16, 16)
    before, reconstruction = autoencoder.encode(pictures), autoencoder.reconstruct(pictures)
    autoencoder.standardize(MEAN, STD)
    after, (mean, std) = autoencoder.encode(pictures), (MEAN.view(-1, 1, 1), STD.view(-1, 1, 1))
    close(after.mean, (before.mean - mean) / std)
    close(after.logvar, before.logvar - 2 * std.log())
    close(autoencoder.decode(after.mean), autoencoder.decode((before.mean - mean) / std))
    close(autoencoder.reconstruct(pictures), reconstruction)


def test_standardizing_twice_is_standardizing_by_both():
    once, twice, pictures = small(), small(), images(2, 3, 16, 16)
    twice.standardize(MEAN, STD)
    latents = twice.encode(pictures).mean.double()
    twice.standardize(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    raw = once.encode(pictures).mean.double()
    once.standardize(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    close(twice.encode(pictures).mean, once.encode(pictures).mean)
    found = once.encode(pictures).mean
    close(found.mean((0, 2, 3)), torch.zeros(2))
    close(found.std((0, 2, 3)), torch.ones(2))


# ---- images of any size


@pytest.mark.parametrize("levels", [2, 3, 5])
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (3, 5), (7, 7), (16, 16), (33, 18)])
def test_a_reconstruction_has_the_size_of_its_image(levels: int, size: tuple[int, int]):
    pictures = images(2, 3, *size)
    found = small(levels=levels).reconstruct(pictures)
    assert found.shape == pictures.shape and bool(found.isfinite().all())


def test_bytes_were_encoded_as_if_255_were_white():
    with pytest.raises(ConfigError, match=r"floats in \[-1, 1\], and not torch.uint8"):
        small().encode(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8))


def test_images_that_the_downsampling_divides_are_not_changed_by_padding():
    autoencoder, pictures = small(), images(2, 3, 24, 16)
    assert padded(pictures, (4, 4)) is pictures
    moments = autoencoder.network.encode(pictures)
    assert torch.equal(autoencoder.encode(pictures).mean, moments[:, :2])
    assert torch.equal(autoencoder.reconstruct(pictures), autoencoder.network.decode(moments[:, :2]))


def test_padding_reflects_large_images_and_repeats_the_edge_of_tiny_ones():
    pictures = images(1, 2, 6, 11)
    found = padded(pictures, (4, 4))
    assert found.shape[-2:] == (8, 12) and torch.equal(found[..., :6, :11], pictures)
    assert torch.equal(found[..., 6, :11], pictures[..., 4, :]) and torch.equal(found[..., 7, :11], pictures[..., 3, :])
    assert torch.equal(found[..., :6, 11], pictures[..., :, 9])
    one = images(1, 2, 1, 1)
    assert torch.equal(padded(one, (16, 16)), one.expand(1, 2, 16, 16))
    thin = images(1, 2, 2, 9)
    assert torch.equal(padded(thin, (8, 8))[..., 2:, :9], thin[..., 1:, :].expand(1, 2, 6, 9))


def test_the_latent_shape_is_that_of_the_latents():
    for levels, sides in ((1, (5, 5)), (3, (16, 24)), (3, (17, 9)), (5, (40, 40))):
        autoencoder = small(levels=levels)
        assert autoencoder.encode(images(1, 3, *sides)).mean.shape[1:] == autoencoder.latent_shape(sides)


# ---- as an AutoencoderKL folder


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_diffusers_reads_what_was_saved_with_the_statistics_folded_in(channels: int, tmp_path: Path):
    autoencoder, pictures = small(channels), images(3, channels, 16, 16)
    autoencoder.standardize(MEAN, STD)
    autoencoder.save(tmp_path)
    found = AutoencoderKL.from_pretrained(tmp_path).eval().requires_grad_(False)
    assert found.config.scaling_factor == 1 and not found.config.shift_factor
    expected, distribution = autoencoder.encode(pictures), found.encode(pictures).latent_dist
    close(distribution.mean, expected.mean)
    close(distribution.logvar, expected.logvar)
    close(found.decode(distribution.mode()).sample, autoencoder.reconstruct(pictures))


def test_what_was_saved_loads_as_the_same_autoencoder(tmp_path: Path):
    autoencoder, pictures = small(), images(3, 3, 15, 18)
    autoencoder.standardize(MEAN, STD)
    autoencoder.save(tmp_path / "run" / "vae")
    for source in (tmp_path / "run", str(tmp_path / "run" / "vae")):
        found = Autoencoder.load(source)
        assert not found.training and found.latent_mean.eq(0).all() and found.latent_std.eq(1).all()
        close(found.encode(pictures).mean, autoencoder.encode(pictures).mean)
        close(found.encode(pictures).logvar, autoencoder.encode(pictures).logvar)
        close(found.reconstruct(pictures), autoencoder.reconstruct(pictures))


def test_saving_again_and_again_changes_nothing(tmp_path: Path):
    autoencoder = small()
    autoencoder.standardize(MEAN, STD)
    autoencoder.save(tmp_path / "0")
    Autoencoder.load(tmp_path / "0").save(tmp_path / "1")
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in "01")
    assert all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


def test_saving_never_changes_the_weights_in_training(tmp_path: Path):
    for number, autoencoder in enumerate((small(), Autoencoder.from_diffusers(pretrained_kl()))):
        autoencoder.train().standardize(MEAN, STD)
        before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
        autoencoder.save(tmp_path / str(number))
        assert autoencoder.training and autoencoder.state_dict().keys() == before.keys()
        for name, value in autoencoder.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_folding_is_exact():
    kl, mean, std = pretrained_kl().double(), MEAN.double(), STD.double()
    pictures = images(2, 3, 16, 16).double()
    raw, reconstruction = kl.encode(pictures).latent_dist, kl.decode(kl.encode(pictures).latent_dist.mean).sample
    diffusers.fold(kl, mean, std)
    folded = kl.encode(pictures).latent_dist
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(folded.mean, (raw.mean - mean.view(2, 1, 1)) / std.view(2, 1, 1), **exact)
    torch.testing.assert_close(folded.logvar, raw.logvar - 2 * std.log().view(2, 1, 1), **exact)
    torch.testing.assert_close(kl.decode(folded.mean).sample, reconstruction, **exact)


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("shift", [None, 0.7])
def test_the_scaling_of_an_autoencoder_kl_becomes_its_statistics(convolutions: bool, shift: float | None, tmp_path):
    more = {"use_quant_conv": convolutions, "use_post_quant_conv": convolutions}
    kl = pretrained_kl(scaling_factor=0.18215, shift_factor=shift, **more)
    kl.save_pretrained(tmp_path / "theirs")
    pictures, autoencoder = images(2, 3, 16, 16), Autoencoder.load(tmp_path / "theirs")
    expected = kl.encode(pictures).latent_dist
    scaled = (expected.mean - (shift or 0)) * 0.18215
    close(autoencoder.encode(pictures).mean, scaled)
    close(autoencoder.decode(scaled), kl.decode(expected.mean).sample)
    autoencoder.save(tmp_path / "ours")
    again = AutoencoderKL.from_pretrained(tmp_path / "ours")
    assert again.config.scaling_factor == 1 and again.config.shift_factor is None
    close(again.encode(pictures).latent_dist.mean, scaled)
    close(again.decode(scaled).sample, kl.decode(expected.mean).sample)


# ---- what is not one


def refusal(source: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what huggingface_hub and diffusers say on the way is not ours
        Autoencoder.load(source)
    message = str(caught.value)
    assert "\n" not in message and str(source) in message
    return message


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", WEIGHTS])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path):
    folder, proof = tmp_path / "vae", tmp_path / "proof"
    pretrained_kl().save_pretrained(folder)
    (folder / WEIGHTS).unlink()
    torch.save({"decoder.conv_in.weight": Payload(proof)}, folder / name)
    refusal(folder)
    assert not proof.exists()
    torch.load(io.BytesIO((folder / name).read_bytes()), weights_only=False)
    assert proof.exists()  # it was dangerous indeed


def test_a_folder_without_an_autoencoder_is_refused(tmp_path: Path):
    assert "config.json" in refusal(tmp_path)
    (tmp_path / "file").write_text("hello")
    assert "config.json" in refusal(tmp_path / "file")


def test_another_autoencoder_of_diffusers_is_refused_and_not_filled_with_random_weights(tmp_path: Path):
    VQModel(block_out_channels=(32,)).save_pretrained(tmp_path)
    assert "VQModel" in refusal(tmp_path)


def test_a_missing_weight_is_refused_and_not_random(tmp_path: Path):
    pretrained_kl().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    del weights["decoder.conv_in.weight"]
    save_file(weights, tmp_path / WEIGHTS)
    assert "decoder.conv_in.weight" in refusal(tmp_path)


@pytest.mark.parametrize("config", ["", "{}", "[]", "null", '{"latent_channels": null}', '{"block_out_channels": 3}'])
def test_a_config_that_describes_something_else_is_refused(config: str, tmp_path: Path):
    pretrained_kl().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    refusal(tmp_path)


def test_weights_cut_short_are_refused(tmp_path: Path):
    pretrained_kl().save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for length in (0, 5, 1000, len(whole) - 1):
        (tmp_path / WEIGHTS).write_bytes(whole[:length])
        refusal(tmp_path)


def test_a_hub_id_that_nobody_can_reach_is_refused_at_once():
    begun = time.monotonic()
    assert "hub id" in refusal("nobody-at-all/no-autoencoder-here")
    assert time.monotonic() - begun < 5


def test_the_hub_was_asked_for_half_a_minute_for_a_mistyped_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldm.autoencoder.formats.ours.downloaded", lambda *_: pytest.fail("the hub was asked"))
    assert "does not exist" in refusal("not-there")


def test_half_precision_weights_load_as_float32(tmp_path: Path):
    pretrained_kl().save_pretrained(tmp_path)
    halved = {name: value.bfloat16() for name, value in load_file(tmp_path / WEIGHTS).items()}
    save_file(halved, tmp_path / WEIGHTS)
    assert {parameter.dtype for parameter in Autoencoder.load(tmp_path).parameters()} == {torch.float32}


def test_nothing_but_config_and_weights_is_saved(tmp_path: Path):
    small().save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKL" and config["latent_channels"] == 2
    moved = tmp_path.with_name("moved")
    shutil.move(tmp_path, moved)
    assert Autoencoder.load(moved).latent_channels == 2
