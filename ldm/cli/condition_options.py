"""Options by which samples are asked for: classes, prompts, and one flag for each condition of a run."""

import argparse
import csv
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ldm.errors import ConfigError

CONDITION = "condition of "  # and the name of an attribute: its flag's place among the options


def add_condition_options(parser: Any, arguments: Sequence[str]) -> None:
    """The flags of labels and prompts, and `--NAME` for each attribute of the run that the arguments name."""
    add = parser.add_argument
    add("--labels", help='classes, by name or number, separated by commas; "a, b" is one; repeated as needed (all)')
    add("--prompt", action="append", metavar="TEXT", help="a text; given several times, several, repeated as needed")
    add("--prompts", type=Path, metavar="FILE", help="a file of texts, one a line")
    if not any(os.path.isfile(model_of(each)) for each in arguments):
        parser.hint = " (those of conditions are known from a finished run, and none is named)"
    for attribute in attributes_of(arguments):
        flag, dest = flag_of(parser, attribute["name"]), CONDITION + attribute["name"]
        if attribute["kind"] == "text":
            add(flag, dest=dest, action="append", metavar="TEXT", help="a text, as --prompt")
        else:
            what = "classes" if attribute["kind"] == "class" else "numbers"
            add(flag, dest=dest, metavar="X", help=f"{what}, separated by commas; repeated as needed (left out)")


def attributes_of(arguments: Sequence[str]) -> list[dict[str, str]]:
    """The attributes of the model in the first argument that is a folder of one; none where it cannot be read."""
    for before, argument in pairwise(["", *arguments]):
        if before == "--guide":  # of another run
            continue
        try:
            found = json.loads(model_of(argument).read_text())["schema"]["attributes"]
            return [{"name": str(each["name"]), "kind": str(each["kind"])} for each in found]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


def model_of(argument: str) -> Path:
    """The file that says which conditions a model has, if the argument is a run."""
    return Path(argument) / "unet" / "config.json"


def alternatives(arguments: Sequence[str]) -> list[set[str]]:
    """Places among the options that say the same of the run that the arguments name: `--labels` and its own flag."""
    found, attributes = [], attributes_of(arguments)
    for kind, options in (("class", {"labels"}), ("text", {"prompt", "prompts"})):
        first = next((each["name"] for each in attributes if each["kind"] == kind), None)
        found.append(options if first is None else {*options, CONDITION + first})
    return found


def flag_of(parser: Any, name: str) -> str:
    """`--NAME`, or `--condition-NAME` where another option is called so."""
    flag = f"--{name.replace('_', '-')}"
    return f"--condition-{flag[2:]}" if flag in parser._option_string_actions else flag


def requested_conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Labels, prompt and conditions, as `LatentDiffusion.sample` takes them; ConfigError for what cannot be read."""
    conditions = {}
    for dest, given in vars(options).items():
        if dest.startswith(CONDITION) and given is not None:
            name = dest.removeprefix(CONDITION)
            conditions[name] = given if isinstance(given, list) else split_at_commas(given, f"--{name}")
    return {
        "labels": split_at_commas(options.labels, "--labels"),
        "prompt": prompts_of(options),
        "conditions": conditions or None,
    }


def prompts_of(options: argparse.Namespace) -> list[str] | None:
    """The texts of `--prompt` or of the lines of `--prompts`."""
    if options.prompts is None:
        return options.prompt if options.prompt is None else list(options.prompt)
    if options.prompt is not None:
        raise ConfigError("--prompt and --prompts cannot be given together")
    try:
        lines = [line.strip() for line in options.prompts.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts {options.prompts} cannot be read: {error}") from error
    if not any(lines):
        raise ConfigError(f"--prompts {options.prompts} holds no text: give one a line")
    return [line for line in lines if line]


def split_at_commas(text: str | None, flag: str) -> list[str] | None:
    """Values separated by commas as in CSV, where quotes hold one with a comma."""
    if text is None:
        return None
    try:
        (names,) = csv.reader([text.strip()], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise ConfigError(f"{flag} {text} cannot be read ({error}): separate values by commas") from error
    return [name.strip() for name in names or [""]]


def weights_of(text: str) -> float | dict[str, float]:
    """The weight of `--guidance`, or one for each condition: `text=4,label=2`."""
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.partition("=") for part in text.split(",")]
        return {name.strip(): float(weight) for name, _, weight in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor one for each condition, as text=4,label=2"
        ) from None
