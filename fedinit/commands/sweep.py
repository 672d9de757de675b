"""A sweep on the command line: where its runs are done, a line for each, and what failed at the end."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

import fedinit
from fedinit import starting, telling
from fedinit.data.reporter import counted
from fedinit.stopping import LIMIT, listening
from fedinit.sweeps.outcome import Outcome, attempt

if TYPE_CHECKING:
    from fedinit.config.arguments import Arguments
    from fedinit.config.compose import Swept

WAIT = 2 * LIMIT  # seconds until this process ends anyhow after a signal: its own wait LIMIT and a little more


def run(said: Arguments, runs: Sequence[Swept], console: Console, errors: Console) -> int:
    """Do the runs by the launcher that the words choose, else in processes side by side, or, one at a time, here.

    Returns the exit code, 1 where a run failed.
    """
    from fedinit.sweeps.launchers import chosen, launched

    if chosen(said.words):
        with listening(limit=None):
            return tell(launched(said, runs), len(runs), console, errors)
    from fedinit.sweeps.processes import environments, side_by_side

    with starting.imports():
        preview = any(swept.config.preview for swept in runs)
        places = environments([swept.config for swept in runs], 1 if preview or said.verbose else said.jobs)
        simulate = importlib.import_module(fedinit.FACE["run"]).simulate if len(places) == 1 else None
    if simulate is not None:
        with listening():
            here = (attempt(name(swept), swept.config, simulate, console) for swept in runs)
            return tell(here, len(runs), console, errors)
    telling.tell(console, f"{counted(len(runs), 'run')}, {len(places)} at a time")
    with listening(limit=WAIT):
        together = side_by_side([(name(swept), swept.config) for swept in runs], places)
        return tell(together, len(runs), console, errors)


def name(swept: Swept) -> str:
    """What a run of a sweep is called: the words that are swept over."""
    return swept.words or swept.config.name


def tell(outcomes: Iterable[Outcome], count: int, console: Console, errors: Console) -> int:
    """A line a run, as it ends, and at the end, or when the sweep is stopped, which failed and why, a line each. Of
    those that are done, if any, the last line says what makes a table.

    console: on a quiet one a run's folder alone is printed.

    Returns the exit code, 1 where a run failed.
    """
    failed: list[Outcome] = []
    kept: set[str] = set()
    told: Iterator[Outcome] = iter(outcomes)
    try:
        for number, outcome in enumerate(told, 1):
            if outcome.summary:  # a preview has none
                kept.add(str(Path(outcome.summary["folder"]).parent))
            if outcome.why:
                failed.append(outcome)
                errors.print(outcome.trace, end="")
                telling.tell(errors, f"{number} of {count}: {outcome.line}; the sweep goes on")
            elif not console.quiet:
                telling.tell(console, f"{number} of {count}: {outcome.line}")
            elif outcome.summary:
                print(outcome.summary["folder"], flush=True)
    finally:
        close = getattr(told, "close", None)
        if close is not None:
            close()  # ends the processes, also where a signal is what ends the sweep
        if failed:
            telling.tell(errors, f"{len(failed)} of {counted(count, 'run')} failed:")
            for outcome in failed:
                telling.tell(errors, f"  {outcome.line}")
    if kept and not console.quiet:
        telling.tell(console, f"the table: fedinit compare {' '.join(map(shlex.quote, sorted(kept)))}")
    return 1 if failed else 0
