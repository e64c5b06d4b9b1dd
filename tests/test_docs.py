"""Documentation pages keep their promises: every link, every picture, every setting they name."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.autoencoder.config import BOTTLENECKS, DISTANCES
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.config import reader
from ldm.config.parts import Part
from ldm.diffusion.config import DENOISER_NETWORKS, PARAMETRIZATIONS, SAMPLERS
from ldm.diffusion.losses.config import NOISE_DISTRIBUTIONS, WEIGHTINGS
from ldm.script_configs import TrainDiffusionConfig, TrainVAEConfig
from tests.support.scripts import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = {*reader.setting_names(TrainVAEConfig), *reader.setting_names(TrainDiffusionConfig)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert not [link for link in links if ":" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    named = re.findall(
        r"(?:--|`)((?:data|autoencoder|denoiser|objective|optim|sampling|run)\.[a-z0-9_.-]+)", page.read_text()
    )
    plain = {name.rstrip(".").replace("-", "_") for name in named if not name.endswith((".py", ".md", ".png"))}
    assert plain <= NAMES, plain - NAMES


def test_walk_from_the_training_script_to_the_l1_loss_takes_two_jumps(capsys: pytest.CaptureFixture[str]) -> None:
    """What CONTRIBUTING says, step by step; its own line of Python prints the last one."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    walk = page[page.index("## Find the loss in two jumps") : page.index("## Add a part")]
    steps = re.findall(r"^\d\. `([^`]+)`(?:, `([^`]+)`)?: (.+?)(?=^\d\. |\n\n)", walk, re.DOTALL | re.MULTILINE)
    assert [file for file, _, _ in steps] == [
        "train_vae.py",
        "ldm/autoencoder/objective.py",
        "ldm/autoencoder/losses/distance.py",
    ]
    assert "losses = objective(step.batch, step)" in (ROOT / "train_vae.py").read_text()
    assert "self.distance(images, reconstruction, logvar)" in inspect.getsource(ReconstructionObjective.distance_terms)
    (line,) = re.findall(r'python -c "(.+)"', walk)
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "return (images - reconstruction).abs()" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("docs/samplers.md", SAMPLERS),
        ("docs/networks.md", DENOISER_NETWORKS),
        ("docs/glossary.md", PARAMETRIZATIONS),
        ("docs/objective.md", PARAMETRIZATIONS),
        ("docs/objective.md", NOISE_DISTRIBUTIONS),
        ("docs/objective.md", WEIGHTINGS),
        ("docs/autoencoder.md", DISTANCES),
        ("docs/family.md", BOTTLENECKS),
    ],
    ids=[
        "samplers",
        "networks",
        "glossary",
        "parametrizations",
        "noise distributions",
        "weightings",
        "distances",
        "bottlenecks",
    ],
)
def test_pages_name_every_part_of_a_table(page: str, table: dict[str, Part]) -> None:
    text = (ROOT / page).read_text()
    assert not [name for name in table if f"`{name}`" not in text and f" {name}" not in text]
