"""Dataclasses from plain values, and back: what a field's type says is checked here, what its value must be in the
dataclass itself.

A component that is chosen by name has a dataclass of its own options and nothing else, so a key that the choice does
not read is refused, with the choices that do read it.
"""

from __future__ import annotations

import dataclasses
import functools
import pkgutil
import types
import typing
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar, cast

from fedinit.errors import InputError, choose, did_you_mean
from fedinit.said import said

T = TypeVar("T")
NOTHING: Mapping[str, Any] = MappingProxyType({})
LONGEST = 80  # characters of a value in an error, which goes on behind it
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def create(group: str, registry: Mapping[str, type[T] | str], name: str, options: Mapping[str, Any] = NOTHING) -> T:
    """The choice `name` of a group from its own options: ``create("reinit", REINITS, "gauge", {"beta": 2.0})``.

    registry: {name: its dataclass}, or where that is found, "package.module:Class", which is then imported for this.
    Raises InputError for an unknown name, an unknown option, one that only other choices of the group read, or a value
    out of range.
    """
    chosen = _resolve(registry[choose(group, name, registry)])
    for key in options:
        if key not in _fields(chosen):
            others = [other for other, cls in sorted(registry.items()) if key in _fields(_resolve(cls))]
            if others:
                raise InputError(not_read(group, key, name, others))
    return build(chosen, options, group)


def not_read(group: str, key: str, name: str, others: Iterable[str]) -> str:
    """What is said of an option that the choice `name` does not read, and `others` do."""
    others = list(others)
    does = "does" if len(others) == 1 else "do"
    return f"{group}.{key}: {group}={name} does not read it; {group}={', '.join(others)} {does}"


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from a mapping, with its field types checked; a value that is a dataclass already is taken as it is.

    Fields without a default must be given; unknown keys are refused with the nearest known one. `where` is the
    dotted place that messages begin with. Raises InputError, for a class that lacks what its base wants of it as well.
    """
    if lacking := sorted(getattr(cls, "__abstractmethods__", ())):
        raise InputError(f"{where}: {cls.__module__}.{cls.__name__} lacks {', '.join(lacking)} (CONTRIBUTING.md)")
    hints, fields = _hints(cls), _fields(cls)
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            known = f" Known here: {', '.join(sorted(fields))}." if fields else ""
            raise InputError(f"{prefix}{key}: no such key{did_you_mean(key, fields)}.{known}")
    given = {}
    for key, spec in fields.items():
        if key in values:
            given[key] = _converted(hints[key], values[key], prefix + key, spec)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise InputError(f"{prefix}{key}: not set, and it has no default")
    return cls(**given)


def plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def shown(value: Any) -> str:
    """A value as a word of the command line has it, cut where it is long."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return said(f"[{','.join(map(shown, value))}]", LONGEST)
    if isinstance(value, Mapping):
        return said(f"{{{','.join(f'{key}:{shown(inside)}' for key, inside in value.items())}}}", LONGEST)
    return said(value, LONGEST)


def _resolve(choice: type[T] | str) -> type[T]:
    return cast("type[T]", pkgutil.resolve_name(choice)) if isinstance(choice, str) else choice


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)  # evaluates every annotation's text anew


@functools.cache
def _fields(cls: type) -> Mapping[str, dataclasses.Field[Any]]:
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def _converted(hint: Any, value: Any, where: str, spec: dataclasses.Field[Any]) -> Any:
    """As `_convert`; the field's own words, where it has any, are what is expected in place of a value of another
    type."""
    try:
        return _convert(hint, value, where)
    except Quoted:
        raise
    except InputError:
        if expected := spec.metadata.get("expected"):
            raise InputError(f"{where}={shown(value)}: expected {expected}") from None
        raise


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the type `hint` has it. Raises InputError."""
    if dataclasses.is_dataclass(value):
        return value
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(typing.get_args(hint), value, where)
    if origin is Literal:
        named = {str(choice): choice for choice in typing.get_args(hint)}  # of numbers too
        choice = named[choose(where, value if isinstance(value, str) else shown(value), named)]
        if isinstance(value, str) and not isinstance(choice, str):  # it would be another run by its name
            raise Quoted(where, value)
        return choice
    if origin is tuple:
        return _tuple(typing.get_args(hint), value, where)
    if dataclasses.is_dataclass(hint):
        return build(cast(type, hint), _mapping(value, where), where)
    if origin is not None:  # Mapping[str, Any]
        return dict(_mapping(value, where))
    return _scalar(hint, value, where)


def _one_of(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    """By the first of the types that takes the value; the last one's refusal where none does."""
    if value is None and type(None) in hints:
        return None
    if value == "None" and type(None) in hints:
        raise InputError(f"{where}=None: none is written null here, {where}=null")
    options = [hint for hint in hints if hint is not type(None)]
    # A list is meant for an option that takes lists, so that its fault is the one that is told.
    options = [h for h in options if (typing.get_origin(h) is tuple) == isinstance(value, (list, tuple))] or options
    for option in options[:-1]:
        try:
            return _convert(option, value, where)
        except InputError:
            continue
    try:
        return _convert(options[-1], value, where)
    except InputError as error:
        words = typing.get_args(options[-1]) if typing.get_origin(options[-1]) is Literal else ()
        if words and options[0] in EXPECTED:
            raise InputError(
                f"{where}={shown(value)}: expected {EXPECTED[options[0]]}, or {' or '.join(words)}"
            ) from error
        if type(None) not in hints or not str(error).startswith(f"{where}={shown(value)}: expected"):
            raise
        raise InputError(f"{error}, or null") from error


def _tuple(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where}={shown(value)}: expected a list such as [a,b]")
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise InputError(f"{where}={shown(value)}: expected {len(hints)} values")
    return tuple(_convert(hint, v, f"{where}[{i}]") for i, (hint, v) in enumerate(zip(hints, value, strict=True)))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}={shown(value)}: expected key: value pairs")
    return value


class Quoted(InputError):
    """A text where a number, or true or false, is expected that it would be without its quotes."""

    def __init__(self, where: str, value: str) -> None:
        what = "true or false" if _is_plain(bool, value) else "a number"
        super().__init__(f"{where}={value!r}: {what} is written without quotes, {where}={value.strip()}")


def _is_plain(hint: type, value: str) -> bool:
    """Whether a text is a value of the type, as YAML writes it."""
    if hint is bool:
        return value in ("true", "false")
    try:
        return hint(value) is not None and "_" not in value
    except ValueError:
        return False


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a name made of digits reads as a number in YAML
    if hint is str and (value is None or isinstance(value, (bool, float))):  # 1.10 reads as 1.1, and 1e3 as 1000.0
        key, inside, _ = where.partition("[")
        kind = "a number" if isinstance(value, float) else shown(value)
        example = f"'{key}=[\"…\"]'" if inside else f"'{key}=\"…\"'"
        raise InputError(
            f"{where}={shown(value)}: expected {EXPECTED[str]}; one that reads as {kind} is quoted, {example}"
        )
    if isinstance(value, str) and hint in (int, float, bool) and _is_plain(hint, value):
        raise Quoted(where, value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise InputError(f"{where}={shown(value)}: expected {EXPECTED[hint]}")
    return value
