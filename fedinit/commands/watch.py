"""fedinit watch: a run of another process, live."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedinit.commands.parsing import Parser

ABOUT = """Shows a run that another process is at, from the files in its folder: rounds, cohort, loss, the score by
domain, bytes, and the time that is left. It changes nothing, and Ctrl-C leaves the run as it is."""
EPILOG = """FOLDER is a run's, or one with runs below it, of which the one that was written to last is shown. Where the
output is no terminal there is a line a round. The exit code is 0 for a run that is done, and 1 for one that stopped
before its end, which is shown as far as it came."""


def parser(name: str) -> Parser:
    """Of the command's words."""
    made = Parser(f"fedinit {name}", ABOUT, EPILOG)
    made.add_argument("folder", type=Path, metavar="FOLDER", help="of a run, or with runs below it")
    made.add_argument("--once", action="store_true", help="show how it stands now, and leave")
    return made


def main(name: str, words: Sequence[str], console: Console) -> int:
    """Watch until the run ends; the exit code. Raises InputError for a folder without a run."""
    options = parser(name).parse_args(words)
    from rich.live import Live

    from fedinit.runs.view import View
    from fedinit.runs.watching import goes_on, newest, watch

    folder = newest(options.folder)
    live = Live(View(""), console=console, auto_refresh=False) if console.is_terminal and not options.once else None
    done, shown = False, 0
    with live or contextlib.nullcontext():
        for run, view in watch(folder):
            done = run.summary is not None
            if live is not None:
                live.update(view, refresh=True)
            elif options.once:
                console.print(view)
                break
            else:
                for round in view.done[shown:]:
                    _say(console, view.line(round))
                shown = len(view.done)
    if done:
        _say(console, f"done: {folder}")
        return 0
    if options.once and goes_on(folder):
        return 0
    _say(console, f"stopped after round {view.reached} of {view.rounds}; fedinit run resume={folder} goes on with it")
    return 1


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
