"""fedinit report, fedinit compare: what runs left, as a page and as a table.

  fedinit report FOLDER … [--output FILE]    report.html of a run, or of several in one page
  fedinit compare FOLDER … [--csv FILE] [--markdown FILE] [--latex FILE] [--report FILE]
                                             methods over seeds, with what is beyond noise

A FOLDER is a run's, as run_sim.py prints it, or one with runs anywhere below it, such as a sweep's outputs/digits.
Runs that differ by their seed alone are one method. A run that is not done is shown as far as it came. `report` of one
FOLDER writes into it, of several into the present folder. docs/report.md says what everything is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from fedinit.errors import InputError
from fedinit.report import formats
from fedinit.report.panels.results import judged
from fedinit.report.runs.finding import find
from fedinit.report.runs.methods import Method, methods
from fedinit.report.runs.results import results
from fedinit.report.writing import FILE, write_report, write_whole

COMMANDS = ("report", "compare")
WIDTH = 1000  # columns where nobody sees a terminal: a file's table is not cut


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str], console: Console) -> int:
    """Run `report` or `compare` and return the exit code.

    argv: the command and its words. console: for what is said. Raises InputError, one line.
    """
    if {"-h", "--help"} & set(argv):
        console.print(__doc__, markup=False, highlight=False)
        return 0
    command, *words = argv
    parser = _Parser(prog=f"fedinit {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    for option in ("--output",) if command == "report" else ("--csv", "--markdown", "--latex", "--report"):
        parser.add_argument(option, type=Path, metavar="FILE")
    options = parser.parse_args(words)
    return (_report if command == "report" else _compare)(options, console)


def _report(options: argparse.Namespace, console: Console) -> int:
    runs = find(options.folders)
    path = options.output or (options.folders[0] / FILE if len(options.folders) == 1 else Path(FILE))
    write_report(runs, path)
    _say(console, f"{path}: {len(runs)} run{'s' * (len(runs) != 1)}")
    return 0


def _compare(options: argparse.Namespace, console: Console) -> int:
    runs = find(options.folders)
    shown = methods(runs)
    found = results(shown)
    wide = Console(file=console.file, width=None if console.is_terminal else WIDTH, quiet=console.quiet)
    wide.print(formats.terminal(found))
    for sentence in [*judged(found), *_left(shown)]:
        _say(console, sentence)
    made = {"csv": formats.csv_text, "markdown": formats.markdown, "latex": formats.latex}
    for name, text in made.items():
        if path := getattr(options, name):
            write_whole(path, text(found))
            _say(console, f"{name}: {path}")
    if options.report:
        write_report(runs, options.report)
        _say(console, f"report: {options.report}")
    return 0


def _left(shown: Sequence[Method]) -> list[str]:
    """The runs that are not done, a line each."""
    return [
        f"not done: {run.folder}, round {run.reached} of {run.rounds}"
        for method in shown
        for run in method.runs
        if run.summary is None
    ]


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
