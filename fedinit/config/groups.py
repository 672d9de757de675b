"""conf/ as a person is told of it: the groups with their choices, and the keys. Without Hydra, which takes longer."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML is built without libyaml where that is not there
CONF_DIR = Path(__file__).resolve().parent.parent.parent / "conf"


def groups() -> dict[str, list[str]]:
    """{config group: its choices}, as the folders of conf/ have them; paper/nico_vit for one in a folder of a group."""
    return {
        folder.name: sorted(f.relative_to(folder).with_suffix("").as_posix() for f in folder.rglob("*.yaml"))
        for folder in sorted(CONF_DIR.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def keys() -> dict[str, Any]:
    """{key of the run itself: its default}."""
    return {key: value for key, value in _primary().items() if key not in ("defaults", "hydra")}


def keys_of(group: str, choice: str) -> list[str]:
    """The keys of one choice of a group; none of one that is not there."""
    return list(values_of(group, choice))


def values_of(group: str, choice: str) -> dict[str, Any]:
    """{key: its default} of one choice of a group, as its file has them; empty for one that is not there."""
    if choice not in groups().get(group, ()):
        return {}
    return yaml.load((CONF_DIR / group / f"{choice}.yaml").read_bytes(), Loader=LOADER) or {}


def defaults() -> dict[str, str]:
    """{group: the choice that stands where none is made}; a group without one is left out."""
    listed = [entry for entry in _primary()["defaults"] if isinstance(entry, dict)]
    return {group: choice for entry in listed for group, choice in entry.items() if choice is not None}


@functools.cache
def _primary() -> dict[str, Any]:
    return yaml.load((CONF_DIR / "config.yaml").read_bytes(), Loader=LOADER)


def _written(value: Any) -> str:
    """A value as a word of the command line has it: null, true, {enabled: true}."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf, sort_keys=False).removesuffix("...\n").strip()


def describe() -> str:
    """Text for --help: the groups with their choices, a line each, then the plain keys with their defaults."""
    lines = ["Groups (group=choice):"]
    lines += [f"  {name:<20} {'  '.join(choices)}" for name, choices in groups().items()]
    lines += ["", "Keys (key=value), with their defaults:"]
    lines += [f"  {key:<20} {_written(value)}" for key, value in keys().items()]
    lines += ["", "Keys inside a group: model.checkpoint=  data.root=  adapter.rank=  client.lr=  strategy.lam=  …"]
    return "\n".join(lines)
