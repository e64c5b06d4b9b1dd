"""Configs are read strictly, from files and flags alike, and a mistake is answered in one helpful line."""

import itertools
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ldm.autoencoder.config import GaussianConfig, KLNetworkConfig, ReconstructionObjectiveConfig, StageConfig
from ldm.config import reader
from ldm.corruption import GaussianNoise, Mask
from ldm.data.config import (
    ClassConditionConfig,
    FolderConfig,
    MNIST5kConfig,
    NumberConditionConfig,
    TextConditionConfig,
)
from ldm.diffusion.config import UNetConfig
from ldm.errors import ConfigError
from ldm.script_configs import TrainDiffusionConfig, TrainVAEConfig
from ldm.training.config import AdamWConfig, RunConfig
from tests.support.example_configs import DISK, Disk, Dream, ExampleConfig, Optimizer, refusal
from tests.support.scripts import ROOT

REAL = [TrainVAEConfig(data=MNIST5kConfig()), TrainDiffusionConfig(data=MNIST5kConfig())]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a.yaml"
    file.write_text("images: {kind: disk}\n")
    return file


def read(file: Path, text: str, **flags: str) -> ExampleConfig:
    """Settings from a file that says `text`, and from flags in which __ stands for a dot."""
    if "images" not in text:
        text += "\nimages: {kind: disk}\n"
    file.write_text(text)
    return reader.load(ExampleConfig, file, {name.replace("__", "."): value for name, value in flags.items()})


# Values


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2", 2.0), ("1_0.5", 10.5), ("-0.0", -0.0), (".5", 0.5)])
def test_a_number_is_the_same_number_in_a_file_and_in_a_flag(file: Path, text: str, value: float) -> None:
    for config in (read(file, f"images: {{kind: disk, sharpness: {text}}}"), read(file, "", images__sharpness=text)):
        assert config.images.sharpness == value and type(config.images.sharpness) is float


@pytest.mark.parametrize(("text", "value"), [("1e3", 1000), ("1_000", 1000), ("010", 10), ("3.0", 3), ("-7", -7)])
def test_a_whole_number_may_be_written_with_an_exponent_and_is_never_octal(file: Path, text: str, value: int) -> None:
    for config in (read(file, f"optim: {{warmup: {text}}}"), read(file, "", optim__warmup=text)):
        assert config.optim.warmup == value and type(config.optim.warmup) is int


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
    in_flag = refusal(reader.load, ExampleConfig, file, {name: text})
    assert in_flag.startswith(f"--{name} is ") and "; expected " in in_flag


@pytest.mark.parametrize("text", ["5", "0.05", "1e-4", "true", "null", "[a]"])
def test_what_is_no_text_needs_quotes_to_be_text_in_a_file(file: Path, text: str) -> None:
    assert "title is " in refusal(read, file, f"title: {text}")
    assert read(file, f"title: '{text}'").title == text


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
    config = read(file, "optim: {betas: [0, 1]}", widths="[1, 1e1, 100]")
    assert config.optim.betas == (0.0, 1.0) and config.widths == (1, 10, 100)
    assert read(file, "widths: []").widths == ()


def test_null_is_possible_only_where_the_type_says_so(file: Path) -> None:
    config = read(
        file, "images: {kind: disk, sharpness: 2}\nextra: {kind: dream}", images__sharpness="null", extra="null"
    )
    assert config == DISK
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

    assert reader.load(Outer, None, {"hard.needed": "3"}) == Outer(Optimizer(), Inner(3))
    assert refusal(reader.from_dict, Outer, {}) == "hard.needed is missing; expected a whole number"


def test_a_kind_must_be_named_where_there_is_no_default(file: Path) -> None:
    for text in ("title: x", "images: {size: 3}", "images:"):
        file.write_text(text)
        message = refusal(reader.load, ExampleConfig, file, {})
        assert message == f"{file}: images.kind is missing; expected disk|dream"
    assert "extra.kind is missing" in refusal(read, file, "extra: {size: 3}")


def test_an_unknown_kind_is_answered_with_the_nearest(file: Path) -> None:
    expected = "images.kind is dram; expected disk|dream; did you mean dream?"
    assert refusal(read, file, "images: {kind: dram}") == f"{file}: {expected}"
    assert refusal(read, file, "", images__kind="dram") == f"--{expected}"
    assert "images.kind is [disk]" in refusal(read, file, "images: {kind: [disk]}")


def test_a_flag_that_changes_the_kind_keeps_of_the_file_what_both_kinds_have(file: Path) -> None:
    text = "images: {kind: disk, size: 5, place: there}\nnoise: {depth: 2, size: 3}"
    config = read(file, text, images__kind="dream", images__depth="4", noise__kind="disk")
    assert config.images == Dream(size=5, depth=4)
    assert config.noise == Disk(size=3)


@pytest.mark.parametrize("config", ["folder", "mnist5k"])
@pytest.mark.parametrize("kind", ["kl", "tiny", "taesd"])
def test_another_kind_of_network_was_refused_for_the_number_of_blocks_of_the_former(config: str, kind: str) -> None:
    flags = {"autoencoder.network.kind": kind}
    network = reader.load(TrainVAEConfig, ROOT / f"configs/vae/{config}.yaml", flags).autoencoder.network
    assert network.kind == kind and network.blocks == type(network)().blocks
    assert "--autoencoder.network.blocks is 0" in refusal(
        reader.load, TrainVAEConfig, ROOT / "configs/vae/folder.yaml", flags | {"autoencoder.network.blocks": "0"}
    )


def test_a_flag_that_repeats_or_changes_the_kind_does_not_hide_a_misspelling(file: Path) -> None:
    for kind in ("disk", "dream"):
        message = refusal(read, file, "images: {kind: disk, plce: x}", images__kind=kind)
        assert message.startswith(f"{file}: images.plce is not a setting of kind {kind}; ")
        message = refusal(read, file, "images: {kind: disk, size: x}", images__kind=kind)
        assert message.startswith(f"{file}: images.size is x; expected a whole number")
    assert "images.depth is not" in refusal(read, file, "images: {kind: disk, depth: 1}", images__kind="disk")


def test_a_setting_of_another_kind_is_refused_with_the_kind(file: Path) -> None:
    assert refusal(read, file, "", images__depth="3") == (
        "--images.depth is not a setting of kind disk; possible: "
        "--images.size, --images.sharpness, --images.kind, --images.place"
    )


def test_a_section_and_something_inside_it_cannot_both_be_flags(file: Path) -> None:
    assert "--extra and --extra.size" in refusal(read, file, "", extra="null", extra__size="3")


def test_flags_win_over_the_file_in_any_order_and_dashes_equal_underscores(file: Path) -> None:
    file.write_text(reader.dump(TrainVAEConfig(data=MNIST5kConfig(), run=RunConfig(report_to="wandb", log_every=3))))
    flags = {
        "run.report-to": "x",
        "run.log_every": "4",
        "data.kind": "folder",
        "data.path": "p",
        "data.max-unreadable": "0",
    }
    expected = replace(
        TrainVAEConfig(data=FolderConfig(path="p", max_unreadable=0, size=32, channels=1)),
        run=RunConfig(report_to="x", log_every=4),
    )
    for order in itertools.permutations(flags.items()):
        assert reader.load(TrainVAEConfig, file, dict(order)) == expected


# Lists of sections


def stages(file: Path, text: str, **flags: str) -> tuple[StageConfig, ...]:
    """The stages that a file for train_vae.py says, with flags in which __ stands for a dot."""
    file.write_text(f"data: {{kind: mnist5k}}\n{text}\n")
    named = {name.replace("__", "."): value for name, value in flags.items()}
    return reader.load(TrainVAEConfig, file, named).objective.stages


LIST = (
    StageConfig(fraction=2, layer=1, corruption=GaussianNoise(sigma=(0.1, 1.0))),
    StageConfig(layer=2, trains="decoder", target="images", corruption=Mask(unit="element", fraction=0.3)),
    StageConfig(classification=False),
)


def test_a_list_of_settings_keeps_its_order_and_each_has_its_own_defaults(file: Path) -> None:
    given = "[{layer: 2}, {layer: 1, fraction: 1e-1}, {}, {layer: 2}]"
    expected = (StageConfig(layer=2), StageConfig(layer=1, fraction=0.1), StageConfig(), StageConfig(layer=2))
    assert stages(file, f"objective: {{stages: {given}}}") == stages(file, "", objective__stages=given) == expected
    in_lines = "objective:\n  stages:\n    - layer: 2\n    - {layer: 1, fraction: 0.1}\n    - {}\n    - layer: 2"
    assert stages(file, in_lines) == expected
    assert stages(file, "") == stages(file, "objective: {stages: []}") == ()


def test_a_flag_replaces_the_whole_list_of_a_file(file: Path) -> None:
    text = "objective: {stages: [{layer: 1}, {layer: 2}]}"
    assert stages(file, text, objective__stages="[{layer: 3}]") == (StageConfig(layer=3),)
    assert stages(file, text, objective__stages="[]") == ()


def test_the_items_of_a_list_have_sections_of_several_kinds(file: Path) -> None:
    mask = "{kind: mask, unit: element, fraction: [0, 0.5]}"
    given = f"[{{corruption: {mask}}}, {{corruption: {{kind: gaussian}}}}, {{corruption: null}}]"
    found = [stage.corruption for stage in stages(file, f"objective: {{stages: {given}}}")]
    assert found == [Mask(unit="element", fraction=(0.0, 0.5)), GaussianNoise(), None]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("[{layer: 1}, {layr: 2}]", "objective.stages.1.layr is not a setting; did you mean objective.stages.1.layer?"),
        ("[{layer: 1}, {layer: x}]", "objective.stages.1.layer is x; expected a whole number"),
        ("[{}, {}, {trains: decodr}]", "objective.stages.2.trains is decodr; expected all|encoder|decoder"),
        (
            "[{corruption: {kind: mask, fractoin: 1}}]",
            "objective.stages.0.corruption.fractoin is not a setting of kind mask; did you mean"
            " objective.stages.0.corruption.fraction?",
        ),
        ("[{layer: 1}, {corruption: {kind: msk}}]", "objective.stages.1.corruption.kind is msk; expected "),
        (
            "[{layer: 1}, {fraction: 0}]",
            "objective.stages.1.fraction is 0; expected a finite number (above 0)",
        ),
        (
            "[{corruption: {kind: mask, fraction: 3}}]",
            "objective.stages.0.corruption.fraction is 3; expected a finite number or"
            " [a finite number, a finite number] (at least 0 and below 1)",
        ),
        ("[{corruption: {kind: mask, fraction: 0}}]", "objective.stages.0.corruption: fraction must be above 0"),
    ],
)
def test_a_mistake_in_a_list_is_answered_with_the_number_of_the_item(file: Path, given: str, says: str) -> None:
    assert refusal(stages, file, f"objective: {{stages: {given}}}").startswith(f"{file}: {says}")


@pytest.mark.parametrize(
    "given", ["[{layer: 1}, {layr: 2}]", "[{layer: x}]", "[{fraction: 0}]", "[{corruption: {kind: mask, fraction: 0}}]"]
)
def test_a_mistake_in_a_list_that_was_a_flag_is_not_blamed_on_the_file(file: Path, given: str) -> None:
    for text in ("", "objective: {stages: [{layer: 1}]}"):
        message = refusal(stages, file, text, objective__stages=given)
        assert message.startswith("--objective.stages") and str(file) not in message


@pytest.mark.parametrize(
    "given", ["3", "[1]", "{layer: 1}", "text", "null", "[null]", "[[]]", "[{layer: 1}, 2]", "true"]
)
def test_what_is_no_list_of_settings_is_refused_with_what_is_expected(file: Path, given: str) -> None:
    expected = "; expected a list of settings: fraction, layer, trains, target, corruption"
    in_file = refusal(stages, file, f"objective: {{stages: {given}}}")
    assert in_file.startswith(f"{file}: objective.stages is ") and expected in in_file
    in_flag = refusal(stages, file, "", objective__stages=given)
    assert in_flag.startswith("--objective.stages is ") and expected in in_flag


@pytest.mark.parametrize("given", ["[{", "[{layer: 1}", "- {", "!!python/name:os.system", "[!!bool x]", "'"])
def test_a_flag_that_is_no_yaml_is_refused_and_not_passed_over(file: Path, given: str) -> None:
    for text in ("", "objective: {stages: [{layer: 1}]}"):
        assert refusal(stages, file, text, objective__stages=given).startswith("--objective.stages")


def test_an_item_of_a_list_has_no_flag_of_its_own(file: Path) -> None:
    message = refusal(stages, file, "objective: {stages: [{layer: 1}]}", objective__stages__0__layer="2")
    assert message.startswith("--objective.stages.0.layer is not a setting") and "--objective.stages?" in message


def test_a_list_is_written_and_read_back_the_same_and_differs_as_a_whole(file: Path) -> None:
    config = TrainVAEConfig(data=MNIST5kConfig(), objective=ReconstructionObjectiveConfig(stages=LIST))
    file.write_text(reader.dump(config))
    assert reader.load(TrainVAEConfig, file, {}) == config
    written = reader.to_dict(config)
    assert reader.from_dict(TrainVAEConfig, written) == config
    assert [stage["layer"] for stage in written["objective"]["stages"]] == [1, 2, 0]
    other = reader.to_dict(replace(config, objective=replace(config.objective, stages=LIST[:2])))
    assert reader.differences(written, other) == ["objective.stages"]


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


@pytest.mark.parametrize("config", [DISK, *REAL], ids=lambda config: type(config).__name__)
def test_every_misspelling_by_one_letter_is_refused_and_the_right_name_is_suggested(config: Any) -> None:
    complete = reader.to_dict(config)
    refused, right, tried = 0, 0, set[str]()
    for name in leaves(complete):
        parts = name.split(".")
        for depth, part in enumerate(parts):
            meant = ".".join(parts[: depth + 1])
            if meant in tried:  # a section, with another of its settings
                continue
            tried.add(meant)
            for wrong in misspellings(part):
                typed = ".".join([*parts[:depth], wrong, *parts[depth + 1 :]])
                in_flag = refusal(reader.load, type(config), None, {typed: "1"})
                in_file = refusal(reader.from_dict, type(config), with_key(complete, parts[:depth], wrong))
                refused += 2
                right += in_flag == f"--{typed} is not a setting; did you mean --{name}?"
                right += in_file.endswith(f"did you mean {meant}?")
    assert refused > 300
    assert right >= 0.95 * refused


def test_a_name_in_the_wrong_section_is_found_in_the_right_one(file: Path) -> None:
    assert refusal(read, file, "optim: {lrr: 1}") == f"{file}: optim.lrr is not a setting; did you mean optim.lr?"
    assert refusal(read, file, "lr: 1") == f"{file}: lr is not a setting; did you mean optim.lr?"
    for typed in ("lr", "optm.lr", "images.lr", "optm.lrr", "optim.rl"):
        assert refusal(reader.load, ExampleConfig, None, {typed: "1"}).endswith("did you mean --optim.lr?")


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
        ("a: b: c", "line 1: "),
        ("<<: {title: x}", "<< is not a setting"),
    ],
)
def test_a_file_that_is_no_mapping_of_settings_is_refused_with_its_name(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    message = refusal(reader.load, ExampleConfig, file, {})
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
    assert refusal(reader.load, ExampleConfig, file, {}).startswith(f"{file}: line 2: tags ")
    assert refusal(reader.load, ExampleConfig, None, {"widths": value, "images.kind": "disk"}).startswith(
        "--widths is "
    )
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_config_itself_refuses_names_file_flags_and_section(file: Path) -> None:
    reason = "optim: lr is negative: use at least 0"
    assert refusal(read, file, "optim: {lr: -1}") == f"{file}: {reason}"
    assert (
        refusal(reader.load, ExampleConfig, None, {"images.kind": "disk", "optim.lr": "-1"}) == f"--optim.lr: {reason}"
    )
    assert refusal(read, file, "", optim__lr="-1") == f"{file}, --optim.lr: {reason}"
    assert refusal(reader.from_dict, Optimizer, {"lr": -1}) == "lr is negative: use at least 0"


# Back again


NUMBERS = [0.0, 1e-4, 1e-6, 1e22, 5e-324, math.pi, 1.7976931348623157e308, 0.1 + 0.2, 1e16, 123456789.0, -2.5e-8]


@pytest.mark.parametrize(
    "config",
    [
        DISK,
        ExampleConfig(images=Dream(depth=-3), extra=Disk(sharpness=0.1), widths=(), channels=1, average="0.10"),
        *(ExampleConfig(images=Disk(sharpness=number), optim=Optimizer(betas=(number, -number))) for number in NUMBERS),
        *(
            ExampleConfig(images=Disk(place=text), title=text)
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
        TrainVAEConfig(data=FolderConfig(path="/a b/c", background=(0, 1, 2)), run=RunConfig(ema="0.10", steps=10**6)),
    ],
    ids=str,
)
def test_what_is_written_is_read_back_the_same(file: Path, config: Any) -> None:
    file.write_text(reader.dump(config), encoding="utf-8")
    assert reader.load(type(config), file, {}) == config
    assert reader.from_dict(type(config), reader.to_dict(config)) == config


def test_the_dictionary_is_plain_complete_and_in_the_order_of_the_fields() -> None:
    assert reader.to_dict(replace(DISK, extra=Disk())) == {
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
    keys = [line.split(":")[0] for line in reader.dump(DISK).splitlines() if not line.startswith(" ")]
    assert keys == ["images", "noise", "extra", "optim", "widths", "average", "channels", "title", "remark"]


def test_differences_are_the_dotted_names_that_changed_appeared_or_went() -> None:
    old = reader.to_dict(DISK)
    new = reader.to_dict(
        ExampleConfig(images=Dream(size=8), optim=Optimizer(lr=1, warmup=9), widths=(32,), extra=Disk())
    )
    assert reader.differences(old, old) == []
    expected = ["images.kind", "images.place", "images.depth", "noise.depth", "extra", "optim.lr", "widths"]
    new["noise"]["depth"] = 8
    assert reader.differences(old, new) == expected
    assert sorted(reader.differences(new, old)) == sorted(expected)


# The real configs


@pytest.mark.parametrize(
    ("cls", "name", "values"),
    [
        *((RunConfig, name, (0, -1)) for name in ("steps", "batch_size", "accumulation", "log_every")),
        *(
            (RunConfig, name, (-1,))
            for name in ("seed", "sample_every", "checkpoint_every", "checkpoint_seconds", "workers")
        ),
        *((AdamWConfig, name, (0.0, -1.0, math.nan)) for name in ("lr", "clip")),
        (AdamWConfig, "betas", ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan))),
        (AdamWConfig, "weight_decay", (-0.1, math.nan)),
        (AdamWConfig, "warmup", (-1,)),
        *((network, "widths", ((), (32, 0), (-1,))) for network in (KLNetworkConfig, UNetConfig)),
        *((network, "blocks", (0, -1)) for network in (KLNetworkConfig, UNetConfig)),
        (KLNetworkConfig, "norm_groups", (0, -1)),
        (UNetConfig, "head_channels", (0, -1)),
        (GaussianConfig, "channels", (0, -1)),
        (ReconstructionObjectiveConfig, "kl", (-1e-6, math.nan, math.inf)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(cls: type, name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be "):
            cls(**{name: value})


CONDITIONS = "data: {kind: folder, path: a, conditions: {tone: {kind: class}, angle: {kind: number, period: 360}}}"


def test_sections_by_name_have_kinds_are_read_back_and_given_whole_by_a_flag(file: Path) -> None:
    file.write_text(CONDITIONS)
    config = reader.load(TrainVAEConfig, file, {})
    assert config.data.conditions == {"tone": ClassConditionConfig(), "angle": NumberConditionConfig(period=360.0)}
    assert reader.from_dict(TrainVAEConfig, reader.to_dict(config)) == config
    other = reader.load(TrainVAEConfig, file, {"data.conditions": "{text: {kind: text, length: 8}}"})
    assert other.data.conditions == {"text": TextConditionConfig(length=8)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{tone: 1}", "expected settings by name: {NAME: {kind: class|number|text, ...}}"),
        ("[tone]", "expected settings by name"),
        ("{tone: {kind: clas}}", "data.conditions.tone.kind is clas; expected class|number|text; did you mean class?"),
        (
            "{a: {kind: number, period: -1}}",
            "data.conditions.a.period is -1; expected a finite number or null (above 0)",
        ),
        ("{tone: {kind: class, period: 3}}", "data.conditions.tone.period is not a setting of kind class"),
        ("{t: {kind: text, channels: 33}}", "channels 33 must be even, for rotary positions turn them in pairs"),
        (
            "{a: {kind: text, channels: 8}, b: {kind: text, layers: 0, channels: 33}}",
            "the widest text has channels 33, which must be even beside other texts",
        ),
        ("{a b: {kind: class}}", "'a b' must be a name of letters, digits and _"),
    ],
)
def test_a_wrong_section_by_name_is_refused_with_its_name(file: Path, given: str, says: str) -> None:
    file.write_text(CONDITIONS)
    with pytest.raises(ConfigError, match=re.escape(says)):
        reader.load(TrainVAEConfig, file, {"data.conditions": given})
