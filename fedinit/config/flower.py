"""A configuration as Flower's flat run config, and back.

Flower's run config maps dotted keys to whole numbers (64 bits), numbers, true or false, and words. A key must stand in
the project's [tool.flwr.app.config] before a run may set it, so the flat form of a run is written there whole, in the
project file that `fedinit deploy` makes; clients then need neither Hydra nor the same conf/ folder to agree with it.

By hand, `flwr run .` in this project's folder, the run config is one key, `overrides`: the words of run_sim.py's
command line, composed where they are read.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from fedinit.config.schema import Config, load, to_dict
from fedinit.errors import InputError

Scalar = bool | int | float | str
OVERRIDES = "overrides"


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
    """The checked configuration of a Flower run: the flat form, or the words in `overrides` on top of evaluation by the
    clients themselves. Raises InputError, one line."""
    rest = {key: value for key, value in run_config.items() if key != OVERRIDES}
    words = shlex.split(str(run_config.get(OVERRIDES, "")))
    if rest and words:
        raise InputError(f"{OVERRIDES}: this run's configuration is resolved; set {words[0]} as a key of its own")
    if rest:
        return load(unflatten(rest))
    from fedinit.config.compose import compose_config  # Hydra, which a client of a resolved run does without

    return compose_config(["evaluation=clients", *words])


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
    except ValueError:
        return False
    return True
