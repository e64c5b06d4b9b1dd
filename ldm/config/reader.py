"""Reads a config, a frozen dataclass, from a YAML file and from flags of the same dotted names, both strictly.

A field is a number, a truth value, text, a `Literal`, a tuple of these, another dataclass, one of several dataclasses
told apart by their `kind`, or dataclasses in a list or by name; `Annotated` declares its bounds (`ldm.config.bounds`).
Whatever is wrong becomes a ConfigError of one line.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from ldm.config.advice import advice
from ldm.config.bounds import OneOf, bounds_of, declared_ranges, types_of
from ldm.config.presets import PRESET, presets_of, with_preset
from ldm.config.yaml_file import from_yaml, inline, read_yaml, shorten, to_yaml
from ldm.errors import ConfigError

T = TypeVar("T")


def load(
    cls: type[T],
    file: Path | None,
    flags: dict[str, str],
    inherited: Mapping[str, Callable[[dict[str, Any]], Any]] | None = None,
) -> T:
    """The settings that `file` describes, changed by `flags`: dotted names and the text given for each.

    `inherited` are sections that may come from elsewhere; each is a function of all that the file has, which returns
    the section as a dictionary, or None to leave it as it is.
    """
    flags = {name.replace("-", "_"): text for name, text in flags.items()}
    names = setting_names(cls)
    for name in flags:
        if name not in names:
            raise ConfigError(f"--{name} is not a setting; {advice(name, names, '--')}")
        if inner := next((other for other in flags if other.startswith(f"{name}.")), None):
            raise ConfigError(f"--{name} and --{inner} cannot be given together")
    given = read_yaml(file) if file else {}
    for section, settings in (inherited or {}).items():
        if isinstance(given, dict) and (found := settings(given)) is not None:
            given[section] = found
    config: T = _Reader(names, flags, str(file or "")).root(cls, given)
    return config


def from_dict(cls: type[T], mapping: dict[str, Any]) -> T:
    """The inverse of `to_dict`, as strict as `load`."""
    config: T = _Reader(setting_names(cls), {}, "").root(cls, mapping)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Every setting, in dictionaries and lists."""
    return {field.name: to_plain(getattr(config, field.name)) for field in fields(config)}


def dump(config: Any) -> str:
    """Every setting as YAML, from which `load` makes the same settings."""
    return to_yaml(to_dict(config))


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
            raise self.error("", f"is {inline(given)}; expected settings: {', '.join(_field_names(cls))}")
        return self.section([cls], given, "", MISSING)

    def section(self, classes: list[Any], given: dict[str, Any], prefix: str, default: Any) -> Any:
        """One of `classes`, as `default` says, then as `given`, then as the flags that start with `prefix`."""
        cls, given = self.choose(classes, given, prefix, default)
        given = with_preset(cls, given, f"{prefix}{PRESET}", self.flags, self.leaf)
        kinds, own = types_of(cls), _field_names(cls) + [PRESET] * bool(presets_of(cls))
        flags = [flag for flag in self.flags if flag.startswith(prefix)]
        unknown = [f"{prefix}{name}" for name in given if name not in own]
        unknown += [flag for flag in flags if flag.removeprefix(prefix).split(".")[0] not in own]
        if unknown:
            raise self.unknown(unknown[0], prefix, cls)
        values = {}
        for field in fields(cls):
            name, fallback = field.name, default_of(cls, field, default)
            values[name] = self.value(kinds[name], given.get(name, MISSING), prefix + name, fallback)
        try:
            return cls(**values)
        except (ValueError, ConfigError) as error:
            within = [flag for flag in self.flags if prefix.startswith(f"{flag}.")]  # the list that it is an item of
            file = "" if within else self.file
            sources = ", ".join(filter(None, [file, *(f"--{flag}" for flag in [*within, *flags])]))
            raise ConfigError(": ".join(filter(None, [sources, prefix[:-1], " ".join(str(error).split())]))) from None

    def choose(
        self, classes: list[Any], given: dict[str, Any], prefix: str, default: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The class of the wanted kind; when a flag changes the kind, what only the former kind takes is left out."""
        if len(classes) == 1:
            return classes[0], given
        before = given.get("kind", getattr(default, "kind", MISSING))
        kind = self.leaf(Literal[tuple(cls.kind for cls in classes)], before, f"{prefix}kind")
        chosen = next(cls for cls in classes if cls.kind == kind)
        former = next((cls for cls in classes if cls.kind == before), chosen)
        ours, theirs = types_of(chosen), types_of(former) | ({} if former is chosen else {PRESET: str})
        left_out = {each for each in theirs if each not in ours or _only(theirs[each], ours[each], given.get(each))}
        return chosen, {name: value for name, value in given.items() if name not in left_out}

    def value(self, kind: Any, given: Any, path: str, default: Any) -> Any:
        """One field, whether a section or not; `given` is MISSING when the file does not name it."""
        deeper = any(flag.startswith(f"{path}.") for flag in self.flags)
        if given is MISSING and default is not MISSING and not deeper and path not in self.flags:
            return default
        if items := sections_of(get_args(kind)[0]) if get_origin(kind) is tuple else []:
            return self.several(items, given, path)
        if items := sections_of(get_args(kind)[1]) if get_origin(kind) is dict else []:
            return self.named(items, given, path)
        sections = sections_of(kind)
        empty = given is MISSING or (given is None and (deeper or NoneType not in _options(kind)))
        if sections and path not in self.flags and (empty or isinstance(given, dict)):
            return self.section(sections, {} if empty else given, f"{path}.", default)
        return self.leaf(kind, given, path)

    def several(self, classes: list[Any], given: Any, path: str) -> tuple[Any, ...]:
        """A list of sections, which a flag gives as a whole, in YAML's brackets and braces."""
        text = self.flags.get(path)
        if text is not None:
            given = None
            with suppress(ValueError):
                given = from_yaml(text)
        if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
            shown, names = inline(given) if text is None else shorten(text), ", ".join(_field_names(classes[0]))
            raise self.error(path, f"is {shown}; expected a list of settings: {names}")
        return tuple(self.section(classes, each, f"{path}.{number}.", MISSING) for number, each in enumerate(given))

    def named(self, classes: list[Any], given: Any, path: str) -> dict[str, Any]:
        """Sections under names of a person's choice, which a flag gives as a whole, in YAML's braces."""
        text = self.flags.get(path)
        if text is not None:
            given = None
            with suppress(ValueError):
                given = from_yaml(text)
        if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
            shown = inline(given) if text is None else shorten(text)
            kinds = "|".join(cls.kind for cls in classes)
            raise self.error(path, f"is {shown}; expected settings by name: {{NAME: {{kind: {kinds}, ...}}}}")
        return {str(name): self.section(classes, each, f"{path}.{name}.", MISSING) for name, each in given.items()}

    def leaf(self, kind: Any, given: Any, path: str) -> Any:
        """One value that is not a section."""
        text = self.flags.get(path)
        with suppress(ValueError, OverflowError):
            return _converted(kind, given) if text is None else _from_text(kind, text)
        shown = shorten(text) or "''" if text is not None else inline(given) if given is not MISSING else "missing"
        choices = [inline(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
        choices += [name for bounds in bounds_of(kind) if isinstance(bounds, OneOf) for name in bounds.table]
        hint = "".join(f"; did you mean {near}?" for near in get_close_matches(shown, choices, n=1))
        expected = " ".join([type_name(kind, NOUNS), *(f"({each})" for each in declared_ranges(kind))])
        raise self.error(path, f"is {shown}; expected {expected}{hint}")

    def unknown(self, path: str, prefix: str, cls: Any) -> ConfigError:
        names = [prefix + name for name in _field_names(cls)]
        if path not in self.names:
            names += [name for name in self.names if not (prefix and name.startswith(prefix))]
        of_kind = f" of kind {cls.kind}" if prefix + "kind" in names else ""
        dashes = "--" if path in self.flags else ""
        return self.error(path, f"is not a setting{of_kind}; {advice(path, names, dashes)}")

    def error(self, path: str, problem: str) -> ConfigError:
        is_flag = any(f"{path}.".startswith(f"{flag}.") for flag in self.flags)  # or lies in a list that is one
        place = f"--{path}" if is_flag else ": ".join(filter(None, [self.file, shorten(path)]))
        return ConfigError(f"{place} {problem}")


def _converted(kind: Any, value: Any) -> Any:
    """`value` as a `kind`; a ValueError or OverflowError when it is none."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        converted = _converted(args[0], value)
        if all(bounds.admits(converted) for bounds in bounds_of(kind)):
            return converted
        raise ValueError
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


def _only(kind: Any, other: Any, value: Any) -> bool:
    """Whether `value` can be converted to a `kind`, and not to the `other`."""
    with suppress(ValueError, OverflowError):
        _converted(kind, value)
        with suppress(ValueError, OverflowError):
            _converted(other, value)
            return False
        return True
    return False


def _from_text(kind: Any, text: str) -> Any:
    """A flag's text as a `kind`: verbatim where text is possible, otherwise as YAML; null comes first where it is."""
    for read in (from_yaml, str) if text == "null" else (str, from_yaml):
        with suppress(ValueError, OverflowError):
            return _converted(kind, read(text))
    raise ValueError


# What the classes say: names, defaults and types.

_UNIONS = (Union, UnionType)
NOUNS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "null"}


def _field_names(cls: Any) -> list[str]:
    return [field.name for field in fields(cls)]


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union; any other type is its own only option."""
    return get_args(kind) if get_origin(kind) in _UNIONS else (kind,)


def sections_of(kind: Any) -> list[Any]:
    """The dataclasses among the members of a type: empty for a value, several for a section of several kinds."""
    return [option for option in _options(kind) if is_dataclass(option)]


def setting_names(cls: Any, prefix: str = "") -> list[str]:
    """The dotted names of all settings and sections, of every kind."""
    names = [prefix + PRESET] if presets_of(cls) else []
    for name, kind in types_of(cls).items():
        names.append(prefix + name)
        for section in sections_of(kind):
            names += setting_names(section, f"{prefix}{name}.")
    return list(dict.fromkeys(names))


def default_of(cls: Any, field: Field[Any], instance: Any) -> Any:
    """What a field is when nobody sets it: as in `instance`, when that is a `cls`; otherwise as the class says."""
    if type(instance) is cls:
        return getattr(instance, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def type_name(kind: Any, words: dict[Any, str]) -> str:
    """A type in the user's words, those of `words` for the simple types, without its ranges."""
    if get_origin(kind) is Annotated:
        choices = [str(bounds) for bounds in bounds_of(kind) if isinstance(bounds, OneOf)]
        return choices[0] if choices else type_name(get_args(kind)[0], words)
    if get_origin(kind) is Literal:
        return "|".join(inline(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"[{', '.join('...' if item is Ellipsis else type_name(item, words) for item in get_args(kind))}]"
    if get_origin(kind) is dict:
        return "{NAME: settings, ...}"
    if len(_options(kind)) > 1:
        names = dict.fromkeys(type_name(option, words) for option in _options(kind))
        return (" or " if words is NOUNS else "|").join(names)
    return words.get(kind, "settings")


def to_plain(value: Any) -> Any:
    """A field's value in dictionaries and lists."""
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple) else value
