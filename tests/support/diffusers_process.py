"""Processes in which diffusers uses what we wrote, and images as they are there."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ldm.shapes import Images, to_uint8

# What diffusers does not need, and what a run may not need either; importing it is an ImportError now.
ALONE = """
import sys
for absent in ("ldm", "einops", "accelerate", "lpips", "torchmetrics", "torch_fidelity", "tifffile", "matplotlib"):
    sys.modules[absent] = None
try:
    import ldm
except ImportError:
    pass
else:
    sys.exit("ldm is not blocked")
"""
USE_PIPELINE = (
    ALONE
    + """
import json
import numpy as np
from diffusers import DiffusionPipeline

run, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(run, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)

def sampled(pipe, *arguments, **options):
    return np.stack([np.asarray(image) for image in pipe(*arguments, **options).images])

labels = ["square", "disc", 0]
pipe.save_pretrained(f"{out}/again")
again = DiffusionPipeline.from_pretrained(f"{out}/again", trust_remote_code=True)
np.savez(
    f"{out}/images.npz",
    plain=sampled(pipe, 5, num_inference_steps=3),
    again=sampled(again, 5, num_inference_steps=3),
    first=sampled(pipe, 5, num_inference_steps=3),
    chosen=sampled(pipe, 4, labels, num_inference_steps=4, sampler="dpm++2m", guidance_scale=1.5, seed=7),
)
try:
    pipe(2, class_labels="circle")
    refusal = ""
except Exception as error:
    refusal = f"{type(error).__name__}: {error}"
components = {name: type(part).__name__ for name, part in pipe.components.items()}
json.dump({"components": components, "refusal": refusal, "class": type(pipe).__name__}, open(f"{out}/facts.json", "w"))
"""
)


def in_another_process(code: str, folder: Path, *arguments: object) -> None:
    """Run `code` elsewhere, offline and with a module cache of its own: what it imports does not come back here."""
    cache = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "HF_MODULES_CACHE": str(folder / "modules")}
    environment = {**os.environ, **cache, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    outcome = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr


def pixels(images: Images) -> np.ndarray:
    """Bytes as Pillow has them: count x height x width x channels."""
    return to_uint8(images).permute(0, 2, 3, 1).numpy()
