"""Settings are read strictly, from files and flags alike, and a mistake is answered in one helpful line."""

import itertools
import math
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from ldm import config
from ldm.config import Option
from ldm.data.settings import Folder, MNIST5k
from ldm.errors import ConfigError
from ldm.settings import StageOne, StageTwo
from ldm.training.settings import Run

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Shared:
    size: int = 8  # side of an image
    sharpness: float | None = None  # null leaves it alone


@dataclass(frozen=True)
class Disk(Shared):
    """Images of a folder."""

    kind: Literal["disk"] = "disk"
    place: str = "here"  # the folder


@dataclass(frozen=True)
class Dream(Shared):
    """Images that never were."""

    kind: Literal["dream"] = "dream"
    size: int = 16
    depth: int = field(
        default=3,  # how deep the sleep is
    )


@dataclass(frozen=True)
class Optimizer:
    lr: float = 1e-3  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 50  # steps
    schedule: Literal["constant", "cosine"] = "cosine"
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError("lr is negative:\nit must be at least 0")


@dataclass(frozen=True)
class Settings:
    images: Disk | Dream
    noise: Disk | Dream = field(default_factory=lambda: Dream(depth=7))
    extra: Disk | Dream | None = None
    optim: Optimizer = field(default_factory=lambda: Optimizer(warmup=9))
    widths: tuple[int, ...] = (32, 64)
    average: Literal["0.05", "0.10"] = "0.05"
    channels: Literal[1, 3] = 3
    title: str = ""
    remark: str | None = "none"


DISK = Settings(images=Disk())
REAL = [StageOne(data=MNIST5k()), StageTwo(data=MNIST5k())]
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


def read(file: Path, text: str, **flags: str) -> Settings:
    """Settings from a file that says `text`, and from flags in which __ stands for a dot."""
    if "images" not in text:
        text += "\nimages: {kind: disk}\n"
    file.write_text(text)
    return config.load(Settings, file, {name.replace("__", "."): value for name, value in flags.items()})


def refusal(function: Any, *arguments: Any, **named: Any) -> str:
    """The message of a refusal, which is always one line."""
    with pytest.raises(ConfigError) as refused:
        function(*arguments, **named)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def parsed(*arguments: str) -> config.Command[Settings]:
    return config.parse(Settings, list(arguments), prog="train.py", description="Trains.", options=OPTIONS)


# Values


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2", 2.0), ("1_0.5", 10.5), ("-0.0", -0.0), (".5", 0.5)])
def test_a_number_is_the_same_number_in_a_file_and_in_a_flag(file: Path, text: str, value: float) -> None:
    for settings in (read(file, f"images: {{kind: disk, sharpness: {text}}}"), read(file, "", images__sharpness=text)):
        assert settings.images.sharpness == value and type(settings.images.sharpness) is float


@pytest.mark.parametrize(("text", "value"), [("1e3", 1000), ("1_000", 1000), ("010", 10), ("3.0", 3), ("-7", -7)])
def test_a_whole_number_may_be_written_with_an_exponent_and_is_never_octal(file: Path, text: str, value: int) -> None:
    for settings in (read(file, f"optim: {{warmup: {text}}}"), read(file, "", optim__warmup=text)):
        assert settings.optim.warmup == value and type(settings.optim.warmup) is int


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("optim.warmup", text)
            for text in ("2.5", "true", "'12'", "1:30", "2020-01-01", ".inf", ".nan", "[1]", "null")
        ),
        *(
            ("optim.lr", text)
            for text in ("true", "'0.1'", ".nan", ".inf", "-.inf", "1e999", "nan", "9" * 400, "{a: 1}")
        ),
        *(("optim.nesterov", text) for text in ("1", "yes", "on", "'true'", "0.0", "null")),
        *(("optim.betas", text) for text in ("0.9", "[0.9]", "[0.9, 0.9, 0.9]", "[0.9, x]", "[[0.9, 0.9]]")),
        *(("widths", text) for text in ("8", "[8, 2.5]", "[8, true]", "{8: 8}")),
        *(("channels", text) for text in ("2", "true", "'3'", "3.0")),
        *(("optim.schedule", text) for text in ("linear", "1", "null", "[cosine]")),
        *(("optim", text) for text in ("3", "[1]", "text", "true")),
        *(("extra", text) for text in ("3", "[]", "disk")),
    ],
)
def test_a_value_of_another_type_is_refused_with_file_or_flag_name_and_possible_values(
    file: Path, name: str, text: str
) -> None:
    section, _, leaf = name.rpartition(".")
    in_file = refusal(read, file, f"{section}: {{{leaf}: {text}}}" if section else f"{leaf}: {text}")
    assert in_file.startswith(f"{file}: {name} is ") and "; expected " in in_file
    in_flag = refusal(config.load, Settings, file, {name: text})
    assert in_flag.startswith(f"--{name} is ") and "; expected " in in_flag


@pytest.mark.parametrize("text", ["5", "0.05", "1e-4", "true", "null", "[a]"])
def test_what_is_no_text_needs_quotes_to_be_text_in_a_file(file: Path, text: str) -> None:
    assert "title is " in refusal(read, file, f"title: {text}")
    assert read(file, f"title: '{text}'").title == text


@pytest.mark.parametrize("text", ["no", "on", "1:30", "2020-01-01", "1.2.3", "0x10", "<<", "="])
def test_what_merely_looks_special_is_text(file: Path, text: str) -> None:
    assert read(file, f"title: {text}").title == text


@pytest.mark.parametrize(
    "text", ["12", "1e-4", "null", "true", "[1, 2", "a: b", "", " x ", "'q'", "!!python/none", "#"]
)
def test_a_flag_for_text_is_taken_verbatim(file: Path, text: str) -> None:
    assert read(file, "", title=text).title == text


def test_a_flag_for_a_choice_of_texts_is_taken_verbatim_and_a_file_needs_quotes(file: Path) -> None:
    assert read(file, "", average="0.10").average == "0.10"
    assert read(file, "average: '0.10'").average == "0.10"
    assert refusal(read, file, "average: 0.10").endswith("average is 0.1; expected '0.05'|'0.10'; did you mean '0.10'?")


def test_lists_become_tuples_of_the_asked_length(file: Path) -> None:
    settings = read(file, "optim: {betas: [0, 1]}", widths="[1, 1e1, 100]")
    assert settings.optim.betas == (0.0, 1.0) and settings.widths == (1, 10, 100)
    assert read(file, "widths: []").widths == ()


def test_null_is_possible_only_where_the_type_says_so(file: Path) -> None:
    settings = read(
        file, "images: {kind: disk, sharpness: 2}\nextra: {kind: dream}", images__sharpness="null", extra="null"
    )
    assert settings == DISK
    assert read(file, "", remark="null").remark is None and read(file, "", remark="12").remark == "12"
    assert "expected a finite number" in refusal(read, file, "optim: {lr: null}")


# Sections and kinds


def test_what_is_not_said_is_as_the_defaults_say_even_inside_a_section_that_is_mentioned(file: Path) -> None:
    assert read(file, "") == DISK
    assert read(file, "optim: {lr: 1}").optim == Optimizer(lr=1, warmup=9)
    assert read(file, "noise: {size: 2}").noise == Dream(size=2, depth=7)
    assert read(file, "optim:\nextra:\n") == DISK


def test_a_section_without_a_default_may_be_left_out_when_its_fields_have_theirs() -> None:
    @dataclass(frozen=True)
    class Inner:
        needed: int

    @dataclass(frozen=True)
    class Outer:
        easy: Optimizer
        hard: Inner

    assert config.load(Outer, None, {"hard.needed": "3"}) == Outer(Optimizer(), Inner(3))
    assert refusal(config.from_dict, Outer, {}) == "hard.needed is missing; expected a whole number"


def test_a_kind_must_be_named_where_there_is_no_default(file: Path) -> None:
    for text in ("title: x", "images: {size: 3}", "images:"):
        file.write_text(text)
        message = refusal(config.load, Settings, file, {})
        assert message == f"{file}: images.kind is missing; expected disk|dream"
    assert "extra.kind is missing" in refusal(read, file, "extra: {size: 3}")


def test_an_unknown_kind_is_answered_with_the_nearest(file: Path) -> None:
    expected = "images.kind is dram; expected disk|dream; did you mean dream?"
    assert refusal(read, file, "images: {kind: dram}") == f"{file}: {expected}"
    assert refusal(read, file, "", images__kind="dram") == f"--{expected}"
    assert "images.kind is [disk]" in refusal(read, file, "images: {kind: [disk]}")


def test_a_flag_that_changes_the_kind_keeps_of_the_file_what_both_kinds_have(file: Path) -> None:
    text = "images: {kind: disk, size: 5, place: there}\nnoise: {depth: 2, size: 3}"
    settings = read(file, text, images__kind="dream", images__depth="4", noise__kind="disk")
    assert settings.images == Dream(size=5, depth=4)
    assert settings.noise == Disk(size=3)


def test_a_flag_that_repeats_or_changes_the_kind_does_not_hide_a_misspelling(file: Path) -> None:
    for kind in ("disk", "dream"):
        message = refusal(read, file, "images: {kind: disk, plce: x}", images__kind=kind)
        assert message.startswith(f"{file}: images.plce is not a setting of kind {kind}; ")
    assert "images.depth is not" in refusal(read, file, "images: {kind: disk, depth: 1}", images__kind="disk")


def test_a_setting_of_another_kind_is_refused_with_the_kind(file: Path) -> None:
    assert refusal(read, file, "", images__depth="3") == (
        "--images.depth is not a setting of kind disk; possible: "
        "--images.size, --images.sharpness, --images.kind, --images.place"
    )


def test_a_section_and_something_inside_it_cannot_both_be_flags(file: Path) -> None:
    assert "--extra and --extra.size" in refusal(read, file, "", extra="null", extra__size="3")


def test_flags_win_over_the_file_in_any_order_and_dashes_equal_underscores(file: Path) -> None:
    file.write_text(config.dump(StageOne(data=MNIST5k(), run=Run(report_to="wandb", log_every=3))))
    flags = {"run.report-to": "x", "run.log_every": "4", "data.kind": "folder", "data.path": "p", "data.bad-files": "0"}
    expected = replace(
        StageOne(data=Folder(path="p", bad_files=0, size=32, channels=1)), run=Run(report_to="x", log_every=4)
    )
    for order in itertools.permutations(flags.items()):
        assert config.load(StageOne, file, dict(order)) == expected


# Names


def misspellings(word: str) -> set[str]:
    """Every word that lacks one letter of `word` or has two neighbors exchanged."""
    shorter = {word[:place] + word[place + 1 :] for place in range(len(word))}
    swapped = {word[:p] + word[p + 1] + word[p] + word[p + 2 :] for p in range(len(word) - 1)}
    return (shorter | swapped) - {word, ""}


def leaves(mapping: dict[str, Any], prefix: str = "") -> list[str]:
    nested = [leaves(v, f"{prefix}{k}.") if isinstance(v, dict) else [prefix + k] for k, v in mapping.items()]
    return list(itertools.chain.from_iterable(nested))


def with_key(mapping: dict[str, Any], parents: list[str], wrong: str) -> dict[str, Any]:
    """`mapping` with one more key, `wrong`, in the section that `parents` lead to."""
    if not parents:
        return {**mapping, wrong: 1}
    first, *rest = parents
    return {**mapping, first: with_key(mapping[first], rest, wrong)}


@pytest.mark.parametrize("settings", [DISK, *REAL], ids=lambda settings: type(settings).__name__)
def test_every_misspelling_by_one_letter_is_refused_and_the_right_name_is_suggested(settings: Any) -> None:
    complete = config.to_dict(settings)
    refused, right = 0, 0
    for name in leaves(complete):
        parts = name.split(".")
        for depth, part in enumerate(parts):
            meant = ".".join(parts[: depth + 1])
            for wrong in misspellings(part):
                typed = ".".join([*parts[:depth], wrong, *parts[depth + 1 :]])
                in_flag = refusal(config.load, type(settings), None, {typed: "1"})
                in_file = refusal(config.from_dict, type(settings), with_key(complete, parts[:depth], wrong))
                refused += 2
                right += in_flag == f"--{typed} is not a setting; did you mean --{name}?"
                right += in_file.endswith(f"did you mean {meant}?")
    assert refused > 300
    assert right >= 0.95 * refused


def test_a_name_in_the_wrong_section_is_found_in_the_right_one(file: Path) -> None:
    assert refusal(read, file, "optim: {lrr: 1}") == f"{file}: optim.lrr is not a setting; did you mean optim.lr?"
    assert refusal(read, file, "lr: 1") == f"{file}: lr is not a setting; did you mean optim.lr?"
    for typed in ("lr", "optm.lr", "images.lr", "optm.lrr", "optim.rl"):
        assert refusal(config.load, Settings, None, {typed: "1"}).endswith("did you mean --optim.lr?")


def test_a_name_like_no_other_is_answered_with_the_possible_ones(file: Path) -> None:
    assert refusal(read, file, "optim: {qqqq: 1}").endswith(
        "possible: optim.lr, optim.betas, optim.warmup, optim.schedule, optim.nesterov"
    )
    assert "possible: images, noise, extra" in refusal(read, file, "qqqq: 1")


@pytest.mark.parametrize("key", ["optim.lr", "1", "null", "true", '"a\\nb"', "x" * 5000, "optim.lr.x"])
def test_a_key_that_is_no_plain_name_is_refused(file: Path, key: str) -> None:
    message = refusal(read, file, f"? {key}\n: 1")
    assert "is not a setting" in message and len(message) < 1000


# Files


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is null; expected settings: images"),
        ("# nothing\n", "is null; expected settings"),
        ("[1, 2]", "is [1, 2]; expected settings"),
        ("text", "is text; expected settings"),
        ("images: [", "line 1: "),
        ("a: b: c", "line 1: "),
        ("optim: {lr: 1}\nimages: {kind: disk}\noptim: {lr: 2}", "line 3: optim is set twice"),
        ("optim:\n  lr: 1\n  lr: 1", "line 3: lr is set twice"),
        ("a: 1\n---\nb: 2", "line 2: "),
        ("title: *nobody", "line 1: found undefined alias"),
        ("? [a]\n: 1", "line 1: "),
        ("<<: {title: x}", "<< is not a setting"),
        ('title: "\\UFFFFFFFF"', ""),
        ("[" * 500, ""),
        ("title: \x07", ""),
        ("widths: " + "9" * 5000, ""),
    ],
)
def test_a_file_that_is_no_mapping_of_settings_is_refused_with_its_name(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    message = refusal(config.load, Settings, file, {})
    assert message.startswith(str(file)) and says in message and len(message) < 600


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch owned']",
        "!!python/object/new:os.system ['touch owned']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!bool x",
        "!!timestamp x",
        "!custom {}",
        "! x",
    ],
)
def test_tags_are_refused_and_run_nothing(
    file: Path, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file.write_text(f"images: {{kind: disk}}\ntitle: {value}\n")
    assert refusal(config.load, Settings, file, {}).startswith(f"{file}: line 2: tags ")
    assert refusal(config.load, Settings, None, {"widths": value, "images.kind": "disk"}).startswith("--widths is ")
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal(config.load, Settings, tmp_path / "none.yaml", {}).startswith(
        f"{tmp_path / 'none.yaml'} cannot be read"
    )
    assert refusal(config.load, Settings, tmp_path, {}).startswith(f"{tmp_path} cannot be read")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert refusal(config.load, Settings, tmp_path / "binary.yaml", {}).startswith(f"{tmp_path / 'binary.yaml'}: ")


def test_a_range_check_of_the_settings_names_file_flags_and_section(file: Path) -> None:
    reason = "optim: lr is negative: it must be at least 0"
    assert refusal(read, file, "optim: {lr: -1}") == f"{file}: {reason}"
    assert refusal(config.load, Settings, None, {"images.kind": "disk", "optim.lr": "-1"}) == f"--optim.lr: {reason}"
    assert refusal(read, file, "", optim__lr="-1") == f"{file}, --optim.lr: {reason}"
    assert refusal(config.from_dict, Optimizer, {"lr": -1}) == "lr is negative: it must be at least 0"


# Back again


NUMBERS = [0.0, 1e-4, 1e-6, 1e22, 5e-324, math.pi, 1.7976931348623157e308, 0.1 + 0.2, 1e16, 123456789.0, -2.5e-8]


@pytest.mark.parametrize(
    "settings",
    [
        DISK,
        Settings(images=Dream(depth=-3), extra=Disk(sharpness=0.1), widths=(), channels=1, average="0.10"),
        *(Settings(images=Disk(sharpness=number), optim=Optimizer(betas=(number, -number))) for number in NUMBERS),
        *(
            Settings(images=Disk(place=text), title=text)
            for text in (
                "1e-4",
                "null",
                "no",
                "~",
                "12",
                "true",
                "a: b",
                "# x",
                " x ",
                "a\nb\n",
                "é 漢 🙂",
                "-",
                "[",
                "x " * 99,
            )
        ),
        StageOne(data=Folder(path="/a b/c", background=(0, 1, 2)), run=Run(ema="0.10", steps=10**6)),
    ],
    ids=str,
)
def test_what_is_written_is_read_back_the_same(file: Path, settings: Any) -> None:
    file.write_text(config.dump(settings), encoding="utf-8")
    assert config.load(type(settings), file, {}) == settings
    assert config.from_dict(type(settings), config.to_dict(settings)) == settings


def test_the_dictionary_is_plain_complete_and_in_the_order_of_the_fields() -> None:
    assert config.to_dict(replace(DISK, extra=Disk())) == {
        "images": {"size": 8, "sharpness": None, "kind": "disk", "place": "here"},
        "noise": {"size": 16, "sharpness": None, "kind": "dream", "depth": 7},
        "extra": {"size": 8, "sharpness": None, "kind": "disk", "place": "here"},
        "optim": {"lr": 1e-3, "betas": [0.9, 0.99], "warmup": 9, "schedule": "cosine", "nesterov": False},
        "widths": [32, 64],
        "average": "0.05",
        "channels": 3,
        "title": "",
        "remark": "none",
    }
    keys = [line.split(":")[0] for line in config.dump(DISK).splitlines() if not line.startswith(" ")]
    assert keys == ["images", "noise", "extra", "optim", "widths", "average", "channels", "title", "remark"]


def test_differences_are_the_dotted_names_that_changed_appeared_or_went() -> None:
    old = config.to_dict(DISK)
    new = config.to_dict(Settings(images=Dream(size=8), optim=Optimizer(lr=1, warmup=9), widths=(32,), extra=Disk()))
    assert config.differences(old, old) == []
    expected = ["images.kind", "images.place", "images.depth", "noise.depth", "extra", "optim.lr", "widths"]
    new["noise"]["depth"] = 8
    assert config.differences(old, new) == expected
    assert sorted(config.differences(new, old)) == sorted(expected)


# The command line


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
        assert command.settings == Settings(Disk(), title="-5", optim=Optimizer(lr=0, warmup=9, nesterov=True))
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
    assert "\nTrains.\n" in shown and "the run folder" in shown and config.describe(Settings) in shown


def test_the_description_has_flag_values_comment_and_default_of_every_setting() -> None:
    lines = [" ".join(line.split()) for line in config.describe(Settings).splitlines()]
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
    lines = config.describe(StageTwo).splitlines()
    assert max(map(len, lines)) <= 120
    starts = {len(line) - len(line.lstrip()) for line in lines if not line.lstrip().startswith("--")}
    assert len(starts) == 1, "continued explanations stand below each other"
    (column,) = starts
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)


def test_settings_and_config_do_not_import_torch() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in [ROOT / "ldm/settings.py", *ROOT.glob("ldm/*/settings.py")]
    ]
    assert len(modules) >= 5
    code = (
        f"import sys, ldm.config, {', '.join(modules)}; print(sorted({{'torch', 'numpy', 'PIL'}} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
