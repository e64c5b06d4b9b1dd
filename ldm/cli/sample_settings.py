"""Settings stored in the pictures of sample.py, and the command line that `--like` makes of them."""

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ldm.cli.condition_options import alternatives
from ldm.config.command_line import Parser
from ldm.errors import ConfigError

NOT_STORED = ("out", "device", "like")  # they say where, and not what
MARKS = {"run", "sampler", "seed"}  # what every picture of sample.py says
MODEL, INPUTS = "model", "inputs"  # keys of the fingerprints beside the settings
FILES = ("image", "mask", "variations", "prompts")  # settings that name a file


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    """What is stored in a picture: every setting that has a value, and fingerprints of the model and of input files."""
    chosen = {name: value for name, value in vars(options).items() if name not in NOT_STORED}
    settings = {name: text_of(value) for name, value in chosen.items() if value is not None and value is not False}
    settings[MODEL] = fingerprint(model_files(options.run))
    if inputs := input_files(options):
        settings[INPUTS] = fingerprint(inputs)
    return settings


def text_of(value: Any) -> str:
    """How a setting is stored, to be read again: weights by condition as --guidance takes them, lists as JSON."""
    if isinstance(value, dict):
        return ",".join(f"{name}={weight}" for name, weight in value.items())
    return json.dumps(value) if isinstance(value, list) else str(value)


def arguments_like(arguments: list[str], parser_of: Callable[[Sequence[str]], Parser]) -> list[str]:
    """The command line with the settings in the picture that `--like` names, which what is given overrides.

    `parser_of` makes the parser of a command line, which has a flag for each condition of its run.
    """
    like = picture_like(arguments)
    if like is None:
        return arguments
    stored = stored_settings(like)
    of_run = [*arguments, stored["run"]]
    parser = parser_of(of_run)
    options, given = parser.read(arguments), given_names(arguments, parser)
    for group in [*alternatives(of_run), {"num", "seeds"}]:
        given |= group if group & given else set()
    run = options.run or Path(stored["run"])
    if options.run is None and not (run / "unet").is_dir():
        raise ConfigError(
            f"--like {options.like} was drawn from {run}, which is not there: name that run, as in sample.py RUN --like"
            f" {options.like}"
        )
    if MODEL in stored and (run / "unet").is_dir() and stored[MODEL] != fingerprint(model_files(run)):
        advice = "its weights are others now" if options.run is None else f"leave it out to take {stored['run']}"
        raise ConfigError(f"--like {options.like} was drawn from another model than {run}: {advice}")
    if "number" in stored and not stored.keys() & {"interpolate", "strip", "gif"}:  # one of a folder
        stored = {**stored, "num": "None", "seeds": stored["number"]}
    made = [] if options.run is not None else [stored["run"]]
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    for name, text in stored.items():
        if name not in actions or name in (*NOT_STORED, *given) or text in ("None", "False"):
            continue
        flag = actions[name].option_strings[0]
        if isinstance(vars(options)[name], bool):
            made.append(flag)
        elif name == "interpolate":
            made += [flag, *json.loads(text)]
        elif isinstance(actions[name], argparse._AppendAction):
            made += [f"{flag}={each}" for each in json.loads(text)]
        else:
            made.append(f"{flag}={text}")
    return [*made, *arguments]


def picture_like(arguments: Sequence[str]) -> Path | None:
    """The picture that `--like` names on a command line; None where none is given."""
    for argument, following in pairwise([*arguments, ""]):
        flag, _, value = argument.partition("=")
        if flag == "--like" and (named := value or following):
            return Path(named).expanduser()
    return None


def check_inputs(options: argparse.Namespace) -> None:
    """Raise ConfigError if the files that a `--like` was made of are others now."""
    if options.like is None:
        return
    stored, now = stored_settings(options.like), input_files(options)
    same = all(stored.get(name) == str(getattr(options, name)) for name in FILES if getattr(options, name))
    if INPUTS in stored and now and same and stored[INPUTS] != fingerprint(now):
        names = ", ".join(map(str, now))
        raise ConfigError(f"--like {options.like} was made of {names}, which is not what it was then")


def stored_settings(file: Path) -> dict[str, str]:
    """The settings in a picture of sample.py, or ConfigError."""
    found = texts_of(file)
    if found is None or not found.keys() >= MARKS:
        raise ConfigError(f"--like {file} is not a picture of sample.py: it holds no settings")
    return found


def texts_of(file: Path) -> dict[str, str] | None:
    """The texts in a PNG, or in the comment of a GIF as JSON; None for what is no such picture."""
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG", "GIF"]) as picture:
            found = json.loads(picture.info["comment"]) if picture.format == "GIF" else picture.info
            return {str(name): value for name, value in found.items() if isinstance(value, str)}
    except Exception:  # of many types, where Pillow cannot read it
        return None


def is_own(path: Path) -> bool:
    """Whether that is a picture of sample.py, which may be drawn again, or nothing at all."""
    if not path.is_file() or not path.stat().st_size:
        return True
    return (texts_of(path) or {}).keys() >= MARKS


def given_names(arguments: Iterable[str], parser: Parser) -> set[str]:
    """The settings whose flags stand on a command line."""
    known, flags = parser._option_string_actions, [each.partition("=")[0] for each in arguments]
    return {known[flag].dest for flag in flags if flag in known}


def model_files(run: Path) -> list[Path]:
    """The files that say what a model draws."""
    return [file for part in ("unet", "vae") for file in sorted((run / part).glob("*.safetensors"))]


def input_files(options: argparse.Namespace) -> list[Path]:
    """The pictures that a command starts from, and the file of its prompts."""
    named = [getattr(options, name) for name in FILES] + list(options.interpolate or ())
    return [Path(each) for each in named if each is not None and os.path.isfile(each)]


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of what files hold, in order."""
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]
