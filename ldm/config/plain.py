"""Configs from the plain values of JSON: for files that this package writes, not for what a person writes."""

from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ldm.config.bounds import types_of


def from_plain(kind: Any, value: Any) -> Any:
    """The value of a type, a dataclass as a rule, that `ldm.config.reader.to_dict` made plain.

    Anything that does not fit is a ValueError, KeyError or TypeError.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return from_plain(args[0], value)
    if origin in (Union, UnionType):
        return from_plain(member(args, value), value)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(from_plain(inner, item) for inner, item in zip(kinds, value, strict=True))
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        types = types_of(kind)
        return kind(**{name: from_plain(types[name], item) for name, item in value.items()})
    if origin is Literal and value in args:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, bool, str, NoneType) and type(value) is kind:
        return value
    raise ValueError(f"{value!r} is not a {kind}")


def member(options: tuple[Any, ...], value: Any) -> Any:
    """The member of a union that a value belongs to: the dataclass of its `kind`, or the first that is not one."""
    if isinstance(value, dict):
        return next((each for each in options if getattr(each, "kind", None) == value.get("kind")), options[0])
    if value is None:
        return NoneType
    return next((each for each in options if each is not NoneType and not is_dataclass(each)), options[0])
