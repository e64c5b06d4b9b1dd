"""YAML with plain values as a person means them: 1e-4 is a number, 010 is ten, `no` and 12:30 are text.

What is read are numbers, truth values, null, text, lists and mappings; a tag such as !!python is refused before
anything is made of it.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from ldm.errors import ConfigError

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


def read_yaml(file: Path) -> Any:
    """What `file` says; a ConfigError that names it when it cannot be read or is not YAML."""
    try:
        return from_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{file}: {shorten(str(error), 200)}") from None


def from_yaml(text: str) -> Any:
    """What `text` says; a ValueError or OverflowError when it is not YAML, or more than settings need."""
    try:
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, yaml.TagToken):
                raise yaml.MarkedYAMLError(problem="tags such as !!python are refused", problem_mark=token.start_mark)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise ValueError(f"line {mark.line + 1}: {problem}" if mark else str(error)) from None


def to_yaml(value: Any) -> str:
    """`value` as the text of a file, from which `from_yaml` makes the same value; mappings keep their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def inline(value: Any) -> str:
    """`value` on one short line, as a person would write it."""
    try:
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=1000)
    except (yaml.YAMLError, RecursionError):
        return f"a {type(value).__name__}"
    return shorten(text.removesuffix("...\n"))


def shorten(text: str, length: int = 80) -> str:
    """`text` on one line of at most `length` characters, cut where it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
