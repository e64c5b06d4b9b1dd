"""Settings are frozen dataclasses; a YAML file and flags of the same dotted names fill them in, both read strictly.

A field is a number, a truth value, text, a `Literal`, a tuple of these, another dataclass, or one of several
dataclasses told apart by their `kind`. Whatever is wrong becomes a ConfigError of one line.
"""

import inspect
import io
import math
import re
import textwrap
import tokenize
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ldm.errors import ConfigError

T = TypeVar("T")


def load(cls: type[T], file: Path | None, flags: dict[str, str]) -> T:
    """The settings that `file` describes, changed by `flags`: dotted names and the text given for each."""
    flags = {name.replace("-", "_"): text for name, text in flags.items()}
    names = _names(cls)
    for name in flags:
        if name not in names:
            raise ConfigError(f"--{name} is not a setting; {_advice(name, names, '--')}")
        if inner := next((other for other in flags if other.startswith(f"{name}.")), None):
            raise ConfigError(f"--{name} and --{inner} cannot be given together")
    settings: T = _Reader(names, flags, str(file or "")).root(cls, _read(file) if file else {})
    return settings


def from_dict(cls: type[T], mapping: dict[str, Any]) -> T:
    """The inverse of `to_dict`, as strict as `load`."""
    settings: T = _Reader(_names(cls), {}, "").root(cls, mapping)
    return settings


def to_dict(settings: Any) -> dict[str, Any]:
    """Every setting, in dictionaries and lists."""
    return {field.name: _plain(getattr(settings, field.name)) for field in fields(settings)}


def dump(settings: Any) -> str:
    """Every setting as YAML, from which `load` makes the same settings."""
    return str(yaml.dump(to_dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The dotted names of the settings whose values differ, or that only one side has."""
    names = []
    for name in old | new:
        before, after = old.get(name, MISSING), new.get(name, MISSING)
        if isinstance(before, dict) and isinstance(after, dict):
            names += [f"{name}.{inner}" for inner in differences(before, after)]
        elif before != after:
            names.append(name)
    return names


@dataclass(frozen=True)
class _Reader:
    """Builds settings from what a file says and from flags, which win, and knows which of them to blame."""

    names: list[str]  # every setting there is, dotted
    flags: dict[str, str]
    file: str  # empty without one

    def root(self, cls: type, given: Any) -> Any:
        if not isinstance(given, dict):
            raise self.error("", f"is {_inline(given)}; expected settings: {', '.join(_field_names(cls))}")
        return self.section([cls], given, "", MISSING)

    def section(self, classes: list[Any], given: dict[str, Any], prefix: str, default: Any) -> Any:
        """One of `classes`, as `default` says, then as `given`, then as the flags that start with `prefix`."""
        cls, given = self.choose(classes, given, prefix, default)
        kinds, own = get_type_hints(cls), _field_names(cls)
        flags = [flag for flag in self.flags if flag.startswith(prefix)]
        unknown = [f"{prefix}{name}" for name in given if name not in own]
        unknown += [flag for flag in flags if flag.removeprefix(prefix).split(".")[0] not in own]
        if unknown:
            raise self.unknown(unknown[0], prefix, cls)
        values = {}
        for field in fields(cls):
            name, fallback = field.name, _default(cls, field, default)
            values[name] = self.value(kinds[name], given.get(name, MISSING), prefix + name, fallback)
        try:
            return cls(**values)
        except (ValueError, ConfigError) as error:
            sources = ", ".join(filter(None, [self.file, *(f"--{flag}" for flag in flags)]))
            raise ConfigError(": ".join(filter(None, [sources, prefix[:-1], " ".join(str(error).split())]))) from None

    def choose(
        self, classes: list[Any], given: dict[str, Any], prefix: str, default: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The class of the wanted kind; when a flag changes the kind, what only the former kind has is left out."""
        if len(classes) == 1:
            return classes[0], given
        before = given.get("kind", getattr(default, "kind", MISSING))
        kind = self.leaf(Literal[tuple(cls.kind for cls in classes)], before, f"{prefix}kind")
        chosen = next(cls for cls in classes if cls.kind == kind)
        former = next((cls for cls in classes if cls.kind == before), chosen)
        left_out = set(_field_names(former)) - set(_field_names(chosen))
        return chosen, {name: value for name, value in given.items() if name not in left_out}

    def value(self, kind: Any, given: Any, path: str, default: Any) -> Any:
        """One field, whether a section or not; `given` is MISSING when the file does not name it."""
        deeper = any(flag.startswith(f"{path}.") for flag in self.flags)
        if given is MISSING and default is not MISSING and not deeper and path not in self.flags:
            return default
        sections = _sections(kind)
        empty = given is MISSING or (given is None and (deeper or NoneType not in _options(kind)))
        if sections and path not in self.flags and (empty or isinstance(given, dict)):
            return self.section(sections, {} if empty else given, f"{path}.", default)
        return self.leaf(kind, given, path)

    def leaf(self, kind: Any, given: Any, path: str) -> Any:
        """One value that is not a section."""
        text = self.flags.get(path)
        with suppress(ValueError, OverflowError):
            return _converted(kind, given) if text is None else _from_text(kind, text)
        shown = _short(text) or "''" if text is not None else _inline(given) if given is not MISSING else "missing"
        choices = [_inline(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
        hint = "".join(f"; did you mean {near}?" for near in get_close_matches(shown, choices, n=1))
        raise self.error(path, f"is {shown}; expected {_spelled(kind, _NOUNS)}{hint}")

    def unknown(self, path: str, prefix: str, cls: Any) -> ConfigError:
        names = [prefix + name for name in _field_names(cls)]
        if path not in self.names:
            names += [name for name in self.names if not (prefix and name.startswith(prefix))]
        of_kind = f" of kind {cls.kind}" if prefix + "kind" in names else ""
        dashes = "--" if path in self.flags else ""
        return self.error(path, f"is not a setting{of_kind}; {_advice(path, names, dashes)}")

    def error(self, path: str, problem: str) -> ConfigError:
        place = f"--{path}" if path in self.flags else ": ".join(filter(None, [self.file, _short(path)]))
        return ConfigError(f"{place} {problem}")


def _converted(kind: Any, value: Any) -> Any:
    """`value` as a `kind`; a ValueError or OverflowError when it is none."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is int and type(value) in (int, float) and value == int(value):
        return int(value)
    if kind in (bool, str, NoneType) and type(value) is kind:
        return value
    if origin is Literal and any(type(choice) is type(value) and choice == value for choice in args):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(_converted(inner, item) for inner, item in zip(kinds, value, strict=True))
    if origin in _UNIONS:
        for option in args:
            with suppress(ValueError, OverflowError):
                return _converted(option, value)
    raise ValueError


def _from_text(kind: Any, text: str) -> Any:
    """A flag's text as a `kind`: verbatim where text is possible, otherwise as YAML; null comes first where it is."""
    for read in (_yaml, str) if text == "null" else (str, _yaml):
        with suppress(ValueError, OverflowError):
            return _converted(kind, read(text))
    raise ValueError


# What the classes say: names, defaults and types.

_UNIONS = (Union, UnionType)
_METAVARS = {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT", NoneType: "null"}
_NOUNS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}


def _field_names(cls: Any) -> list[str]:
    return [field.name for field in fields(cls)]


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union; any other type is its own only option."""
    return get_args(kind) if get_origin(kind) in _UNIONS else (kind,)


def _sections(kind: Any) -> list[Any]:
    return [option for option in _options(kind) if is_dataclass(option)]


def _names(cls: Any, prefix: str = "") -> list[str]:
    """The dotted names of all settings and sections, of every kind."""
    names = []
    for name, kind in get_type_hints(cls).items():
        names.append(prefix + name)
        for section in _sections(kind):
            names += _names(section, f"{prefix}{name}.")
    return list(dict.fromkeys(names))


def _default(cls: Any, field: Field[Any], instance: Any) -> Any:
    """What a field is when nobody sets it: as in `instance`, when that is a `cls`; otherwise as the class says."""
    if type(instance) is cls:
        return getattr(instance, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _spelled(kind: Any, words: dict[Any, str]) -> str:
    """A type in the user's words."""
    if get_origin(kind) is Literal:
        return "|".join(_inline(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"[{', '.join('...' if item is Ellipsis else _spelled(item, words) for item in get_args(kind))}]"
    if len(_options(kind)) > 1:
        return "|".join(dict.fromkeys(_spelled(option, words) for option in _options(kind)))
    return words.get(kind, "settings")


def _advice(path: str, names: list[str], dashes: str = "") -> str:
    """The name that was probably meant; failing that, those that are possible in this place."""
    section, _, leaf = path.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section}
    namesakes = [name for name in names if name.rpartition(".")[2] == leaf]
    near = [siblings[match] for match in get_close_matches(leaf, siblings, n=1)]
    near += get_close_matches(path, namesakes, n=1, cutoff=0) + get_close_matches(path, names, n=1, cutoff=0.8)
    if near:
        return f"did you mean {dashes}{near[0]}?"
    possible = list(siblings.values()) or [name for name in names if "." not in name]
    return f"possible: {', '.join(dashes + name for name in possible)}"


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _short(text: str, length: int = 80) -> str:
    """`text` on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


# YAML, with plain values as a person means them: 1e-4 is a number, 010 is ten, `no` and 12:30 are text.

_PLAIN_VALUES = {
    "null": r"null|~|",
    "bool": r"true|True|false|False",
    "int": r"[-+]?(0|[1-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
}
_RESOLVERS = {
    None: [(f"tag:yaml.org,2002:{tag}", re.compile(rf"({form})\Z")) for tag, form in _PLAIN_VALUES.items()],
}


class _Loader(yaml.SafeLoader):
    """Reads plain values, lists and mappings whose keys differ."""

    yaml_implicit_resolvers = _RESOLVERS

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            key = next((key for key, _ in reversed(node.value) if keys.count(key.value) > 1), node)
            raise yaml.constructor.ConstructorError(problem=f"{key.value} is set twice", problem_mark=key.start_mark)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads, with lists on one line."""

    yaml_implicit_resolvers = _RESOLVERS

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)


def _read(file: Path) -> Any:
    try:
        return _yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{file}: {_short(str(error), 200)}") from None


def _yaml(text: str) -> Any:
    """What `text` says; a ValueError or OverflowError when it is not YAML, or more than settings need."""
    try:
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, yaml.TagToken):
                raise yaml.MarkedYAMLError(problem="tags such as !!python are refused", problem_mark=token.start_mark)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise ValueError(f"line {mark.line + 1}: {problem}" if mark else str(error)) from None


def _inline(value: Any) -> str:
    """`value` as a person would write it."""
    try:
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=1000)
    except (yaml.YAMLError, RecursionError):
        return f"a {type(value).__name__}"
    return _short(text.removesuffix("...\n"))


# The command line.


@dataclass(frozen=True)
class Option:
    """A flag of the script itself, beside those of the settings."""

    help: str
    metavar: str | None = None  # None: it takes no value, and is True when given and False otherwise
    required: bool = False
    default: str | None = None


@dataclass(frozen=True)
class Command(Generic[T]):
    """What a person asked for."""

    settings: T
    file: Path
    options: dict[str, str | bool | None]


def parse(cls: type[T], arguments: list[str], *, prog: str, description: str, options: dict[str, Option]) -> Command[T]:
    """The command `prog CONFIG.yaml --option VALUE --section.field VALUE`, in any order; `--help` prints and exits.

    Dashes in flags equal underscores. Each option is found in the result under its key in `options`.
    """
    if not {"-h", "--help"}.isdisjoint(arguments):
        rows = [(f"--{name} {option.metavar or ''}", option.help) for name, option in options.items()]
        print("\n\n".join([_usage(prog, options), description, _table(rows), describe(cls)]))
        raise SystemExit(0)
    files, given = _split(arguments, options, _names(cls))
    if len(files) != 1:
        raise ConfigError(f"expected one config file, not {', '.join(files) or 'none'}; {_usage(prog, options)}")
    for name, option in options.items():
        if option.required and name not in given:
            raise ConfigError(f"--{name} is missing; {_usage(prog, options)}")
    chosen = {name: given.pop(name, option.default if option.metavar else False) for name, option in options.items()}
    settings = load(cls, Path(files[0]), {name: str(text) for name, text in given.items()})
    return Command(settings, Path(files[0]), chosen)


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
            raise ConfigError(f"{flag} is not a flag; {_advice(flag.lstrip('-'), [*options, *names], '--')}")
        if name in given:
            raise ConfigError(f"{flag} is given twice")
        if name in options and options[name].metavar is None:
            if equals:
                raise ConfigError(f"{flag} takes no value")
            given[name] = True
            continue
        given[name] = text if equals else next(rest, "--")
        if not equals and str(given[name]).startswith("--"):
            raise ConfigError(f"{flag} needs a value")
    return files, given


def _usage(prog: str, options: dict[str, Option]) -> str:
    flags = {name: f"--{name} {option.metavar or ''}".rstrip() for name, option in options.items()}
    required = [flags[name] for name, option in options.items() if option.required]
    optional = [f"[{flags[name]}]" for name, option in options.items() if not option.required]
    return " ".join(["usage:", prog, "CONFIG.yaml", *required, "[--section.field VALUE ...]", *optional])


def describe(cls: type) -> str:
    """One entry per setting for `--help`: its flag, its values, the comment beside the field, its default."""
    return _table(list(_rows(cls)))


def _rows(
    cls: Any, prefix: str = "", instance: Any = MISSING, note: str = "", indent: str = ""
) -> Iterator[tuple[str, str]]:
    """A flag and its explanation for each setting; those of one kind stand indented below the kind, noted `note`."""
    kinds, comments = get_type_hints(cls), _comments(cls)
    for field in sorted(fields(cls), key=lambda field: field.name != "kind"):
        path, kind, default = prefix + field.name, kinds[field.name], _default(cls, field, instance)
        flag = f"{indent}--{path} {_spelled(kind, _METAVARS)}"
        if field.name == "kind":
            yield flag, f"{(cls.__doc__ or '').splitlines()[0]}  {note}"
            indent += "  "
        elif sections := _sections(kind):
            for section in sections:
                chosen = type(default) is section or len(sections) == 1
                status = "[default]" if chosen else "[one is required]" if default is MISSING else ""
                yield from _rows(section, f"{path}.", default, status, indent)
        else:
            shown = "required" if default is MISSING else _inline(_plain(default))
            shown = shown if shown.startswith("[") else f"[{shown}]"
            yield flag, f"{comments.get(field.name, '')}  {shown}".strip()


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
    """Two aligned columns of together at most 120 characters."""
    width = min(48, max(len(left) for left, _ in rows))
    return "\n".join(
        textwrap.fill(right, 120, initial_indent=f"  {left:{width}}  ", subsequent_indent=" " * (width + 4))
        for left, right in rows
    )
