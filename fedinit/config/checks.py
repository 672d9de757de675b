"""Checks of single values. Each raises InputError, one line that names the key, or returns nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from fedinit.errors import InputError


def at_least(key: str, value: int, low: int, why: str = "") -> None:
    """Raise InputError unless ``value >= low``."""
    if value < low:
        raise InputError(f"{key}={value}: expected {low} or more" + (f"; {why}" if why else ""))


def positive(key: str, value: float) -> None:
    """Raise InputError unless `value` is a finite number above zero."""
    within(key, value, 0, math.inf, open_low=True, open_high=True)


def within(key: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> None:
    """Raise InputError unless `value` lies in the interval; NaN lies in none."""
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below):
        interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
        raise InputError(f"{key}={value}: expected a number in {interval}")


def refuse_unread(group: str, options: Any, names: Sequence[str], why: str) -> None:
    """Raise InputError for one of these options that has another value than its default, though nothing reads it: it
    would make the same run by another name. options: a dataclass. why: what the others are, and who reads it."""
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in names and value != field.default:
            shown = "null" if value is None else value
            raise InputError(f"{group}.{field.name}={shown}: is not read {why}; leave it out")


def check_rank(targets: Mapping[str, tuple[int, int]], rank: int) -> None:
    """Raise InputError for a rank above min(d, k) of a layer {name: (d, k)}."""
    for name, (d, k) in targets.items():
        if rank > min(d, k):
            raise InputError(f"adapter.rank={rank}: layer {name} is {d}x{k}; expected a rank of {min(d, k)} or less")
