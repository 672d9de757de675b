"""Runs that differ by their seed alone are one method; what tells the methods of a comparison apart is its label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedinit.config.schema import GROUPS, PLACES, UNCOUNTED
from fedinit.errors import InputError
from fedinit.report.runs.reading import RecordedRun

# Of two runs of a method, these may differ; where data and weights lie says not which they are.
APART = (*UNCOUNTED, *PLACES, "seed", "name")


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


def refuse_different_data(runs: Sequence[RecordedRun]) -> None:
    """Raises InputError, naming two of the runs and what differs, where not all are scored on the same images."""
    first, *others = runs
    for other in others:
        mine, its = _data(first), _data(other)
        known = {key for key in mine.keys() & its.keys() if not key.startswith("data.")}
        options = {key for key in mine.keys() | its.keys() if key.startswith("data.")}
        if {"domains", "classes"} <= known:
            options -= {"data.domains", "data.classes"}  # what came of them is known better
        for key in sorted(options, key=lambda key: (key != "data.name", key)) + sorted(known):
            if mine.get(key) != its.get(key):
                raise InputError(
                    f"{first.folder} and {other.folder}: different data, {_said(key, mine)} and {_said(key, its)}; "
                    "compare runs on the same data"
                )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a configuration with their values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def counted(run: RecordedRun) -> dict[str, Any]:
    """What the run's result is a function of, but for its seed."""
    return {k: v for k, v in flat(run.config) if not any(k == apart or k.startswith(f"{apart}.") for apart in APART)}


def _data(run: RecordedRun) -> dict[str, Any]:
    """What says on which images a run was scored. What a run has not come to say yet is not there."""
    options = {k: v for k, v in counted(run).items() if k.startswith("data.")}
    known: dict[str, Any] = {"score": run.score, "domains": list(run.domains)} if run.domains else {}
    if run.partition is not None:
        by_domain = run.partition.get("images_by_domain")
        known |= {"classes": run.partition["classes"]}
        known |= {f"images of {name}": n for name, n in by_domain.items()} if isinstance(by_domain, Mapping) else {}
    images = run.made_of[0]
    return options | known | ({"images": images[:12]} if images else {})


def _said(key: str, values: Mapping[str, Any]) -> str:
    value = values.get(key, "not set")
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{key.removesuffix('.name')}={text[:80]}"


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
