"""What most methods of a comparison have: it is said once, and not in their labels."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedinit.config.dotted import dotted
from fedinit.config.groups import defaults, keys, values_of
from fedinit.config.schema import GROUPS

ABSENT = object()
# A strategy's own options are one another's business, and how a run was computed is said of few.
APART = ("strategy", "engine")


def usual(
    configs: Sequence[Mapping[str, Any]], words: Sequence[Mapping[str, str]], told: Iterable[str]
) -> dict[str, str]:
    """{key: the word that most methods have for it}, of the keys in `told`, that differ. Of words that as many have it
    is the one of conf/; where that is none of them, each is said. words: {key: key and value as they are said} of each
    configuration."""
    found = {}
    for key in told:
        if key.partition(".")[0] in APART or not _to_be_had(key, configs):
            continue
        having = [(said[key], config) for said, config in zip(words, configs, strict=True) if key in config]
        counts = Counter(word for word, _ in having)
        leading = {word for word, n in counts.items() if n == max(counts.values())}
        if len(leading) > 1:
            leading = {word for word, config in having if word in leading and config[key] == _default(key, config)}
        if len(leading) == 1:
            found[key] = leading.pop()
    return found


def choice_of(key: str) -> str:
    """The key that holds the choice of its group; empty for one that is in no group of choices."""
    group = key.partition(".")[0]
    if group == "model":
        return "model.name"
    return f"{group}.{GROUPS[group].key}" if group in GROUPS else ""


def _to_be_had(key: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether who does not say the key has the usual value, or another choice, which has no such key."""
    choice = choice_of(key)
    if all(key in config for config in configs):
        return True
    choices = {repr(config.get(choice)) for config in configs if key in config}
    return all(choice in config and (key in config or repr(config[choice]) not in choices) for config in configs)


def _default(key: str, config: Mapping[str, Any]) -> object:
    """What it is where nothing is said, or where nothing but the choice of its group is."""
    if key in _unsaid():
        return _unsaid()[key]
    group = key.partition(".")[0]
    if group not in GROUPS:  # a model has another name than its choice
        return ABSENT
    return dict(dotted({group: values_of(group, str(config.get(choice_of(key))))})).get(key, ABSENT)


@functools.cache
def _unsaid() -> dict[str, Any]:
    return dict(dotted({**keys(), **{group: values_of(group, choice) for group, choice in defaults().items()}}))
