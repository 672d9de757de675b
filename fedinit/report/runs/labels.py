"""What the methods of a comparison are called: the strategy, and what else tells each from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedinit.config.schema import GROUPS
from fedinit.report.markup import Cut
from fedinit.report.runs.options import counted
from fedinit.report.runs.reading import RecordedRun

WIDTH = 40  # characters; the middle of a longer label is left out
ABSENT = object()


def labels(groups: Sequence[Sequence[RecordedRun]]) -> list[str]:
    """A label each, no two the same; a `Cut` where the whole is longer than WIDTH. How a run was computed (`engine`) is
    said where nothing else tells two apart."""
    configs = [counted(group[0]) for group in groups]
    everywhere = set.intersection(*(set(c) for c in configs)) if configs else set()
    differ = {key for key in everywhere if len({repr(c[key]) for c in configs}) > 1}
    short = _short_keys(key for config in configs for key in config)

    def whole(group: Sequence[RecordedRun], config: Mapping[str, Any], engine: bool) -> str:
        keys = (key for key in config if engine or not key.startswith("engine."))
        told = sorted(key for key in keys if _tells(key, config, configs, differ))
        words = (_told(short[key], key, config[key], group[0]) for key in told if key != "strategy.name")
        return " ".join(dict.fromkeys([config["strategy.name"], *words]))

    pairs = [*zip(groups, configs, strict=True)]
    found = [whole(group, config, engine=False) for group, config in pairs]
    alike = {label for label, n in Counter(found).items() if n > 1}
    found = [whole(*pair, engine=label in alike) for label, pair in zip(found, pairs, strict=True)]
    twice = {label for label, n in Counter(found).items() if n > 1}
    folders = [group[0].folder.name for group in groups]
    return _shortened(f"{w} ({f})" if w in twice else w for w, f in zip(found, folders, strict=True))


def cut(label: str, width: int = WIDTH) -> str:
    """The label with its middle left out where it is wider: more of its beginning, which has the strategy."""
    if len(label) <= width:
        return label
    end = 3 * width // 8
    return f"{label[: width - 1 - end].rstrip()}…{label[-end:].lstrip()}"


def _tells(key: str, config: Mapping[str, Any], configs: Sequence[Mapping[str, Any]], differ: set[str]) -> bool:
    """Whether the key tells the method from another: it differs where all have it, or among those of the same choice
    of its group, whose options alone can be compared. What all strategies have is one another's business."""
    group = key.partition(".")[0]
    if key in differ and group != "strategy":
        return True
    choice = f"{group}.{GROUPS[group].key}" if group in GROUPS else ""
    alike = [c for c in configs if choice in c and c[choice] == config.get(choice)]
    return len({repr(c.get(key, ABSENT)) for c in alike}) > 1


def _shortened(whole: Iterable[str]) -> list[str]:
    """The labels cut to WIDTH, with a number where two would be the same then."""
    whole = list(whole)
    found = [cut(label) for label in whole]
    twice = {label for label, n in Counter(found).items() if n > 1}
    numbers: Counter[str] = Counter()
    made: list[str] = []
    for label, full in zip(found, whole, strict=True):
        if label in twice:
            label = cut(full, WIDTH - 5)
            numbers[label] += 1
            label = f"{label} ({numbers[label]})"
        made.append(label if label == full else Cut(label, full))
    return made


def _short_keys(keys: Iterable[str]) -> dict[str, str]:
    """How each key is said: as on the command line where it is a group's choice, by its last part where no other key
    of these runs, and no group, ends like it, else in full."""
    distinct = set(keys)
    ends = Counter(key.rpartition(".")[2] for key in distinct)
    said = {}
    for key in distinct:
        group, _, inside = key.partition(".")
        last = key.rpartition(".")[2]
        if group in GROUPS and inside == GROUPS[group].key:
            said[key] = group
        else:
            said[key] = last if ends[last] == 1 and last not in GROUPS else key
    return said


def _told(said: str, key: str, value: object, run: RecordedRun) -> str:
    """A key and its value as one types them; of a bundled model its choice, not the class that it is of."""
    bundled = key in ("model.name", "model.checkpoint") and str(run.config["model"].get("checkpoint")).startswith(
        "embedded:"
    )
    return f"model={run.model}" if bundled else f"{said}={_word(value)}"


def _word(value: object) -> str:
    """A value as one writes it on the command line, but for what stands in quotes there."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_word, value))}]" if isinstance(value, (list, tuple)) else str(value)
