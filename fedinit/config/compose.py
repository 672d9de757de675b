"""From words on a command line to a checked Config by way of conf/."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedinit.config.choices import (
    SEARCHPATH,
    check,
    check_launcher,
    check_setting,
    is_launcher,
    searched_groups,
    values,
)
from fedinit.config.groups import CONF_DIR, groups
from fedinit.config.schema import Config, load
from fedinit.config.unknown import explain, refuse
from fedinit.config.words import parse
from fedinit.errors import InputError


class Primary(NamedTuple):
    """The configuration that words are put upon.

    folder: that holds it, and the groups.
    name: of its file, without .yaml.
    beside: a folder that is searched too, for the file and the groups' choices.
    """

    folder: Path = CONF_DIR
    name: str = "config"
    beside: Path | None = None


class Swept(NamedTuple):
    """One run of a sweep.

    words: those that are swept over, as they are in this run.
    overrides: all of its words, as Hydra takes them, but for the launcher's.
    """

    words: str
    config: Config
    overrides: Sequence[str] = ()


def compose_config(overrides: Sequence[str], primary: Primary = Primary()) -> Config:  # noqa: B008 (it is immutable)
    """The configuration for Hydra overrides such as ``["strategy=fedit", "rounds=3"]``.

    A value that begins with ~/ is a path in the home folder. Raises InputError, one line, for an override that Hydra or
    a check refuses.
    """
    with composing(overrides, primary) as words:
        composed = compose(primary.name, overrides=[str(word.input_line) for word in words])
        container = cast(
            "dict[str, Any]", at_home(OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
        )
    try:
        return load(container)
    except InputError as error:
        for word in words:
            if word.is_delete() and str(error).startswith(f"{word.key_or_group}: not set"):
                told = f"{word.input_line}: a run needs it; say what it is to be, {word.key_or_group}=…"
                raise InputError(told) from error
        raise


def sweep(overrides: Sequence[str], primary: Primary = Primary()) -> list[Swept]:  # noqa: B008
    """One configuration for every combination of the values given, as Hydra's basic sweeper orders them:
    ``["strategy=fedit,flora", "seed=0,1"]`` makes four. All are composed and checked before any is returned.

    Raises InputError as `compose_config` does.
    """
    with composing(overrides, primary, sweeping=True) as words:
        known, each, swept = _known(words, primary), {}, []
        for word in [*_declared(words, primary), *(word for word in words if not is_launcher(word))]:
            key = word.get_key_element()
            each[key] = [str(word.input_line)]
            if word.is_sweep_override():
                swept.append(key)
                each[key] = [f"{key}={Transformer.str(value)}" for value in values(word, known)]
    runs = []
    for combination in itertools.product(*each.values()):
        varied = " ".join(text for key, text in zip(each, combination, strict=True) if key in swept)
        runs.append(Swept(varied, compose_config(combination, primary), combination))
    return runs


@contextlib.contextmanager
def composing(overrides: Sequence[str], primary: Primary, sweeping: bool = False) -> Iterator[list[Override]]:
    """Within, Hydra is initialised over the primary configuration, and what it raises becomes an InputError of one
    line. Gives the words as Hydra takes them, checked as far as `choices` does it.

    sweeping: words may have several values, which are not checked here.
    """
    words = [parse(word) for word in overrides]
    for word in words:
        check_setting(word, sweeping)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(primary.folder.absolute()), job_name="run_sim", version_base="1.3"):
            if primary.beside is not None:
                search = create_config_search_path(str(primary.folder.absolute()))
                place = f"file://{primary.beside.absolute()}"
                search.prepend("command-line", place, SearchPathQuery(provider="schema"))
                GlobalHydra.instance().clear()
                Hydra.create_main_hydra2("run_sim", search)
            known = _known(words, primary)
            for word in words:
                if is_launcher(word):
                    check_launcher(word)
                elif not (sweeping and word.is_sweep_override() and not word.is_hydra_override()):
                    check(word, known)
            if primary == Primary():
                refuse(words)
            try:
                yield words
            except (HydraException, OmegaConfBaseException) as error:
                raise InputError(explain(error, words, primary.name)) from error
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError) as error:
        raise InputError(" ".join(str(error).split()) or type(error).__name__) from error


def _known(words: Sequence[Override], primary: Primary) -> dict[str, list[str]]:
    """{group: its choices}, wherever Hydra finds them."""
    elsewhere = primary[::2] != (CONF_DIR, None) or any(word.key_or_group == SEARCHPATH for word in words)
    return searched_groups(words) if elsewhere else groups()


def _declared(words: Sequence[Override], primary: Primary) -> list[Override]:
    """The sweep that the configuration itself declares, in hydra.sweeper.params."""
    if primary == Primary() and not any(word.is_hydra_override() for word in words):
        return []
    hydra: Any = GlobalHydra.instance().hydra
    composed = hydra.compose_config(primary.name, [word.input_line for word in words], RunMode.MULTIRUN)
    return [parse(f"{key}={value}") for key, value in (composed.hydra.sweeper.params or {}).items()]


def at_home(value: Any) -> Any:
    """What Hydra composed, with the home folder for the ~ that paths in it begin with."""
    if isinstance(value, Mapping):
        return {key: at_home(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [at_home(inside) for inside in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith(("~/", "~\\")) else value
