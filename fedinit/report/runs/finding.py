"""The runs that a person means by some folders: runs, or folders of runs such as a sweep's."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from fedinit.errors import InputError
from fedinit.report.runs.options import counted
from fedinit.report.runs.reading import NOT_A_RUN, RecordedRun, number_of, read
from fedinit.runs.named import CONFIG
from fedinit.unreadable import Unreadable, is_folder, mode_of, unreadable

_log = logging.getLogger(__name__)
ASIDE = re.compile(r"-s\d+\.\d+$")  # an earlier run of the same configuration, moved aside


def find(paths: Sequence[Path]) -> list[RecordedRun]:
    """The runs in these folders, in the order given and as `in_order` has them inside one, each once.

    A folder that is no run itself stands for all the runs below it, but for those that were moved aside.
    Raises InputError for a path that is no run and has none below it, or that cannot be read.
    """
    found: dict[Path, RecordedRun] = {}
    for path in paths:
        runs = _below(path) if is_folder(path) and not mode_of(path / CONFIG) else [read(path)]
        if not runs:
            raise InputError(f"{path}: no run in it, no {CONFIG} anywhere below; {NOT_A_RUN}")
        for run in runs:
            found.setdefault(run.folder.resolve(), run)
    return list(found.values())


def _below(path: Path) -> list[RecordedRun]:
    """Those in a folder. What cannot be read is left out with a warning; where there is nothing else it is refused."""
    runs: list[RecordedRun] = []
    closed: list[Unreadable] = []
    for folder, inside, files in os.walk(path, onerror=lambda e: closed.append(unreadable(Path(e.filename), e))):
        inside.sort()
        if CONFIG in inside:
            closed.append(Unreadable(f"{Path(folder, CONFIG)}: is a folder, not a file; {NOT_A_RUN}"))
        if CONFIG not in files:
            continue
        inside.clear()  # what is inside a run is its own
        if ASIDE.search(folder):
            continue
        try:
            run = read(Path(folder))
            _ = run.metrics  # without which there is nothing to show of it
            runs.append(run)
        except Unreadable as error:
            closed.append(error)
        except InputError:  # another program's config.yaml: not what was asked for
            continue
    if closed and not runs:
        raise closed[0]
    for error in closed:
        _log.warning("left out: %s", error)
    return in_order(runs)


def in_order(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """By method, then by option, then by seed, the same on every machine: numbers as numbers, an option that a run has
    not before one that it has; last by name."""
    options = {run.folder: counted(run) for run in runs}
    keys = sorted({key for values in options.values() for key in values})

    def rank(run: RecordedRun) -> tuple[object, ...]:
        values = options[run.folder]
        return run.name, [_rank(values.get(key)) for key in keys], run.seed, str(run.folder)

    return sorted(runs, key=rank)


def _rank(value: object) -> tuple[int, float, str]:
    if value is None:
        return 0, 0.0, ""
    number = number_of(value) if isinstance(value, (int, float)) else float("nan")
    return (1, number, "") if number == number else (2, 0.0, str(value))
