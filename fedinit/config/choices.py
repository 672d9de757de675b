"""What a word of the command line may choose: a choice of a group by its name, and little of what is Hydra's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from fedinit.config.schema import GROUPS
from fedinit.errors import InputError, did_you_mean

SEARCHPATH, PARAMS = "hydra.searchpath", "hydra.sweeper.params"  # what is read of Hydra's own
LAUNCHER = "hydra/launcher"  # in a sweep, with the keys that are in it
OPTIONAL = "experiment"  # the group of which there may be none, or several
# Of a group whose choices have their keys here, the key that holds a choice's name: client.optimizer, …
NAMES = {f"{name}.{group.key}": name for name, group in GROUPS.items() if group.choices is not None}


def searched_groups(words: Sequence[Override]) -> dict[str, list[str]]:
    """`groups` of all folders that Hydra, which is initialised, searches with these words, if any."""
    search = [word.input_line for word in words if word.key_or_group == SEARCHPATH]
    loader: Any = GlobalHydra.instance().config_loader()  # its base class does not tell of `overrides`
    names = set(loader.get_group_options("", ObjectType.GROUP, overrides=search)) - {"hydra"}

    def options(group: str) -> list[str]:
        inside = loader.get_group_options(group, ObjectType.GROUP, overrides=search)
        nested = [f"{name}/{option}" for name in inside for option in options(f"{group}/{name}")]
        return sorted([*loader.get_group_options(group, overrides=search), *nested])

    return {name: options(name) for name in sorted(names)}


def check(word: Override, known: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError for a word that chooses what is not there, in less than Hydra's many lines; for a sweep, whose
    values are checked too. known: as `groups` has it."""
    key, text = word.key_or_group, word.input_line
    if word.is_delete() or word.package is not None:
        return
    for value in values(word, known) if word.is_sweep_override() else [word.value()]:
        if isinstance(value, QuotedString):
            value = value.text
        if key in known:
            _check_choice(key, value, known[key], str(text))
        if value in known.get(NAMES.get(key, ""), ()):
            raise InputError(f"{text}: brings no keys of its own; choose it as a group, {NAMES[key]}={value}")
    if word.is_sweep_override():
        listed = "" if key in known or not word.is_choice_sweep() else f"; a list stands in brackets, {key}=[…]"
        raise InputError(f"{text}: several values; add -m to run each of them{listed}")


def values(word: Override, known: Mapping[str, Sequence[str]]) -> list[Any]:
    """The values of a sweep, as Hydra's parser has them. Raises InputError for one that has none, or no end of them."""
    key, text, value = word.key_or_group, word.input_line, word.value()
    found: list[Any] = []
    if isinstance(value, Glob):
        if key not in known:
            raise InputError(f"{text}: glob(…) is for a group; groups are {', '.join(known)}")
        found = value.filter(list(known[key]))
        if not found:
            raise InputError(f"{text}: no choice is like that. Choices: {', '.join(known[key])}.")
    elif isinstance(value, (ChoiceSweep, RangeSweep)):
        try:
            found = list(word.sweep_iterator())
        except (HydraException, ValueError) as error:
            raise InputError(f"{text}: {error}") from error
    if not found:
        raise InputError(f"{text}: there is no value in it to run with; expected 1,2 or range(0,3) or choice(1,2)")
    return found


def _check_choice(group: str, value: Any, known: Sequence[str], text: str) -> None:
    """Raise InputError unless it is one of the group's choices. text: the word that it is of."""
    if isinstance(value, Mapping):
        settings = " ".join(f"{group}.{key}={entry}" for key, entry in value.items())
        raise InputError(f"{text}: a group is chosen by name, and its keys are set one by one: {settings}")
    if isinstance(value, list):
        if group != OPTIONAL:
            raise InputError(f"{text}: one choice, not a list; -m {group}={','.join(map(str, value))} runs each")
        for entry in value:
            _check_choice(group, entry, known, text)
    elif value not in known and not (value is None and group == OPTIONAL):
        shown = "null" if value is None else value
        if group == "data" and (how := _how_to_have(str(shown))):
            raise InputError(f"{group}={shown}: no such choice; {how}")
        raise InputError(
            f"{group}={shown}: no such choice{did_you_mean(str(shown), known)}. Choices: {', '.join(known)}."
        )


def _how_to_have(name: str) -> str:
    """The words that train on a published set which is no choice of its own; empty where no such set is known."""
    from fedinit.data.official import OFFICIAL
    from fedinit.data.published_sets import SETS

    def bare(text: str) -> str:
        return re.sub("[^a-z0-9]", "", text.lower())

    for each in SETS:
        if bare(each) == bare(name):
            return f"it is one of torchvision's, data=torchvision data.set={each} data.root=FOLDER"
    for each, official in OFFICIAL.items():
        if bare(name) in (each, bare(official.title)):
            return (
                f"fedinit data prepare {each} ARCHIVE … --to FOLDER makes a folder of {official.title}'s archives, for "
                "data=image_folder data.root=FOLDER"
            )
    return ""


def is_launcher(word: Override) -> bool:
    """Whether the word says which of Hydra's launchers does a sweep, or how."""
    return word.key_or_group == LAUNCHER or word.key_or_group.startswith(f"{LAUNCHER.replace('/', '.')}.")


def check_launcher(word: Override) -> None:
    """Raise InputError for a launcher that is not there. Hydra is initialised."""
    if word.key_or_group == LAUNCHER:
        loader: Any = GlobalHydra.instance().config_loader()
        known = loader.get_group_options(LAUNCHER)
        if word.is_sweep_override() or word.value() not in known:
            extra = '; pip install "fedinit[slurm]" brings submitit_slurm and submitit_local'
            here = "" if any("submitit" in name for name in known) else extra
            raise InputError(f"{word.input_line}: no such launcher; there are {', '.join(known)}{here}")


def check_setting(word: Override, sweeping: bool = False) -> None:
    """Raise InputError for a setting of Hydra's own that would do nothing here, and a folder to search that is none."""
    key, text = word.key_or_group, word.input_line
    if (not word.is_hydra_override() and key != "hydra") or (sweeping and is_launcher(word)):
        return
    if key == SEARCHPATH:
        places = word.value()
        for place in places if isinstance(places, list) else [None]:
            scheme, _, path = place.rpartition("://") if isinstance(place, str) else ("", "", "")
            if not path or (scheme in ("", "file") and not Path(path).is_dir()):
                raise InputError(
                    f"{text}: expected a list of folders that are there, [/my/conf] or [pkg://package.conf]"
                )
    elif key != PARAMS and not key.startswith(f"{PARAMS}."):
        setting = key.partition(".")[2]
        if setting.startswith(("run", "sweep.", "output_subdir", "job.chdir")):
            instead = "a run's folder is made under output_dir=…, by its name=…"
        elif "launcher" in key or "sweeper" in key or "mode" in key:
            instead = "-m sweeps, and there hydra/launcher=… is"
        else:
            instead = f"of Hydra's own, {SEARCHPATH} and {PARAMS} are"
        raise InputError(f"{text}: is not read here; {instead}")
