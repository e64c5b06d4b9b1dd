"""The command line of a script: a config file, flags of the script's own, and one flag per setting.

`--help` is made of the settings themselves: their names, types, defaults and the comments beside them.
"""

import argparse
import inspect
import io
import os
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Generic, NoReturn, TypeVar

from ldm.config import reader
from ldm.config.advice import advice
from ldm.config.bounds import declared_ranges, types_of
from ldm.config.presets import PRESET, PRESET_HELP, presets_of
from ldm.config.yaml_file import inline
from ldm.errors import ConfigError

T = TypeVar("T")

Inherited = Mapping[str, Callable[[Mapping[str, str | bool | None], Mapping[str, Any]], Any]]  # of options and file

_METAVARS = {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT", NoneType: "null"}


@dataclass(frozen=True)
class Option:
    """A flag of the script itself, beside those of the settings."""

    help: str
    metavar: str | None = None  # None: it takes no value, and is True when given and False otherwise
    required: bool = False
    default: str | None = None


@dataclass(frozen=True)
class Command(Generic[T]):
    """A command line that was read."""

    config: T
    file: Path
    options: dict[str, str | bool | None]


class Parser(argparse.ArgumentParser):
    """For a command without a config. Answers a wrong command line as the training scripts do: in one line."""

    hint = ""  # what else may be why a flag is not known

    def __init__(self, prog: str, description: str):
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        minus = " (one that begins with a minus is written --FLAG=-90,0)" * message.endswith("expected one argument")
        raise ConfigError(f"{message}{minus}; see {self.prog} --help")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """What the command line says, or ConfigError with the flag that was probably meant."""
        options, unknown = self.parse_known_args([expand_user(argument, alone=True) for argument in arguments])
        if unknown:
            flags = [each for each in self._option_string_actions if each.startswith("--")]
            near = get_close_matches(unknown[0].partition("=")[0], flags, n=1)
            meant = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            raise ConfigError(f"{unknown[0]} is not understood; {meant}{self.hint}")
        return options


def parse(
    cls: type[T],
    arguments: list[str],
    *,
    prog: str,
    description: str,
    options: dict[str, Option],
    inherited: Inherited | None = None,
) -> Command[T]:
    """The command `prog CONFIG.yaml --option VALUE --section.field VALUE`, in any order; `--help` prints and exits.

    Dashes in flags equal underscores. Each option is found in the result under its key in `options`. A section may be
    `inherited` from what an option names, as a function of the options and of what the file has; flags change it then.
    """
    if not {"-h", "--help"}.isdisjoint(arguments):
        rows = [(f"--{name} {option.metavar or ''}", option.help) for name, option in options.items()]
        usage = textwrap.fill(_usage(prog, options), 120, subsequent_indent=" " * 7, break_on_hyphens=False)
        print("\n\n".join([usage, description, _table(rows), describe(cls)]))
        raise SystemExit(0)
    files, given = _split(list(map(expand_user, arguments)), options, reader.setting_names(cls))
    if len(files) != 1:
        raise ConfigError(f"expected one config file, not {', '.join(files) or 'none'}; {_usage(prog, options)}")
    for name, option in options.items():
        if option.required and name not in given:
            raise ConfigError(f"--{name} is missing; {_usage(prog, options)}")
    chosen = {name: given.pop(name, option.default if option.metavar else False) for name, option in options.items()}
    chosen |= {name: os.path.expanduser("~") for name, text in chosen.items() if text == "~"}
    sections = {name: partial(section, chosen) for name, section in (inherited or {}).items()}
    config = reader.load(cls, Path(files[0]), {name: str(text) for name, text in given.items()}, sections)
    return Command(config, Path(files[0]), chosen)


def expand_user(argument: str, *, alone: bool = False) -> str:
    """An argument with `~/` or `~name/` as the home folder it stands for, also in `--flag=~/x`, where no shell does it.

    A `~` `alone` may be a setting, where it means null.
    """
    flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    expands = re.match(r"~[^/\\]*[/\\]", value) or (alone and value == "~")
    return flag + equals + os.path.expanduser(value) if expands else argument


def _split(
    arguments: list[str], options: dict[str, Option], names: list[str]
) -> tuple[list[str], dict[str, str | bool | None]]:
    """The arguments without a flag, and what was given for each option and setting."""
    known = {name.replace("-", "_"): name for name in [*names, *options]}
    files: list[str] = []
    given: dict[str, str | bool | None] = {}
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            files.append(argument)
            continue
        flag, equals, text = argument.partition("=")
        name = known.get(flag.removeprefix("--").replace("-", "_"))
        if name is None:
            meant = advice(flag.lstrip("-").replace("-", "_"), [*options, *names], "--")
            raise ConfigError(f"{flag} is not a flag; {meant}")
        if name in given:
            raise ConfigError(f"{flag} is given twice")
        if name in options and options[name].metavar is None:
            if equals:
                raise ConfigError(f"{flag} takes no value")
            given[name] = True
            continue
        given[name] = text if equals else next(rest, "--")
        if (not equals and str(given[name]).startswith("--")) or (name in options and not given[name]):
            raise ConfigError(f"{flag} needs a value")
    return files, given


def _usage(prog: str, options: dict[str, Option]) -> str:
    flags = {name: f"--{name} {option.metavar or ''}".rstrip() for name, option in options.items()}
    required = [flags[name] for name, option in options.items() if option.required]
    optional = [f"[{flags[name]}]" for name, option in options.items() if not option.required]
    return " ".join(["usage:", prog, "CONFIG.yaml", *required, "[--section.field VALUE ...]", *optional])


def describe(cls: type, without: tuple[str, ...] = ()) -> str:
    """One entry per setting for `--help`: its flag, its values, the comment beside the field, its default.

    Settings that are described elsewhere are left out by name.
    """
    return _table([row for row in _rows(cls) if row[0].split()[0].removeprefix("--") not in without])


def _rows(
    cls: Any, prefix: str = "", instance: Any = MISSING, note: str = "", indent: str = ""
) -> Iterator[tuple[str, str]]:
    """A flag and its explanation for each setting; those of one kind stand indented below the kind, noted `note`."""
    kinds, comments = types_of(cls), _comments(cls)
    for field in sorted(fields(cls), key=lambda field: field.name != "kind"):
        path, kind, default = prefix + field.name, kinds[field.name], reader.default_of(cls, field, instance)
        flag = f"{indent}--{path} {reader.type_name(kind, _METAVARS)}"
        if field.name == "kind":
            yield flag, f"{(cls.__doc__ or '').splitlines()[0]}  {note}"
            indent += "  "
            if presets := presets_of(cls):
                yield f"{indent}--{prefix}{PRESET} {'|'.join(presets)}", PRESET_HELP
        elif sections := reader.sections_of(kind):
            for section in sections:
                chosen = type(default) is section or len(sections) == 1
                status = "[default]" if chosen else "[one is required]" if default is MISSING else ""
                yield from _rows(section, f"{path}.", default, status, indent)
        else:
            shown = "required" if default is MISSING else inline(reader.to_plain(default))
            shown = shown if shown.startswith("[") else f"[{shown}]"
            notes = [comments.get(field.name, ""), *(f"({each})" for each in declared_ranges(kind)), f" {shown}"]
            yield flag, " ".join(filter(None, notes)).strip()


def _comments(cls: type) -> dict[str, str]:
    """The comment at the end of each field's line in the source, a subclass's before its parents'."""
    found: dict[str, str] = {}
    for owner in filter(is_dataclass, reversed(cls.__mro__)):
        name = ""
        tokens = tokenize.generate_tokens(io.StringIO(inspect.getsource(owner)).readline)
        for token, following in pairwise(tokens):
            if following.string == ":" and token.line.strip().startswith(f"{token.string}:"):
                name = token.string
            elif token.type == tokenize.COMMENT and name:
                found[name] = token.string.removeprefix("#").strip()
            elif token.type == tokenize.NEWLINE:
                name = ""
    return found


def _table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns of together at most 120 characters; what is too long for the left one has its own line."""
    width = min(50, max(len(left) for left, _ in rows))
    indent, lines = " " * (width + 4), []
    for left, right in rows:
        fits = len(left) <= width
        lines += [] if fits else [f"  {left}"]
        lines.append(
            textwrap.fill(right, 120, initial_indent=f"  {left if fits else '':{width}}  ", subsequent_indent=indent)
        )
    return "\n".join(lines)
