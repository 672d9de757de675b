"""Hydra's `compose` in a tenth of its time.

Of a configuration's time nine tenths go to its defaults list and its files. Here the defaults are composed once, and
the file of a choice is read once; what Hydra does last is done on copies of these: it parses the other words and puts
them in. tests/fedinit/config/test_compose.py holds every choice to Hydra's own composition.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedinit.config.groups import CONF_DIR, groups

CHOICES = groups()


def compose(name: str, overrides: Sequence[str] = (), return_hydra_config: bool = False) -> DictConfig:
    """`hydra.compose(name, overrides)`, which does it alone for all but choices and values, and over other folders than
    conf/. Of Hydra's own settings, return_hydra_config gives those without overrides, and the choices made."""
    _, main, *beside = GlobalHydra.instance().config_loader().get_search_path().get_path()
    elsewhere = main.path != str(CONF_DIR) or len(beside) > 1
    if elsewhere or any(word.startswith(("+", "~", "hydra")) for word in overrides):
        return hydra.compose(name, list(overrides), return_hydra_config=return_hydra_config)
    chosen = [word for word in overrides if _is_choice(word)]
    # An experiment makes choices of its own, and its values are put over those of all choices.
    whole = any(word.startswith("experiment=") for word in chosen)
    made = pickle.loads(_composed(name, tuple(chosen) if whole else (), return_hydra_config))
    for group, _, choice in () if whole else (word.partition("=") for word in chosen):
        made[group] = pickle.loads(_file(group, choice))
        if return_hydra_config:
            made.hydra.runtime.choices[group] = choice
    try:
        values = [_parsed(word) for word in overrides if not _is_choice(word)]
        if any(value.get_key_element().partition("@")[0] in CHOICES for value in values):  # none of the choices there
            return hydra.compose(name, list(overrides))
        ConfigLoaderImpl._apply_overrides_to_config(values, made)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException from error  # as Hydra's loader does
    return made


def _is_choice(word: str) -> bool:
    group, _, choice = word.partition("=")
    return choice in CHOICES.get(group, ())


# A copy of a configuration that is read from its bytes takes a third of a deep copy's time.
@functools.cache
def _composed(name: str, choices: tuple[str, ...], return_hydra_config: bool) -> bytes:
    return pickle.dumps(hydra.compose(name, list(choices), return_hydra_config=return_hydra_config))


@functools.cache
def _file(group: str, choice: str) -> bytes:
    return pickle.dumps(OmegaConf.load(CONF_DIR / group / f"{choice}.yaml"))


@functools.cache
def _parsed(word: str) -> Override:
    return _parser().parse_overrides([word])[0]


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()
