"""Every config that comes with the project is one that a person can run."""

from pathlib import Path

import pytest

from ldm.config import reader
from ldm.script_configs import TrainDiffusionConfig, TrainVAEConfig
from tests.support.scripts import ROOT

STAGES = {"vae": TrainVAEConfig, "autoencoder": TrainVAEConfig, "diffusion": TrainDiffusionConfig}
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_config_is_read_and_its_head_says_how_to_run_it(file: Path) -> None:
    config = reader.load(STAGES[file.parent.name], file, {})
    assert reader.load(type(config), file, {"run.steps": "7"}).run.steps == 7
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    script = "train_diffusion.py" if file.parent.name == "diffusion" else "train_vae.py"
    assert any(f"{script} {file.relative_to(ROOT)}" in line for line in head)
