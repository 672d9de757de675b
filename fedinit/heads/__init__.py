"""The classifier that a run starts from. One file a family; a name here is `head=<name>` on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedinit.config.schema import build
from fedinit.errors import choose
from fedinit.heads.completed import MVN, Convex
from fedinit.heads.drawn import NoHead, Random, Zero
from fedinit.heads.head import Head
from fedinit.heads.ncm import NCM
from fedinit.heads.ridge import Ridge

HEADS: dict[str, type[Head]] = {
    "convex": Convex,
    "mvn": MVN,
    "ncm": NCM,
    "none": NoHead,
    "random": Random,
    "ridge": Ridge,
    "zero": Zero,
}


def create_head(name: str, options: Mapping[str, Any] | None = None) -> Head:
    """A head by name. Raises InputError for an unknown name or option."""
    return build(HEADS[choose("head.init", name, HEADS)], options or {}, "head")
