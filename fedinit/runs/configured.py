"""The configuration in a run's folder, held to what the run computed with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from yaml import YAMLError

from fedinit.config.as_yaml import parsed
from fedinit.config.schema import Config, load
from fedinit.errors import InputError
from fedinit.runs import made_of
from fedinit.runs.named import CONFIG, configuration
from fedinit.state.manifest import FOLDER, differences, written_config

OWN_WORDS = "the words that the run was begun with, fedinit run …, write it anew"
_RUN = re.compile(r"[0-9a-f]{10}-s(\d+)(?:\.\d+)?", re.ASCII)  # the name that a run's folder gets, also moved aside


def configured(folder: Path, named: str | None = None) -> Config:
    """The configuration that the run in this folder was begun with.

    named: what the error calls the folder; None: as `resume` names it.

    Raises InputError when there is none, for a run of another format, and for one that is not what the run in the
    folder computed with, by its checkpoints or, without any, by the hash that it left.
    """
    what = f"resume={folder}" if named is None else named
    content = configuration(folder, what)
    try:
        values = parsed(content.decode())
    except (ValueError, YAMLError, RecursionError) as error:
        raise InputError(f"{what}: its {CONFIG} is no YAML; {OWN_WORDS}") from error
    written = computed_in(folder)  # first: another format may have had other keys
    if not isinstance(values, dict) or not values:
        raise InputError(f"{what}: its {CONFIG} holds no keys and values; {OWN_WORDS}")
    try:
        config = load(values)
    except InputError as error:
        raise InputError(f"{what}: its {CONFIG} cannot be used ({error}); {OWN_WORDS}") from error
    if written is not None and (others := differences(config.computed(), written)):
        edited = ", ".join(f"{key}={value}" for key, value, _ in others)
        used = ", ".join(f"{key}={value}" for key, _, value in others)
        raise InputError(
            f"{what}: its {CONFIG} says {edited}, and the run computed with {used}; write that, or give the run's own "
            "words, which do"
        )
    if written is None and (why := _contradicted(folder, config)):
        raise InputError(
            f"{what}: its {CONFIG} is not the configuration of this run, {why}; put the run's own back; {OWN_WORDS}"
        )
    return config


def _contradicted(folder: Path, config: Config) -> str:
    """What says, where there is no checkpoint that would, that the run in this folder had another configuration, in
    words behind it; empty for nothing.

    By a hash, so nobody knows which key is another. The seed is no part of that: the folder's name has it.
    """
    kept = made_of.read(folder)
    if kept is not None and kept.config != config.identity():
        return f"by the hash in {made_of.MADE_OF}"
    named = _RUN.fullmatch(folder.resolve().name)
    return f"which has seed={named[1]} by its folder's name" if named and int(named[1]) != config.seed else ""


def computed_in(folder: Path) -> dict[str, Any] | None:
    """`Config.computed` of the run in this folder, by its checkpoints; None where there is none that can be read."""
    written = written_config(folder / FOLDER)
    return None if written is None else {key: v for key, v in written.items() if key not in ("method", "backbone")}
