"""What the methods of a comparison are called: the strategy, and what else is special to each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedinit.config.schema import GROUPS
from fedinit.report.markup import Cut
from fedinit.report.runs.options import counted
from fedinit.report.runs.reading import RecordedRun
from fedinit.report.runs.usual import ABSENT, choice_of, usual

WIDTH = 40  # characters; the middle of a longer label is left out


def labels(groups: Sequence[Sequence[RecordedRun]]) -> tuple[list[str], str]:
    """(a label each, no two the same, whatever the order; what holds where a label says nothing else). A label is a
    `Cut` where the whole is longer than WIDTH. What most methods have is in none. How a run was computed (`engine`) is
    said where nothing else tells two apart."""
    configs = [counted(group[0]) for group in groups]
    everywhere = set.intersection(*(set(c) for c in configs)) if configs else set()
    differ = {key for key in everywhere if len({repr(c[key]) for c in configs}) > 1}
    short = _short_keys(key for config in configs for key in config)
    words = [
        {key: _told(short[key], key, value, group[0]) for key, value in config.items()}
        for group, config in zip(groups, configs, strict=True)
    ]
    told = [{key for key in config if _tells(key, config, configs, differ)} for config in configs]
    common = usual(configs, words, set().union(*told))

    special = [
        sorted(k for k in config if (said[k] != common[k] if k in common else k in telling) and k != "strategy.name")
        for config, said, telling in zip(configs, words, told, strict=True)
    ]

    def whole(i: int, engine: bool) -> str:
        keys = (key for key in special[i] if engine or not key.startswith("engine."))
        return " ".join(dict.fromkeys([configs[i]["strategy.name"], *(words[i][key] for key in keys)]))

    found = [whole(i, engine=False) for i in range(len(groups))]
    alike = {label for label, n in Counter(found).items() if n > 1}
    found = [whole(i, engine=label in alike) for i, label in enumerate(found)]
    unsaid = " ".join(dict.fromkeys(common[key] for key in sorted(common)))
    return _shortened(found, [group[0].folder for group in groups]), unsaid


def cut(label: str, width: int = WIDTH) -> str:
    """The label with its middle left out where it is wider: more of its beginning, which has the strategy."""
    if len(label) <= width:
        return label
    end = 3 * width // 8
    return f"{label[: width - 1 - end].rstrip()}…{label[-end:].lstrip()}"


def _tells(key: str, config: Mapping[str, Any], configs: Sequence[Mapping[str, Any]], differ: set[str]) -> bool:
    """Whether the key tells the method from another: it differs where all have it, or among those of the same choice
    of its group, whose options alone can be compared. What all strategies have is one another's business."""
    if key in differ and not key.startswith("strategy."):
        return True
    choice = choice_of(key)
    chosen = choice != key and any(choice in c for c in configs)  # older runs have not each choice
    alike = [c for c in configs if choice in c and c[choice] == config.get(choice)] if chosen else configs
    return len({repr(c.get(key, ABSENT)) for c in alike}) > 1


def _shortened(whole: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The labels cut to WIDTH, with a number where two would be the same then. Of those that are the same as a whole
    the folder's name is said, or all of its path where that is the same too."""
    twice, names = Counter(whole), Counter((label, folder.name) for label, folder in zip(whole, folders, strict=True))
    full = [
        label if twice[label] == 1 else f"{label} ({folder.name if names[label, folder.name] == 1 else folder})"
        for label, folder in zip(whole, folders, strict=True)
    ]
    same = Counter(cut(label) for label in full)
    numbers: Counter[str] = Counter()
    made = {}
    for label in sorted(full):
        short = cut(label)
        if same[short] > 1:
            numbers[short] += 1
            short = f"{cut(label, WIDTH - 5)} ({numbers[short]})"
        made[label] = short if short == label else Cut(short, label)
    return [made[label] for label in full]


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
