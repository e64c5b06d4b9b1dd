"""One thread per process, small real images, and scripts that run in forked children of this process."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent.parent))

from ldm.training.processes import Processes
from tests.support.backbones import random_alexnet
from tests.support.miniatures import STAGE_ONE, STAGE_TWO
from tests.support.scripts import Stage

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_processes_are_left() -> Iterator[None]:
    """What a test knew of processes ends with it, or the next one's forked children would take it for theirs."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def short_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier of `ldm evaluate --generate` learns for a few steps only."""
    monkeypatch.setattr("ldm.evaluation.classifier.STEPS", 20)


@pytest.fixture
def processes() -> Processes:
    """The only process."""
    return Processes("cpu")


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawings of 16 x 16 pixels in two classes, discs and squares of many sizes, places and colors."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for kind in ("disc", "square"):
        (folder / kind).mkdir()
        for number in range(30):
            image = Image.new("RGB", (16, 16), tuple(rng.integers(150, 255, 3).tolist()))
            left, top = rng.integers(0, 6, 2).tolist()
            side = int(rng.integers(5, 9))
            box = (left, top, left + side, top + side)
            draw = ImageDraw.Draw(image)
            paint = draw.ellipse if kind == "disc" else draw.rectangle
            paint(box, fill=tuple(rng.integers(0, 120, 3).tolist()))
            image.save(folder / kind / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def stage_one(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    file = tmp_path_factory.mktemp("configs") / "vae.yaml"
    file.write_text(STAGE_ONE.format(data=shapes_folder, backbone=random_alexnet()))
    return Stage("train_vae", (file,))


@pytest.fixture(scope="session")
def finished_vae(stage_one: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished miniature run of stage one."""
    out = tmp_path_factory.mktemp("vae") / "run"
    outcome = stage_one.run(out)
    assert outcome.code == 0, outcome.err
    return out


@pytest.fixture(scope="session")
def stage_two(finished_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    file = tmp_path_factory.mktemp("configs") / "diffusion.yaml"
    file.write_text(STAGE_TWO)
    return Stage("train_diffusion", (file, "--autoencoder", finished_vae))


@pytest.fixture(scope="session")
def finished_diffusion(stage_two: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished miniature run of stage two."""
    out = tmp_path_factory.mktemp("diffusion") / "run"
    outcome = stage_two.run(out)
    assert outcome.code == 0, outcome.err
    return out


@pytest.fixture(params=["stage_one", "stage_two"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Each of the two stages."""
    yield request.getfixturevalue(request.param)
