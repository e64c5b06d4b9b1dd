"""What the pages promise is there: every link, every picture, every setting they name."""

import re
from pathlib import Path

import pytest

from ldm.config import reader
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
    plain = {name.rstrip(".").replace("-", "_") for name in named if not name.endswith((".py", ".md"))}
    assert plain <= NAMES, plain - NAMES
