"""Autoencoders that diffusers has no class for: opened by AutoModel, by plain torch, and by no class that would fill in
random weights.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    AutoModel,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
)
from torch import Tensor

from ldm import Autoencoder
from ldm.autoencoder.config import (
    AutoencoderConfig,
    BottleneckConfig,
    GaussianConfig,
    IdentityConfig,
    KLNetworkConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    NetworkConfig,
    PixelNetworkConfig,
    ResidualNetworkConfig,
    SparseConfig,
    TAESDNetworkConfig,
    TinyNetworkConfig,
    ViTNetworkConfig,
)
from ldm.autoencoder.formats import ours
from ldm.autoencoder.formats.autoencoder_model import AutoencoderModel
from ldm.autoencoder.model import create
from ldm.errors import CheckpointError
from ldm.export.round_trip import imported
from tests.support.diffusers_process import ALONE, in_another_process

KINDS: dict[str, tuple[NetworkConfig, BottleneckConfig]] = {
    "residual": (ResidualNetworkConfig(downsampling=4, width=8, blocks=1), GaussianConfig(channels=4, noise=0.05)),
    "residual, noise learned": (ResidualNetworkConfig(width=8, blocks=1), GaussianConfig(channels=2)),
    "tiny": (TinyNetworkConfig(width=8, levels=2, blocks=1), GaussianConfig(channels=3)),
    "kl without a posterior": (KLNetworkConfig(widths=(8, 8), norm_groups=4), IdentityConfig(channels=2)),
    "kl, noise set": (KLNetworkConfig(widths=(8, 8), norm_groups=4), GaussianConfig(channels=2, noise=0.1)),
    "taesd": (TAESDNetworkConfig(width=8, blocks=(1, 1)), GaussianConfig(channels=2)),
    "linear": (LinearNetworkConfig(), GaussianConfig(channels=5)),
    "mlp": (MLPNetworkConfig(widths=(8,)), SparseConfig(channels=6, k=2)),
    "vit": (ViTNetworkConfig(width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1), IdentityConfig(channels=2)),
    "pixels": (PixelNetworkConfig(), IdentityConfig(channels=3)),
}


def autoencoder(kind: str = "tiny", channels: int = 3) -> Autoencoder:
    """One of a kind, with statistics, and weights and buffers that are not at their start."""
    torch.manual_seed(0)
    network, bottleneck = KINDS[kind]
    found = create(AutoencoderConfig(network, bottleneck), image=(channels, 16, 16)).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        if found.bottleneck.noise is not None:
            found.bottleneck.initialize(torch.randn(8, found.latent_channels, 4, 4) * 3 + 1)
    found.standardize(torch.linspace(-0.2, 0.3, found.latent_channels), torch.linspace(0.5, 2, found.latent_channels))
    return found.requires_grad_(False)


def images(channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of one."""
    autoencoder().save(tmp_path / "vae")
    return tmp_path / "vae"


# ---- where this package is not

ELSEWHERE = """
import importlib

def opened_without_diffusers(folder):
    sys.modules["diffusers"] = None
    sys.path.insert(0, folder)
    (file,) = Path(folder).glob("*.py")
    found = importlib.import_module(file.stem).load(folder)
    assert not hasattr(sys.modules[file.stem], "AutoencoderModel")
    del sys.modules["diffusers"], sys.path[0], sys.modules[file.stem]
    return found

from pathlib import Path
import torch

torch.set_num_threads(1)
torch.set_grad_enabled(False)
folders = sys.argv[1:]
plain = {folder: opened_without_diffusers(folder) for folder in folders}

from diffusers import AutoModel

for folder in folders:
    expected = torch.load(f"{folder}.pt", weights_only=True)
    images, sample = expected["images"], torch.Generator().manual_seed(3)
    posterior = plain[folder].encode(images)
    decoded = plain[folder].decode(expected["mean"])
    found = {"mean": posterior.mode(), "sample": posterior.sample(sample), "decoded": decoded}
    for name, value in found.items():
        assert value.equal(expected[name]), f"{name} of {folder} by torch alone"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(f"{folder}-again")
    for each in (model, AutoModel.from_pretrained(f"{folder}-again", trust_remote_code=True)):
        posterior = each.encode(images).latent_dist
        latents = posterior.sample(torch.Generator().manual_seed(3)) * each.config.scaling_factor
        decoded = each.decode(expected["mean"] / each.config.scaling_factor + each.config.shift_factor).sample
        found = {"mean": posterior.mode(), "sample": latents, "decoded": decoded, "reconstructed": each(images).sample}
        for name, value in found.items():
            assert value.equal(expected[name]), f"{name} of {folder}"
"""


def test_a_folder_does_not_open_where_this_package_is_not_installed(tmp_path: Path) -> None:
    """Neither by AutoModel nor by torch alone: bit for bit, of gray images too, whose size nothing divides."""
    folders = []
    for kind, channels, size in (
        ("residual", 3, (16, 16)),
        ("residual, noise learned", 1, (18, 21)),
        ("mlp", 3, (16, 16)),
    ):
        folder, original, given = tmp_path / kind, autoencoder(kind, channels), images(channels, *size)
        original.save(folder)
        posterior = original.encode(given)
        expected = {"images": given, "mean": posterior.mean, "decoded": original.decode(posterior.mean)}
        expected |= {"sample": posterior.sample(torch.Generator().manual_seed(3))}
        torch.save(expected | {"reconstructed": original.reconstruct(given)}, f"{folder}.pt")
        folders.append(folder)
    in_another_process(ALONE + ELSEWHERE, tmp_path, *folders)
    for folder in folders:
        again, first = Autoencoder.load(f"{folder}-again"), Autoencoder.load(folder)
        assert all(value.equal(first.state_dict()[name]) for name, value in again.state_dict().items())
        assert json.loads((folder / "config.json").read_text()) == json.loads(
            (Path(f"{folder}-again") / "config.json").read_text()
        )


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_no_kind_reads_other_weights_than_were_saved(kind: str, tmp_path: Path) -> None:
    original, given = autoencoder(kind).requires_grad_(), images()  # layers round otherwise where weights are frozen
    original.save(tmp_path)
    (file,) = tmp_path.glob("*.py")
    code = imported(file)
    found = code.load(tmp_path)
    assert type(found).__module__ == file.stem
    assert found.reconstruct(given).equal(original.reconstruct(given))
    model = code.AutoencoderModel.from_pretrained(tmp_path)
    assert model(given).sample.equal(original.reconstruct(given)) and not model.training
    assert not [name for name, value in model.state_dict().items() if value.is_meta]


# ---- which class opens it


@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False}, {"use_safetensors": True}, {"variant": "fp16"}])
@pytest.mark.parametrize("stock", [AutoModel, AutoencoderKL, AutoencoderTiny, AutoencoderDC])
def test_a_stock_class_does_not_open_the_folder_with_random_weights(
    stock: Any, options: dict[str, Any], saved: Path
) -> None:
    with pytest.raises((OSError, ValueError), match=r"diffusion_pytorch_model|trust_remote_code=True"):
        stock.from_pretrained(saved, **options)


def test_the_weights_by_themselves_open_in_no_stock_class(saved: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017  (diffusers has a KeyError for them)
        AutoencoderKL.from_single_file(str(saved / "model.safetensors"), config=str(saved), local_files_only=True)


def test_a_folder_of_before_without_code_is_still_read(saved: Path) -> None:
    """It had the class, the kinds and the size of the images in its config.json."""
    facts = json.loads((saved / "config.json").read_text())
    before = {name: facts[name] for name in ("_class_name", "decodes_images", "image", "network", "bottleneck")}
    (saved / "config.json").write_text(json.dumps(before))
    next(saved.glob("*.py")).unlink()
    assert Autoencoder.load(saved).reconstruct(images()).equal(autoencoder().reconstruct(images()))


def test_a_damaged_folder_is_a_traceback_of_safetensors_nowhere(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"\0" * 20)
    (file,) = saved.glob("*.py")
    for load in (ours.load, imported(file).load, imported(file).AutoencoderModel.from_pretrained):
        with pytest.raises(Exception, match=r"the autoencoder in .* cannot be read") as refused:
            load(saved)
        assert type(refused.value).__name__ == CheckpointError.__name__


# ---- how it is used


def test_its_config_lacks_nothing_that_pipelines_of_others_ask_a_vae_for() -> None:
    model = AutoencoderModel.around(autoencoder("tiny", 1))
    assert (model.config.scaling_factor, model.config.shift_factor, model.config.force_upcast) == (1.0, 0.0, False)
    assert (model.config.in_channels, model.config.out_channels, model.config.latent_channels) == (1, 1, 3)
    assert model.config.downsampling == 2 ** (len(model.config.block_out_channels) - 1) == 4, "as pipelines count it"
    assert not [name for name, value in ours.latent_facts(model.autoencoder).items() if model.config[name] != value]


def test_latents_and_images_do_not_come_in_another_precision_than_what_was_given(saved: Path) -> None:
    """In half precision latents came in float32, which a U-Net in half precision does not take."""
    model = AutoencoderModel.from_pretrained(saved, torch_dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        posterior = model.encode(images().to(dtype), return_dict=False)[0]
        assert posterior.sample(torch.Generator().manual_seed(0)).dtype == posterior.mean.dtype == dtype
        (decoded,) = model.decode(posterior.mean, return_dict=False, generator=None)
        assert decoded.dtype == model(images().to(dtype)).sample.dtype == dtype
        assert (decoded.float() - autoencoder().reconstruct(images())).abs().max() < 0.1


def test_the_posterior_is_not_less_than_that_of_a_stock_autoencoder() -> None:
    original = autoencoder()
    posterior, expected = AutoencoderModel.around(original).encode(images()).latent_dist, original.encode(images())
    assert posterior.var.equal(expected.variance) and torch.allclose(posterior.kl(), expected.kl())
    without = AutoencoderModel.around(autoencoder("pixels")).encode(images()).latent_dist
    assert without.sample().equal(without.mode()) and without.std.eq(0).all()


def test_a_pipeline_of_others_does_not_refuse_it_as_its_vae() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_attention_heads": 1, "attention_head_dim": 8, "in_channels": 3, "sample_size": 4}
    transformer = DiTTransformer2DModel(**shape, out_channels=3, num_layers=1, patch_size=2, num_embeds_ada_norm=5)
    original = autoencoder()
    pipe = DiTPipeline(transformer, AutoencoderModel.around(original), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe([1], num_inference_steps=2, guidance_scale=1.0, output_type="np").images
    assert pictures.shape == (1, 16, 16, 3)


# ---- on the hub


@pytest.mark.filterwarnings("ignore:.*local_dir_use_symlinks:UserWarning")  # which diffusers gives
def test_a_hub_id_is_not_taken_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: the repository is in the cache already, and only the number of its commit would be asked for."""
    commit = "0" * 40
    cache = tmp_path / "hub" / "models--somebody--vae"
    autoencoder().save(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    dynamic = "diffusers.utils.dynamic_modules_utils"
    monkeypatch.setattr(f"{dynamic}.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(f"{dynamic}.model_info", lambda *_, **__: SimpleNamespace(sha=commit))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    options = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    opened: list[Callable[[], Any]] = [
        lambda: AutoModel.from_pretrained("somebody/vae", trust_remote_code=True, **options),
        lambda: AutoencoderModel.from_pretrained("somebody/vae", **options),
    ]
    for each in opened:
        assert each()(images()).sample.equal(autoencoder().reconstruct(images()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert Autoencoder.load("somebody/vae").reconstruct(images()).equal(autoencoder().reconstruct(images()))
