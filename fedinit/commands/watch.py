"""fedinit watch: a run of another process, live."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedinit.commands.parsing import Parser
from fedinit.errors import InputError
from fedinit.stopping import standing
from fedinit.telling import tell
from fedinit.unreadable import Unreadable

ABOUT = """Shows a run that another process is at, from the files in its folder: rounds, cohort, loss, the score by
domain, bytes, and the time that is left. It changes nothing, and Ctrl-C leaves the run as it is."""
EPILOG = """FOLDER is a run's, or one with runs below it, of which the one that was written to last is shown. Where the
output is no terminal there is a line a round. The exit code is 0 for a run that is done, and 1 for one that stopped
before its end, which is shown as far as it came.

A run has a folder only once its images are decoded: where there is none yet, it is waited for. Where there are other
runs, of which none goes on, a line says so and the last one is shown; with --wait one that goes on is waited for."""
WAIT = 60.0  # seconds for a run to begin
LOOK = 0.5  # seconds between two looks for a run


def parser(name: str) -> Parser:
    """Of the command's words."""
    made = Parser(f"fedinit {name}", ABOUT, EPILOG)
    made.add_argument("folder", type=Path, metavar="FOLDER", help="of a run, or with runs below it")
    made.add_argument("--once", action="store_true", help="show how it stands now, and leave")
    about = "for a run in FOLDER, where there is none yet (60; --once: 0), or none that goes on (0)"
    made.add_argument("--wait", type=_seconds, metavar="SECONDS", help=about)
    return made


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds, a number from 0")
    return value


def main(name: str, words: Sequence[str], console: Console) -> int:
    """Watch until the run ends; the exit code. Raises InputError for a folder without a run."""
    options = parser(name).parse_args(words)
    from rich.live import Live

    from fedinit.runs.hints import way_on
    from fedinit.runs.view import View
    from fedinit.runs.watching import goes_on, watch

    folder = _awaited(options, console)
    live = Live(View(""), console=console, auto_refresh=False) if console.is_terminal and not options.once else None
    done, shown, remark = False, 0, ""
    with contextlib.nullcontext() if live is None else standing(live):
        for run, view in watch(folder):
            done, remark = run.summary is not None, run.remark
            if live is not None:
                live.update(view, refresh=True)
            elif options.once:
                console.print(view)
                break
            else:
                for round in view.done[shown:]:
                    tell(console, view.line(round))
                shown = len(view.done)
    if remark:
        tell(console, f"{folder}: {remark}")
    if done:
        tell(console, f"done: {folder}")
        return 0
    if options.once and goes_on(folder):
        return 0
    tell(console, f"stopped after round {view.reached} of {view.rounds}; {way_on(folder)}")
    return 1


def _awaited(options: argparse.Namespace, console: Console) -> Path:
    """The run that is meant, once there is one; one that does not go on, with a line that says so, where none that does
    came in the time given. Raises InputError where there is none at all after that time."""
    from fedinit.runs.named import CONFIG
    from fedinit.runs.watching import goes_on, newest

    folder: Path = options.folder
    begun, told, was_none = time.monotonic(), False, False
    while True:
        try:
            found, why = newest(folder), f"{folder}: no run goes on there"
            if was_none or (folder / CONFIG).exists() or goes_on(found):
                return found
        except InputError as error:
            if isinstance(error, Unreadable):
                raise
            found, why, was_none = None, str(error), True
        usual = 0.0 if options.once or found is not None else WAIT
        wait = usual if options.wait is None else options.wait
        left = begun + wait - time.monotonic()
        if left <= 0 or folder.is_file():
            waited = f"waited for {wait:g} s, --wait SECONDS is longer" if told else ""
            if found is None:
                raise InputError(f"{why}; {waited}" if told else why)
            tell(console, f"{why}; {waited or f'{found} is the last one'}")
            return found
        if not told:
            none = "no run there yet" if found is None else "no run goes on there"
            tell(console, f"{folder}: {none}; waiting for it up to {wait:g} s, Ctrl-C ends that")
            told = True
        time.sleep(min(LOOK, left))
