"""Hydra's `compose` in a tenth of its time, where the same choices of the groups were composed before.

Most of a configuration's time goes to its defaults list and its files, which are the same for all with the same
choices. What Hydra does last is done on a copy of that: it parses the other words and puts them in.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedinit.compose import groups

GROUPS = frozenset(groups())


def compose(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """`hydra.compose(name, overrides)`, which does it alone where a word adds, deletes or is refused."""
    choices = tuple(word for word in overrides if word.partition("=")[0] in GROUPS)
    values = [word for word in overrides if word.partition("=")[0] not in GROUPS]
    if not any(word.startswith(("+", "~", "hydra")) for word in overrides):
        try:
            made = copy.deepcopy(_chosen(name, choices))
            ConfigLoaderImpl._apply_overrides_to_config(_parser().parse_overrides(values), made)
            return made
        except (HydraException, OmegaConfBaseException):
            pass  # Hydra says it in its own words
    return hydra.compose(name, list(overrides))


@functools.cache
def _chosen(name: str, choices: tuple[str, ...]) -> DictConfig:
    return hydra.compose(name, list(choices))


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
