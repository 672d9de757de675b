"""Runs that differ by their seed alone are one method; what tells the methods of a comparison apart is its label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedinit.config.schema import GROUPS
from fedinit.report.runs.options import counted
from fedinit.report.runs.reading import RecordedRun
from fedinit.report.runs.same_data import refuse_different_data


@dataclass(frozen=True)
class Method:
    """label: what it is called here. runs: of one configuration, by seed, each seed once."""

    label: str
    runs: tuple[RecordedRun, ...]

    @property
    def first(self) -> RecordedRun:
        """The one that speaks for all: the first that was evaluated, if any was."""
        return next((run for run in self.runs if run.evaluated), self.runs[0])

    @property
    def evaluated(self) -> bool:
        """Whether it has a figure, so that it is a row and a line."""
        return self.first.evaluated


def methods(runs: Sequence[RecordedRun]) -> list[Method]:
    """The runs by configuration, in the order of their first, those without an evaluated round last. Of two of the same
    configuration and seed the one that is done counts, or came further. Raises InputError for runs on different
    data."""
    refuse_different_data(runs)
    by_config: dict[tuple[Any, ...], dict[int, RecordedRun]] = defaultdict(dict)
    for run in runs:
        of_config = by_config[tuple(sorted((k, repr(v)) for k, v in counted(run).items())), run.made_of]
        other = of_config.get(run.seed)
        if other is None or _progress(run) > _progress(other):
            of_config[run.seed] = run
    groups = [tuple(of_seed[seed] for seed in sorted(of_seed)) for of_seed in by_config.values()]
    found = [Method(label, group) for label, group in zip(_labels(groups), groups, strict=True)]
    return sorted(found, key=lambda method: not method.evaluated)


def _progress(run: RecordedRun) -> tuple[bool, int]:
    return run.summary is not None, run.reached


def _labels(groups: Sequence[Sequence[RecordedRun]]) -> list[str]:
    """The strategy of each group, and what else tells it from the others."""
    configs = [counted(group[0]) for group in groups]
    everywhere = set.intersection(*(set(c) for c in configs)) if configs else set()
    differ = {key for key in everywhere if len({repr(c[key]) for c in configs}) > 1}
    labels = []
    for group, config in zip(groups, configs, strict=True):
        name = config["strategy.name"]
        same = [c for c in configs if c["strategy.name"] == name]
        of_method = {k for k in config if k.startswith("strategy.") and len({repr(c.get(k)) for c in same}) > 1}
        told = sorted(k for k in differ | of_method if k in of_method or not k.startswith("strategy."))
        words = (_told(key, config[key], group[0]) for key in told)
        labels.append(" ".join(dict.fromkeys([name, *words])))
    twice = [label for label in labels if labels.count(label) > 1]
    return [f"{label} ({groups[i][0].folder.name})" if label in twice else label for i, label in enumerate(labels)]


def _told(key: str, value: object, run: RecordedRun) -> str:
    """A key and its value as one types them; of a bundled model its choice, not the class that it is of."""
    bundled = key in ("model.name", "model.checkpoint") and str(run.config["model"].get("checkpoint")).startswith(
        "embedded:"
    )
    return f"model={run.model}" if bundled else f"{_short(key)}={_word(value)}"


def _word(value: object) -> str:
    """A value as one writes it on the command line, but for what stands in quotes there."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_word, value))}]" if isinstance(value, (list, tuple)) else str(value)


def _short(key: str) -> str:
    """reinit=local, as one says it on the command line, not reinit.name=local."""
    group, _, inside = key.partition(".")
    return group if group in GROUPS and inside == GROUPS[group].key else key
