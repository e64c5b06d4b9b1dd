"""The command line is read in any order, a mistake is answered in one line, and --help shows every setting."""

import itertools
from pathlib import Path

import pytest

from ldm.config.command_line import Command, Option, Parser, describe, parse
from ldm.errors import ConfigError
from ldm.script_configs import TrainDiffusionConfig
from tests.support.example_configs import Disk, ExampleConfig, Optimizer, refusal

OPTIONS = {
    "out": Option("the run folder", "DIR", required=True),
    "autoencoder": Option("a finished run of stage one", "DIR"),
    "dry-run": Option("print what would be trained, and stop"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a.yaml"
    file.write_text("images: {kind: disk}\n")
    return file


def parsed(*arguments: str) -> Command[ExampleConfig]:
    return parse(ExampleConfig, list(arguments), prog="train.py", description="Trains.", options=OPTIONS)


def test_a_setting_with_a_dash_was_not_found_in_its_section(file: Path) -> None:
    arguments = [str(file), "--out", "x", "--batch-size", "3"]
    with pytest.raises(ConfigError, match=r"--batch-size is not a flag; did you mean --run\.batch_size\?$"):
        parse(TrainDiffusionConfig, arguments, prog="train.py", description="Trains.", options=OPTIONS)


def test_arguments_come_in_any_order_and_in_both_spellings(file: Path) -> None:
    pieces = [
        [str(file)],
        ["--out", "runs/a"],
        ["--optim.lr=-0.0"],
        ["--dry-run"],
        ["--title", "-5"],
        ["--optim.nesterov", "true"],
    ]
    for order in itertools.permutations(pieces):
        command = parsed(*itertools.chain.from_iterable(order))
        assert command.config == ExampleConfig(Disk(), title="-5", optim=Optimizer(lr=0, warmup=9, nesterov=True))
        assert command.file == file
        assert command.options == {"out": "runs/a", "autoencoder": None, "dry-run": True}
    assert parsed(str(file), "--out=--x", "--dry_run", "--title=a=b").options["out"] == "--x"
    assert parsed(str(file), "--out", "x").options["dry-run"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "x"], "expected one config file, not none; usage: train.py CONFIG.yaml --out DIR"),
        (["FILE", "b.yaml", "--out", "x"], "b.yaml; usage: "),
        (["FILE"], "--out is missing; usage: "),
        (["FILE", "--out"], "--out needs a value"),
        (["FILE", "--out", "--dry-run"], "--out needs a value"),
        (["FILE", "--out", "x", "--optim.nesterov"], "--optim.nesterov needs a value"),
        (["FILE", "--out", "x", "--dry-run=yes"], "--dry-run takes no value"),
        (["FILE", "--out", "x", "--out", "y"], "--out is given twice"),
        (["FILE", "--out", "x", "--images.size", "3", "--images.size=3"], "--images.size is given twice"),
        (["FILE", "--out", "x", "--dry"], "--dry is not a flag; did you mean --dry-run?"),
        (["FILE", "--ot", "x"], "--ot is not a flag; did you mean --out?"),
        (["FILE", "--out", "x", "--lr", "1"], "--lr is not a flag; did you mean --optim.lr?"),
        (["FILE", "--out", "x", "--optim.warm", "1"], "--optim.warm is not a flag; did you mean --optim.warmup?"),
        (["FILE", "--out", "x", "-v"], "-v is not a flag"),
        (["FILE", "--out", "x", "-out", "y"], "-out is not a flag; did you mean --out?"),
        (["FILE", "--out", "x", "--"], "-- is not a flag"),
        (["FILE", "--out", "x", "--optim.lr", "fast"], "--optim.lr is fast; expected a finite number"),
        (["FILE", "--out", "x", "--optim.lr="], "--optim.lr is ''; expected a finite number"),
    ],
)
def test_a_wrong_command_is_refused(file: Path, arguments: list[str], says: str) -> None:
    assert says in refusal(parsed, *(str(file) if argument == "FILE" else argument for argument in arguments))


def test_help_shows_usage_options_and_every_setting_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed("--nonsense", "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: train.py CONFIG.yaml --out DIR [--section.field VALUE ...] [--autoencoder DIR]")
    assert "\nTrains.\n" in shown and "the run folder" in shown and describe(ExampleConfig) in shown


def test_the_description_has_flag_values_comment_and_default_of_every_setting() -> None:
    lines = [" ".join(line.split()) for line in describe(ExampleConfig).splitlines()]
    assert lines[:10] == [
        "--images.kind disk Images of a folder. [one is required]",
        "--images.size INT side of an image [8]",
        "--images.sharpness FLOAT|null null leaves it alone [null]",
        "--images.place TEXT the folder [here]",
        "--images.kind dream Images that never were. [one is required]",
        "--images.size INT side of an image [16]",
        "--images.sharpness FLOAT|null null leaves it alone [null]",
        "--images.depth INT how deep the sleep is [3]",
        "--noise.kind disk Images of a folder.",
        "--noise.size INT side of an image [8]",
    ]
    assert "--noise.kind dream Images that never were. [default]" in lines
    assert "--noise.depth INT how deep the sleep is [7]" in lines
    assert "--optim.lr FLOAT peak learning rate [0.001]" in lines
    assert "--optim.betas [FLOAT, FLOAT] [0.9, 0.99]" in lines
    assert "--optim.schedule constant|cosine [cosine]" in lines
    assert "--widths [INT, ...] [32, 64]" in lines
    assert "--average '0.05'|'0.10' ['0.05']" in lines


def test_the_description_is_aligned_and_fits_120_columns() -> None:
    lines = describe(TrainDiffusionConfig).splitlines()
    assert max(map(len, lines)) <= 120
    starts = {len(line) - len(line.lstrip()) for line in lines if not line.lstrip().startswith("--")}
    assert len(starts) == 1, "continued explanations stand below each other"
    (column,) = starts
    beside = [line for line in lines if not (line.lstrip().startswith("--") and "  " not in line.lstrip())]
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in beside)
    alone = [line for line in lines if line not in beside]
    assert all(len(line) > column - 2 for line in alone), "a flag that has room stands beside its explanation"


@pytest.mark.parametrize("words", [("--out=~/runs/a",), ("--out", "~/runs/a")])
def test_a_tilde_that_no_shell_expands_became_a_folder_of_that_name(
    file: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the training scripts and in `ldm VERB` alike; alone it is YAML's null of a setting; in a word it is text."""
    monkeypatch.setenv("HOME", "/home/me")
    assert parsed(str(file), *words).options["out"] == "/home/me/runs/a"
    assert parsed(str(file), "--out", "x", "--title=~/t").config.title == "/home/me/t"
    assert parsed(str(file), "--out", "x", "--title", "a~/b").config.title == "a~/b"
    verb = Parser("ldm verb", "")
    verb.add_argument("run")
    verb.add_argument("--out", type=Path)
    found = verb.read(["~/run", *words])
    assert (found.run, found.out) == ("/home/me/run", Path("/home/me/runs/a"))
    assert parsed(str(file), "--out=~").options["out"] == "/home/me" and verb.read(["x", "--out=~"]).out == Path(
        "/home/me"
    )
