"""Every command and every line of Python in the README works as typed."""

import os
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from tests.support.scripts import ROOT, Outcome, forked, ran, together

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
SHORT = ("--run.steps", 2, "--run.batch-size", 8)
FEW_SAMPLES = ("--generate", 8, "--steps", 1)


def words_of(command: str) -> list[str]:
    """What is typed after `python SCRIPT.py`, with the configs found from anywhere."""
    words = shlex.split(command)
    script = next(place for place, word in enumerate(words) if word.endswith(".py"))
    return [str(ROOT / word) if word.startswith("configs/") else word for word in words[script + 1 :]]


def typed(command: str) -> Outcome:
    """What comes of a command, in small."""
    if command.startswith("ldm "):
        more = FEW_SAMPLES if "--generate" in command else ()
        return ran("ldm.cli.main", *shlex.split(command)[1:], *more)
    name = command.split()[1].removesuffix(".py")
    return ran(name, *words_of(command), *(("--steps", 2) if name == "sample" else SHORT))


@pytest.fixture(scope="module")
def workplace(shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands for one's own images were run, in small."""
    place = tmp_path_factory.mktemp("readme")
    (place / "my").mkdir()
    (place / "my" / "images").symlink_to(shapes_folder)
    before = Path.cwd()
    os.chdir(place)
    short = pytest.MonkeyPatch()
    short.setattr("ldm.evaluation.classifier.STEPS", 20)
    try:
        for command in COMMANDS:
            if not command.startswith(("python ", "ldm ")) or "runs/" not in command or "runs/demo" in command:
                continue
            outcome: Outcome = typed(command)
            assert outcome.code == 0, outcome.err
    finally:
        short.undo()
        os.chdir(before)
    return place


def test_the_commands_for_ones_own_images_leave_a_picture(workplace):
    assert (workplace / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith(("torchrun", "accelerate"))])
def test_the_commands_for_several_processes(workplace, command, monkeypatch):
    """As two processes; that the launchers start them is tested with the launchers elsewhere."""
    from tests.support.scripts import script

    monkeypatch.chdir(workplace)
    outcomes = together([script("train_vae", *words_of(command), *SHORT)] * 2)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.split("\n")[0])
def test_the_python(workplace, block, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))

    (tmp_path / "block.py").write_text(block)

    def run() -> int:
        torch.manual_seed(0)
        runpy.run_path(str(tmp_path / "block.py"))
        return 0

    outcome = forked(run)[1]()
    assert outcome.code == 0, outcome.err


def test_every_command_is_one_of_those_that_are_run():
    """Those of `make demo` are in the Makefile; the two lines of installation are what the Makefile does."""
    scripts = ("python train_vae.py", "python train_diffusion.py", "python sample.py")
    known = (*scripts, "torchrun", "accelerate launch", "ldm ")
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)/", "").replace("$(DEMO)", "runs/demo")
    for command in COMMANDS:
        run_here = command.startswith(known) and ("my/images" in command or "runs/mine" in command)
        installs = command.startswith(("python3 -m venv", "pip install -c constraints.txt"))
        assert run_here or installs or command in makefile, command
