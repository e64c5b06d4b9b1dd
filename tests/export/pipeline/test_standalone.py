"""The code that a run brings along stands alone: no import of ours is left in it, and it is read as it was written."""

import ast
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ldm.autoencoder.config import BOTTLENECKS, NETWORKS
from ldm.autoencoder.formats import ours
from ldm.component.code_file import CodeFile, own_code
from ldm.component.standalone import Closure
from ldm.diffusion.config import DENOISER_NETWORKS, DenoiserConfig, UNet2DConfig
from ldm.diffusion.samplers import starting_noise
from ldm.export.diffusers_pipeline import LatentDiffusionPipeline, save_pipeline
from tests.support.diffusers_process import ALONE, in_another_process
from tests.support.diffusion_models import diffusion_model
from tests.support.scripts import ROOT

AUTOENCODERS = [
    *((network, "identity") for network in NETWORKS if network != "pretrained"),
    *(("mlp", bottleneck) for bottleneck in BOTTLENECKS),
]
UNET2D = DenoiserConfig(UNet2DConfig(widths=(8, 16), blocks=1, head_channels=8, norm_groups=4))
PIPELINE = "ldm.export.pipeline.latent_diffusion_pipeline:LatentDiffusionPipeline"
DENOISER = "ldm.export.pipeline.denoiser_model:DenoiserModel"


def denoiser_code(kind: str) -> CodeFile:
    """The code of a denoiser with a network, as a component writes it."""
    return own_code(DENOISER, "code", {"DENOISER_NETWORKS": kind, "SAMPLERS": "heun"})


CODE: dict[str, tuple[str, Callable[[], CodeFile]]] = {
    "pipeline": ("LatentDiffusionPipeline", partial(own_code, PIPELINE, "code", {})),
    **{f"denoiser {kind}": ("DenoiserModel", partial(denoiser_code, kind)) for kind in DENOISER_NETWORKS},
    **{
        f"autoencoder {network} {bottleneck}": ("AutoencoderModel", partial(ours.code, network, bottleneck))
        for network, bottleneck in AUTOENCODERS
    },
}
NEEDED = {"torch", "diffusers", "safetensors", "huggingface_hub", "numpy", "PIL"}  # diffusers needs the others itself

DRAW = """
import numpy as np, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
for run in sys.argv[1:]:
    pipe = DiffusionPipeline.from_pretrained(run, trust_remote_code=True, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(f"{run}/again")
    again = DiffusionPipeline.from_pretrained(f"{run}/again", trust_remote_code=True)
    again.set_progress_bar_config(disable=True)
    first, second = (each(3, num_inference_steps=3, output_type="pt").images.numpy() for each in (pipe, again))
    np.savez(f"{run}/images.npz", first=first, again=second)
"""

# Before and after the lines of docs/networks.md, for the last of the runs.
BEFORE_THE_LINES = """
run = sys.argv[-1]
noise = torch.from_numpy(np.load(f"{run}/noise.npy"))
"""
AFTER_THE_LINES = """
from diffusers import LDMPipeline

np.save(f"{run}/stock.npy", images.clamp(-1, 1).numpy())
LDMPipeline(vqvae=vae, unet=unet, scheduler=scheduler).save_pretrained(f"{run}/whole")
again = DiffusionPipeline.from_pretrained(f"{run}/whole")
again.set_progress_bar_config(disable=True)
assert type(again) is LDMPipeline
assert np.isfinite(again(2, num_inference_steps=2, output_type="np").images).all()
"""


@pytest.mark.parametrize("entry", CODE)
def test_the_code_of_a_run_imports_nothing_of_ours_and_what_diffusers_has(entry: str) -> None:
    """Of the networks, the vision transformer alone needs more: einops."""
    name, written = CODE[entry]
    code = written()
    tree = ast.parse(code.text)
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
        assert not (isinstance(node, ast.Constant) and str(node.value).startswith("ldm.") and ":" in str(node.value))
    elsewhere = {name for name in imported if name not in sys.stdlib_module_names}
    assert elsewhere <= NEEDED | ({"einops"} if " vit " in entry else set())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert "pip install latent-diffusion-trainer" in code.text and "license MIT" in code.text
    assert len(code.text.splitlines()) < 2400


def test_every_definition_in_the_code_of_a_run_is_that_of_the_package() -> None:
    """There is one source: what stands in the package. Whole classes and functions are found there word for word."""
    text = denoiser_code("unet").text
    sources = "\n".join(file.read_text() for file in sorted((ROOT / "ldm").rglob("*.py")))
    copied = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(copied) > 30
    exact = [node.name for node in copied if (ast.get_source_segment(text, node) or "") in sources]
    changed = {node.name for node in copied} - set(exact)
    assert changed <= {"own_code", "DenoiserConfig", "DenoiserModel", "create_denoiser"}, changed


def test_two_definitions_of_one_name_are_refused() -> None:
    closure = Closure({})
    for name in ("compvis", "diffusers"):
        closure.want(f"ldm.autoencoder.formats.{name}", "read")
    with pytest.raises(ValueError, match="read would be defined twice"):
        closure.check_names()


def test_a_run_opens_where_the_package_is_not_installed_and_draws_the_same(tmp_path: Path) -> None:
    """With a stock autoencoder, with one of our own format, and on pixels; saved again, it opens again.

    And of UNet2DModel, where the lines of docs/networks.md draw it with nothing but diffusers.
    """
    expected = {}
    for kind in ("kl", "residual", "pixels", "unet2d"):
        classes = ("disc", "square") if kind in ("kl", "pixels") else ()
        parts = {"parts": UNET2D} if kind == "unet2d" else {}
        model = diffusion_model("kl" if parts else kind, classes=classes, **parts)
        save_pipeline(tmp_path / kind, model.autoencoder, model.denoiser, model.config)
        expected[kind] = (model.sample(3, steps=3) / 2 + 0.5).numpy()
    noise = starting_noise(model.config.latent_shape, [0, 1, 2], 0)
    np.save(tmp_path / "unet2d" / "noise.npy", noise.numpy())
    (lines,) = re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "networks.md").read_text(), re.DOTALL)
    code = ALONE + DRAW + BEFORE_THE_LINES + lines + AFTER_THE_LINES
    in_another_process(code, tmp_path, *(tmp_path / kind for kind in expected))
    for kind, images in expected.items():
        found = np.load(tmp_path / kind / "images.npz")
        assert np.abs(found["first"] - images).max() < 1e-5 and np.array_equal(found["first"], found["again"])
        own = json.loads((tmp_path / kind / "again" / "model_index.json").read_text())
        assert own == json.loads((tmp_path / kind / "model_index.json").read_text())
    ours = model.sample(3, steps=18, sampler="euler").numpy()
    assert ours.std() > 0.1 and np.abs(np.load(tmp_path / "unet2d" / "stock.npy") - ours).max() < 1e-5


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers keeps the code that it runs in a folder of this test's own."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def drawn(pipe: DiffusionPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    images: Tensor = pipe(2, num_inference_steps=2, output_type="pt").images
    return images * 2 - 1


def test_a_run_of_before_whose_code_is_a_line_still_opens(tmp_path: Path, modules: None) -> None:
    """pipeline.py and unet/denoiser.py said `from ldm.export.diffusers_pipeline import …`; saved again, no more."""
    model, run = diffusion_model("kl"), tmp_path / "run"
    save_pipeline(run, model.autoencoder, model.denoiser, model.config)
    index = json.loads((run / "model_index.json").read_text())
    for part, folder, module in (("_class_name", run, "pipeline"), ("unet", run / "unet", "denoiser")):
        (file,) = folder.glob("*.py")
        file.unlink()
        (folder / f"{module}.py").write_text(f"from ldm.export.diffusers_pipeline import {index[part][1]}\n")
        index[part][0] = module
    (run / "model_index.json").write_text(json.dumps(index))
    pipe = DiffusionPipeline.from_pretrained(run, trust_remote_code=True)
    assert type(pipe) is LatentDiffusionPipeline
    assert torch.allclose(drawn(pipe), model.sample(2, steps=2), rtol=0, atol=1e-5)
    pipe.save_pretrained(run / "again")
    assert len(list((run / "again").rglob("*_????????.py"))) == 2


def test_from_pretrained_hands_variant_and_precision_to_every_component(tmp_path: Path, modules: None) -> None:
    """They were thrown away: float32 weights came, whatever was asked for."""
    model, run = diffusion_model("tiny"), tmp_path / "run"
    save_pipeline(run, model.autoencoder, model.denoiser, model.config, dtype=torch.float16, variant="fp16")
    options = {"trust_remote_code": True, "variant": "fp16"}
    half = DiffusionPipeline.from_pretrained(run, dtype=torch.bfloat16, **options)
    assert half.dtype == half.unet.dtype == half.vae.dtype == torch.bfloat16
    full = DiffusionPipeline.from_pretrained(run, **options)
    assert (drawn(full) - model.sample(2, steps=2)).abs().max() < 0.02
    assert (drawn(half) - model.sample(2, steps=2)).abs().max() < 0.15, "it goes on when another was opened"
    with pytest.raises(ValueError, match="no such modeling files"):
        DiffusionPipeline.from_pretrained(run, trust_remote_code=True, variant="bf16")
