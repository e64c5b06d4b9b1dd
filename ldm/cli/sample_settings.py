"""Settings stored in the pictures of sample.py, and the command line that `--like` makes of them."""

import argparse
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from ldm.config.command_line import Parser
from ldm.errors import ConfigError

NOT_STORED = ("out", "device", "like")  # they say where, and not what
MARKS = {"run", "sampler", "seed"}  # what every picture of sample.py says
MODEL, INPUTS = "model", "inputs"  # keys of the fingerprints beside the settings
FILES = ("image", "mask", "variations")  # settings that name a picture
INSTEAD = {"num": "seeds", "seeds": "num"}  # one of them given, the other one stored does not count


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    """What is stored in a picture: every setting that has a value, and fingerprints of the model and of input files."""
    chosen = {name: value for name, value in vars(options).items() if name not in NOT_STORED}
    settings = {
        name: json.dumps(value) if isinstance(value, list) else str(value)
        for name, value in chosen.items()
        if value is not None and value is not False
    }
    settings[MODEL] = fingerprint(model_files(options.run))
    if inputs := input_files(options):
        settings[INPUTS] = fingerprint(inputs)
    return settings


def arguments_like(arguments: list[str], parser: Parser) -> list[str]:
    """The command line with the settings in the picture that `--like` names, which what is given overrides."""
    options = parser.read(arguments)
    if options.like is None:
        return arguments
    stored, given = stored_settings(options.like), given_names(arguments)
    run = options.run or Path(stored["run"])
    if MODEL in stored and (run / "unet").is_dir() and stored[MODEL] != fingerprint(model_files(run)):
        advice = "its weights are others now" if options.run is None else f"leave it out to take {stored['run']}"
        raise ConfigError(f"--like {options.like} was drawn from another model than {run}: {advice}")
    if "number" in stored and not stored.keys() & {
        "interpolate",
        "strip",
        "gif",
    }:  # one of a folder
        stored = {**stored, "num": "None", "seeds": stored["number"]}
    known = vars(options).keys() - {*NOT_STORED, "run"}
    made = [] if options.run is not None else [stored["run"]]
    for name, text in stored.items():
        flag, default = f"--{name.replace('_', '-')}", vars(options).get(name)
        if name not in known or text in ("None", "False") or {name, INSTEAD.get(name)} & given:
            continue
        if isinstance(default, bool):
            made.append(flag)
        elif name == "interpolate":
            made += [flag, *json.loads(text)]
        else:
            made.append(f"{flag}={text}")
    return [*made, *arguments]


def check_inputs(options: argparse.Namespace) -> None:
    """Raise ConfigError if the pictures that a `--like` was made of are others now."""
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


def given_names(arguments: Iterable[str]) -> set[str | None]:
    """The settings whose flags stand on a command line."""
    return {each.partition("=")[0].removeprefix("--").replace("-", "_") for each in arguments if each.startswith("--")}


def model_files(run: Path) -> list[Path]:
    """The files that say what a model draws."""
    return [file for part in ("unet", "vae") for file in sorted((run / part).glob("*.safetensors"))]


def input_files(options: argparse.Namespace) -> list[Path]:
    """The pictures that a command starts from."""
    named = [getattr(options, name) for name in FILES] + list(options.interpolate or ())
    return [Path(each) for each in named if each is not None and Path(each).is_file()]


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of what files hold, in order."""
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]
