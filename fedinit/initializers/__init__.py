"""What adapters start from before round 1. One file a family; a name here is `init=<name>` on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedinit.config import build
from fedinit.errors import choose
from fedinit.initializers.eva import EVA
from fedinit.initializers.initializer import Initializer
from fedinit.initializers.lora_xs import LoRAXS
from fedinit.initializers.random import Gaussian, Kaiming, Orthogonal
from fedinit.initializers.random_core import RandomCore

INITIALIZERS: dict[str, type[Initializer]] = {
    "eva": EVA,
    "gaussian": Gaussian,
    "kaiming": Kaiming,
    "lora_xs": LoRAXS,
    "orthogonal": Orthogonal,
    "random_core": RandomCore,
}


def create_initializer(name: str, options: Mapping[str, Any] | None = None) -> Initializer:
    """An initialiser by name. Raises InputError for an unknown name or option."""
    return build(INITIALIZERS[choose("init", name, INITIALIZERS)], options or {}, "init")
