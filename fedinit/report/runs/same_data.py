"""Whether runs were scored on the same images: those that were not are no comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedinit.config.build import shown
from fedinit.errors import InputError
from fedinit.pasted import pasted
from fedinit.report.runs.finding import find
from fedinit.report.runs.options import counted
from fedinit.report.runs.reading import RecordedRun

# What chooses the images beside `data`, where it is not as usual: domains that are test images alone, and a share of
# the clients, each with its own.
PART, DEALING = "evaluation.participation", ("partition.", "rounds")
CHOOSING = {"partition.test_domains": None, PART: 1.0}


def refuse_different_data(runs: Sequence[RecordedRun], command: str = "compare") -> None:
    """Raises InputError where not all are scored on the same images, naming two of the runs, what differs, and the
    commands that take those of the same data. command: that of fedinit which was given."""
    known = [(run, _data(run)) for run in runs]
    first, mine = known[0]
    groups: list[list[tuple[RecordedRun, dict[str, Any]]]] = []
    for run, its in known:
        fits = (group for group in groups if all(_differs(other, its) is None for other in _distinct(group)))
        group = next(fits, None)
        if group is None:
            groups.append(group := [])
        group.append((run, its))
    if len(groups) < 2:
        return
    # What the first run differs in, of one that says less than others those two.
    pairs = [(first, mine, *other) for other in known] + [(*a, *b) for a in groups[0] for b in groups[1]]
    one, its, other, theirs, key = next((*pair, key) for pair in pairs if (key := _differs(pair[1], pair[3])))
    said = f"{one.folder} and {other.folder}: different data, {_said(key, its)} and {_said(key, theirs)}"
    raise InputError(f"{said}; compare runs on the same data: {_ways(command, [[r for r, _ in g] for g in groups])}")


def _distinct(group: Sequence[tuple[RecordedRun, dict[str, Any]]]) -> list[dict[str, Any]]:
    return list({repr(values): values for _, values in group}.values())


def _differs(mine: Mapping[str, Any], its: Mapping[str, Any]) -> str | None:
    """The first key in which the two are of other data; None where they are not."""
    options = {key for key in mine.keys() | its.keys() if key.startswith(("data.", *DEALING)) or key in CHOOSING}
    known = (mine.keys() & its.keys()) - options
    if {"domains", "classes"} <= known:
        options -= {"data.domains", "data.classes"}  # what came of them is known better
    keys = sorted(options, key=lambda key: (key != "data.name", key)) + sorted(known)
    return next((key for key in keys if mine.get(key) != its.get(key)), None)


def _ways(command: str, groups: Sequence[Sequence[RecordedRun]]) -> str:
    """A command a group, as a shell takes them; one of which no run was evaluated has nothing to show."""
    try:
        top: Path | None = Path(os.path.commonpath([run.folder.absolute() for group in groups for run in group]))
    except ValueError:  # on two drives
        top = None
    told = [group for group in groups if any(run.evaluated for run in group)] or groups
    words = [" ".join(map(pasted, _places(group, top))) for group in told]
    return "; ".join(f"fedinit {command} {places}" for places in words)


def _places(group: Sequence[RecordedRun], top: Path | None) -> list[Path]:
    """The folders of these runs, or one above them, below `top`, where there is none with them and no other run."""
    members, covered = {run.folder.resolve() for run in group}, set()
    places = []
    for run in group:
        if run.folder.resolve() in covered:
            continue
        place, within = run.folder, {run.folder.resolve()}
        for above in run.folder.parents:
            if not above.name or top not in above.absolute().parents:  # no walk through what nobody named
                break
            inside = {other.folder.resolve() for other in find([above])}
            if not inside <= members:
                break
            if len(inside) > len(within):
                place, within = above, inside
        places.append(place)
        covered |= within
    return places


def _data(run: RecordedRun) -> dict[str, Any]:
    """What says on which images a run was scored. What a run has not come to say yet is not there."""
    said = counted(run).items()
    options = {k: v for k, v in said if k.startswith("data.") or (k in CHOOSING and v != CHOOSING[k])}
    if PART in options:  # who is drawn, and has which images, is by these
        options |= {k: v for k, v in said if k.startswith(DEALING)}
    known: dict[str, Any] = {"score": run.score, "domains": list(run.domains)} if run.domains else {}
    if run.partition is not None:
        by_domain = run.partition.get("images_by_domain")
        known |= {"classes": run.partition["classes"]}
        known |= {f"images of {name}": n for name, n in by_domain.items()} if isinstance(by_domain, Mapping) else {}
    images, _, grey = run.made_of
    known |= {"images": images[:12]} if images else {}
    return options | known | ({"levels of deep grey": grey} if grey else {})


def _said(key: str, values: Mapping[str, Any]) -> str:
    value = values.get(key, "not set")
    text = ",".join(map(str, value)) if isinstance(value, list) else shown(value)
    return f"{key.removesuffix('.name')}={text[:80]}"
