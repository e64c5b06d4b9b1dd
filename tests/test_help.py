"""The command lines of the scripts: help at once, and a wrong word answered in one line, before torch is imported."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.scripts import ROOT

CONFIGS = {"train_vae": "configs/vae/mnist5k.yaml", "train_diffusion": "configs/diffusion/mnist5k.yaml"}
SCRIPTS = [*CONFIGS, "sample"]
# Runs a script as a person would, then says which heavy packages it imported, and its processor time in seconds.
WATCHED = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
heavy = sorted({"torch", "numpy", "PIL", "diffusers", "accelerate", "torchvision"} & sys.modules.keys())
used = resource.getrusage(resource.RUSAGE_SELF)
print("watched", code, used.ru_utime + used.ru_stime, *heavy)
"""


@dataclass(frozen=True)
class Watched:
    """How a script answered, and what that took."""

    code: str
    out: str
    err: str
    seconds: float
    imported: list[str]


def watched(name: str, *arguments: object) -> Watched:
    command = [sys.executable, "-c", WATCHED, str(ROOT / f"{name}.py"), *map(str, arguments)]
    outcome = subprocess.run(
        command, cwd="/", env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    out, _, last = outcome.stdout.rstrip("\n").rpartition("watched ")
    code, seconds, *imported = last.split()
    return Watched(code, out, outcome.stderr, float(seconds), imported)


def refusal(answer: Watched) -> str:
    """The one line of a refused command line, given before anything heavy is imported."""
    assert answer.code == "2", answer
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
    assert not answer.out and not answer.imported
    return answer.err


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_answers_at_once_and_without_torch(name: str, flag: str) -> None:
    """Processor time, for other tests run beside this one."""
    answer = watched(name, flag)
    assert answer.code in ("0", "None") and not answer.err
    assert f"{name}.py" in answer.out.splitlines()[0] and "--out" in answer.out
    assert not answer.imported
    assert answer.seconds < 1.5


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("train_vae", ["--data.kind", "--autoencoder.network.widths", "--objective.kl", "--optim.lr", "--run.steps"]),
        (
            "train_diffusion",
            ["--autoencoder", "--denoiser.network.widths", "--objective.noise_distribution.mean", "--cache"],
        ),
        ("sample", ["--num", "--labels", "--steps", "--sampler", "--guidance", "--seed", "--batch-size"]),
    ],
)
def test_help_names_every_kind_of_flag_and_fits_the_page(name: str, flags: list[str]) -> None:
    said = watched(name, "--help").out
    assert all(flag in said for flag in flags)
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_wins_over_everything_else_on_the_line(name: str) -> None:
    assert watched(name, "nowhere", "--out", "x", "--help").code in ("0", "None")


MISSPELT = {
    "train_vae": {"--run.stpes": "--run.steps", "--autoencoder.network.widhts": "--autoencoder.network.widths"},
    "train_diffusion": {"--run.batchsize": "--run.batch_size", "--autoencodr": "--autoencoder"},
    "sample": {"--nmu": "--num", "--samplr": "--sampler"},
}


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in MISSPELT.items() for flag in flags])
def test_a_misspelt_flag_exits_2_and_its_neighbor_is_suggested(name: str, flag: str) -> None:
    said = refusal(watched(name, CONFIGS.get(name, "run"), "--out", "x", flag, 5))
    assert flag in said and f"did you mean {MISSPELT[name][flag]}?" in said.replace("batch-size", "batch_size")


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_abbreviated_flag_is_not_guessed(name: str) -> None:
    flag = "--nu" if name == "sample" else "--run.step"
    assert flag in refusal(watched(name, CONFIGS.get(name, "run"), "--out", "x", flag, 5))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_not_there_exits_2_and_is_named(name: str, tmp_path: Path) -> None:
    more = ("--autoencoder", "x") if name == "train_diffusion" else ()
    for file in (tmp_path / "nowhere.yaml", tmp_path):
        assert str(file) in refusal(watched(name, file, "--out", tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: {kind: mnist5k}\nrun: {stepz: 3}", "run.stepz"),
        ("data: {kind: mnist5k}\nrun: [1, 2]", "run"),
        ("data: {kind: mnist5k}\nrun: {steps: many}", "run.steps"),
        ("run: {steps: 3", "line"),
        ("3", "expected settings"),
        ("run: !!python/object/apply:os.system [ls]", "!!python"),
    ],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_config_exits_2_and_names_file_and_key(name: str, text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    more = ("--autoencoder", "x") if name == "train_diffusion" else ()
    said = refusal(watched(name, file, "--out", tmp_path / "run", *more))
    assert str(file) in said and says in said


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("train_vae", (), "config file"),
        ("train_vae", (CONFIGS["train_vae"],), "--out"),
        ("train_vae", (CONFIGS["train_vae"], "another.yaml", "--out", "x"), "another.yaml"),
        ("train_vae", (CONFIGS["train_vae"], "--out"), "--out needs a value"),
        ("train_diffusion", (f"{ROOT}/{CONFIGS['train_diffusion']}", "--out", "x"), "--autoencoder"),
        ("train_diffusion", ("--autoencoder", "x", "--out", "x"), "config file"),
        ("sample", (), "RUN"),
        ("sample", ("run",), "--out"),
    ],
)
def test_a_command_line_with_something_missing_says_what(name: str, arguments: tuple[str, ...], says: str) -> None:
    assert says in refusal(watched(name, *arguments))
