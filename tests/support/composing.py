"""Hydra's `compose` in a tenth of its time.

Of a configuration's time nine tenths go to its defaults list and its files. Here the defaults are composed once, and
the file of a choice is read once; what Hydra does last is done on copies of these: it parses the other words and puts
them in. tests/fedinit/config/test_compose.py holds every choice to Hydra's own composition.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedinit.config.compose import groups
from fedinit.config.schema import CONF_DIR

# An experiment makes choices of its own; a `+`, a `~` and a key of Hydra's are more than a choice or a value.
CHOICES = {group: choices for group, choices in groups().items() if group != "experiment"}
OTHERS = ("+", "~", "hydra", "experiment")


def compose(name: str, overrides: Sequence[str] = (), **options: bool) -> DictConfig:
    """`hydra.compose(name, overrides)`, which does it alone for all but choices and values, with
    options, and where it refuses."""
    if not options and not any(word.startswith(OTHERS) for word in overrides):
        made, values = copy.deepcopy(_defaults(name)), []
        for word in overrides:
            group, _, choice = word.partition("=")
            if choice in CHOICES.get(group, ()):
                made[group] = copy.deepcopy(_file(group, choice))
            else:
                values.append(word)
        try:
            ConfigLoaderImpl._apply_overrides_to_config(_parser().parse_overrides(values), made)
        except (HydraException, OmegaConfBaseException):
            pass  # Hydra says it in its own words
        else:
            return made
    return hydra.compose(name, list(overrides), **options)


@functools.cache
def _defaults(name: str) -> DictConfig:
    return hydra.compose(name)


@functools.cache
def _file(group: str, choice: str) -> DictConfig:
    return OmegaConf.load(CONF_DIR / group / f"{choice}.yaml")


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
