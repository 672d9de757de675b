"""What is not as a run wrote it in its folder, and is not seen in any figure: whether it is done, and its settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedinit.config.dotted import dotted
from fedinit.errors import InputError
from fedinit.report.runs.reading import RecordedRun, number_of
from fedinit.runs import summary
from fedinit.runs.done import DONE, done_of, wrong
from fedinit.runs.hints import anew
from fedinit.runs.named import CONFIG
from fedinit.state.manifest import FOLDER, written_config

NOT_KEYS = ("method", "backbone")  # in a checkpoint beside the configuration
ABSENT = object()


def damage(runs: Iterable[RecordedRun], whole_path: bool = False) -> list[str]:
    """A sentence of each such thing; none where all is as it was written. whole_path: of the folders, for who is where
    they are, with what to do."""
    said = []
    for run in runs:
        where = run.folder if whole_path else run.folder.name
        if why := wrong(run.folder):
            what_to_do = f"; {anew(run.folder)}" if whole_path else ""
            said.append(f"{where}: its {DONE} {why}, not what a run writes, so that it counts as not done{what_to_do}.")
        elif run.summary is None and done_of(run.folder) is not None and (why := summary.wrong(run.folder)):
            what_to_do = f"; {anew(run.folder)}" if whole_path else ""
            said.append(f"{where}: its {summary.SUMMARY} {why}, so that it counts as not done{what_to_do}.")
        if (other := edited(run)) is not None:
            key, value, used = other
            what_to_do = "; write that in it, or give the run's own words, which do" if whole_path else ""
            what = f"its {CONFIG} was edited, it says {key}={value}, and the run computed with {used}"
            said.append(f"{where}: {what}{what_to_do}.")
    return said


def edited(run: RecordedRun) -> tuple[str, Any, Any] | None:
    """The first key of which config.yaml says something else than the run's last checkpoint: (key, there, in the
    checkpoint); None where there is none, or no checkpoint that can be read."""
    try:
        written = written_config(run.folder / FOLDER)
    except InputError:  # of another format, or closed
        return None
    said = dict(dotted(run.config))
    for key, used in dotted({k: v for k, v in (written or {}).items() if k not in NOT_KEYS}):
        value = said.get(key, ABSENT)
        if not _same(value, used):
            return key, "nothing" if value is ABSENT else value, used
    return None


def _same(value: Any, used: Any) -> bool:
    """Whether a value of a YAML file is one of a JSON file: "1e-05" is a text in the one."""
    if isinstance(value, list) and isinstance(used, list):
        return len(value) == len(used) and all(map(_same, value, used))
    if isinstance(value, Mapping) and isinstance(used, Mapping):
        return value.keys() == used.keys() and all(_same(value[key], used[key]) for key in used)
    if type(used) in (int, float) and type(value) in (int, float, str):
        return number_of(value) == number_of(used) or str(value) == str(used)
    return type(value) is type(used) and value == used
