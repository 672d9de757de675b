"""What is said of words that Hydra refuses, in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml
from hydra import compose
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from fedinit.config.build import not_read
from fedinit.config.groups import CONF_DIR, LOADER, defaults, groups, keys
from fedinit.config.schema import GROUPS
from fedinit.errors import InputError, nearest

OPEN = "model.kwargs"  # a mapping that takes new keys


def explain(error: Exception, words: Sequence[Override], name: str) -> str:
    """The informative line of an error that Hydra, which is initialised, raised over the words.

    For an unknown key it names the choices that have it, or the nearest key.
    name: of the primary configuration.
    """
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for text in (error, cause) for line in str(text).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    key = str(getattr(cause, "full_key", None) or getattr(cause, "key", None) or "")
    if text.startswith("Could not append to config"):
        word = next(word for word in words if word.is_add() and f"'{word.key_or_group}'" in text)
        return f"{word.input_line}: {word.key_or_group} is there already; leave the + out"
    if "is not in struct" in text or "Could not override" in text or "does not exist" in text:
        given = text.split("'")[1]  # the word's, where the cause names a part of it
        inner = key.startswith(given) or "is not in struct" in text
        return _unknown(key if key and inner else given, words, name)
    if isinstance(cause, (InterpolationResolutionError, UnsupportedInterpolationType, GrammarParseError)):
        word = next((str(word.input_line) for word in words if word.key_or_group == key), key)
        return f"{word}: {_unresolved(text)}"
    return f"{key}: {text}" if key and not text.startswith("In '") else text


def _unresolved(text: str) -> str:
    """Why ${…} has no value, and what to do. text: what OmegaConf says of it."""
    quoted = text.split("'")[1] if text.count("'") > 1 else ""
    if text.endswith('not found"') and "Environment" in text:
        return f"the environment has no {quoted}; export it, or give what is meant without it, ${{oc.env:{quoted},…}}"
    if "Recursive" in text:
        return "refers to itself; write a value"
    if text.startswith("Interpolation key"):
        return f"there is no key {quoted}; write one that is there, or a value"
    if text.startswith("Unsupported"):
        known = "OmegaConf's oc.env, oc.select and oc.decode are"
        return f"there is no function {text.split()[-1]}; {known}, or write a value"
    return f"cannot be resolved ({text[:1].lower()}{text[1:]}); write a value"


def _unknown(key: str, words: Sequence[Override], name: str) -> str:
    """What is said of a key that is not there with the choices that the words make."""
    known = groups()
    composed, chosen = _plainly(words) or _composed(words, name)
    group, _, inside = key.partition(".")
    inside = inside.partition(".")[0]
    if inside and group in GROUPS and inside not in composed[group]:
        options = (GROUPS[group].choices or {}).get(str(composed[group].get(GROUPS[group].key)))
        if dataclasses.is_dataclass(options) and inside in {f.name for f in dataclasses.fields(options) if f.init}:
            return f"{key}: conf/{group}/{chosen[group]}.yaml lacks it, which its class reads; add a line {inside}:"
        files = {choice: CONF_DIR / group / f"{choice}.yaml" for choice in known[group]}
        readers = [choice for choice, file in files.items() if inside in _keys(_plain(OmegaConf.load(file)))]
        if readers:
            return not_read(group, inside, chosen[group], readers)
    adding = [word for word in words if f"{word.key_or_group}.".startswith(f"{OPEN}.")]
    if key.startswith(f"{OPEN}.") and adding:
        return f"{key}: no such key{_near(key, composed)}; a new key takes a +, +{adding[-1].input_line}"
    return f"{key}: no such key{_near(key, composed)}. See fedinit run --help for the groups."


def refuse(words: Sequence[Override]) -> None:
    """Raise InputError for a key that no file has, before Hydra takes its time to say so; where a word asks for more
    than choices and keys, that is left to Hydra."""
    if (found := _plainly(words)) is None:
        return
    composed, _ = found
    for word in words:
        group, _, inside = word.key_or_group.partition(".")
        holder = composed.get(group) if inside else composed
        if isinstance(holder, Mapping) and (inside.partition(".")[0] or group) not in holder:
            raise InputError(_unknown(word.key_or_group, words, ""))


def _plainly(words: Sequence[Override]) -> tuple[dict[str, Any], dict[str, str]] | None:
    """The values of conf/ under the choices that the words make, and these; None where Hydra alone can tell."""
    known, chosen = groups(), defaults()
    for word in words:
        if word.is_add() or word.is_delete() or word.is_sweep_override() or word.is_hydra_override() or word.package:
            return None
        if word.key_or_group in known:
            chosen[word.key_or_group] = str(word.value())
    if "experiment" in chosen or not all(choice in known[group] for group, choice in chosen.items()):
        return None
    files = {group: (CONF_DIR / group / f"{choice}.yaml").read_bytes() for group, choice in chosen.items()}
    return {**keys(), **{group: yaml.load(text, Loader=LOADER) for group, text in files.items()}}, chosen


def _composed(words: Sequence[Override], name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The same by Hydra, which is initialised."""
    known = groups()
    choosing = [str(w.input_line) for w in words if w.key_or_group in known and not w.is_delete() and w.package is None]
    composed = _plain(compose(name, overrides=choosing, return_hydra_config=True))
    return composed, composed.pop("hydra")["runtime"]["choices"]


def _near(key: str, composed: Mapping[str, Any]) -> str:
    """A hint at the nearest key beside it, in the innermost mapping that is there; where none is near, at the key
    of that last name elsewhere, or at all that are beside it."""
    node, parts = composed, key.split(".")
    for depth, part in enumerate(parts):
        if part not in node:
            beside = nearest(part, node)
            if beside is not None:
                return f" (did you mean '{'.'.join([*parts[:depth], beside])}'?)"
            break
        if not isinstance(node[part], Mapping):
            return f" ({'.'.join(parts[: depth + 1])} is a value)"
        node = node[part]
    # A client's first: its lr is what people mean by one.
    same = [name for name in _keys(composed) if name.rpartition(".")[2] == parts[-1]]
    same.sort(key=lambda name: not name.startswith("client."))
    if 0 < len(same) < 3:
        return f" (did you mean {' or '.join(map(repr, same))}?)"
    return "" if node is composed or not node else f" (beside it: {', '.join(map(str, node))})"


def _plain(node: DictConfig | ListConfig) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(node, resolve=False))


def _keys(values: Mapping[str, Any]) -> list[str]:
    """The dotted names of all keys inside."""
    names = []
    for key, value in values.items():
        inside = _keys(value) if isinstance(value, Mapping) else []
        names += [key, *(f"{key}.{name}" for name in inside)]
    return names
