"""A configuration as Flower's flat run config, and back.

Flower's run config maps dotted keys to whole numbers (64 bits), numbers, true or false, and words. A key must stand in
the project's [tool.flwr.app.config] before a run may set it, so the flat form of a run is written there whole, in the
project file that `fedinit deploy init` and `fedinit deploy app` make. Words are composed there, by whoever gives them.
Where a run is read nothing is: its values are taken by their types, and `${oc.env:HOME}` is a text like any other. A
server could otherwise have a site's environment and files read to it, in what the site says of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedinit.config.schema import Config, load, to_dict
from fedinit.errors import InputError

Scalar = bool | int | float | str
OVERRIDES = "overrides"  # words in place of a configuration, which no run brings any more


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Nested mappings as dotted keys. What Flower has no type for (null, a list, an empty mapping, a whole number
    beyond 64 bits) becomes its JSON text; so does a word that would read as JSON. Law: ``unflatten(flatten(v)) == v``.

    Raises InputError for a key with a dot in it, which could not be told from two keys.
    """
    flat: dict[str, Scalar] = {}
    for key, value in values.items():
        if "." in key or not key:
            raise InputError(f"{prefix}{key}: a key in a Flower run config has no dot and is not empty")
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _scalar(value)
    return flat


def unflatten(flat: Mapping[str, Scalar]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        inside = values
        *groups, last = key.split(".")
        for group in groups:
            inside = inside.setdefault(group, {})
            if not isinstance(inside, dict):
                raise InputError(f"{key}: {group} is a value and a group at once")
        if last in inside:
            raise InputError(f"{key}: given twice")
        inside[last] = _value(value)
    return values


def to_run_config(config: Config) -> dict[str, Scalar]:
    """The whole configuration, flat. Law: ``from_run_config(to_run_config(c)) == c``."""
    return flatten(to_dict(config))


def from_run_config(run_config: Mapping[str, Scalar]) -> Config:
    """The checked configuration of a Flower run, from its flat form. Raises InputError, one line."""
    if not run_config or OVERRIDES in run_config:
        what = "words" if run_config else "nothing"
        raise InputError(
            f"this run brings {what} in place of a configuration, and none is composed where a run is read: make an "
            "app of the words with fedinit deploy app FOLDER rounds=2 …, then flwr run FOLDER"
        )
    return load(unflatten(run_config))


def _scalar(value: Any) -> Scalar:
    if isinstance(value, str):
        return json.dumps(value) if _reads_as_json(value) else value
    if isinstance(value, (bool, float)) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    return json.dumps(value)


def _value(value: Scalar) -> Any:
    return json.loads(value) if isinstance(value, str) and _reads_as_json(value) else value


def _reads_as_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
