"""The configuration in a run's folder, held to what the run computed with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from yaml import YAMLError

from fedinit.config.schema import Config, load
from fedinit.errors import InputError
from fedinit.runs.named import CONFIG, configuration
from fedinit.state.manifest import FOLDER, differences, written_config

OWN_WORDS = "the words that the run was begun with, fedinit run …, write it anew"


def configured(folder: Path, named: str | None = None) -> Config:
    """The configuration that the run in this folder was begun with.

    named: what the error calls the folder; None: as `resume` names it.

    Raises InputError when there is none, for a run of another format, and for one that is not what the run in the
    folder computed with.
    """
    what = f"resume={folder}" if named is None else named
    content = configuration(folder, what)
    try:
        values = OmegaConf.to_container(OmegaConf.load(io.StringIO(content.decode())), resolve=False)
    except (OSError, ValueError, YAMLError, RecursionError) as error:
        raise InputError(f"{what}: its {CONFIG} is no YAML; {OWN_WORDS}") from error
    written = computed_in(folder)  # first: another format may have had other keys
    if not isinstance(values, dict) or not values:
        raise InputError(f"{what}: its {CONFIG} holds no keys and values; {OWN_WORDS}")
    try:
        config = load(cast("dict[str, Any]", values))
    except InputError as error:
        raise InputError(f"{what}: its {CONFIG} cannot be used ({error}); {OWN_WORDS}") from error
    if written is not None and (others := differences(config.computed(), written)):
        edited = ", ".join(f"{key}={value}" for key, value, _ in others)
        used = ", ".join(f"{key}={value}" for key, _, value in others)
        raise InputError(
            f"{what}: its {CONFIG} says {edited}, and the run computed with {used}; write that, or give the run's own "
            "words, which do"
        )
    return config


def computed_in(folder: Path) -> dict[str, Any] | None:
    """`Config.computed` of the run in this folder, by its checkpoints; None where there is none that can be read."""
    written = written_config(folder / FOLDER)
    return None if written is None else {key: v for key, v in written.items() if key not in ("method", "backbone")}
