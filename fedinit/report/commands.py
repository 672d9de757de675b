"""fedinit report, fedinit compare: what runs left, as a page and as a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedinit import standard_streams
from fedinit.commands.parsing import Parser, only_text
from fedinit.commands.places import STDOUT, own_place, refuse_lossy, text_place
from fedinit.errors import InputError
from fedinit.said import printable
from fedinit.telling import tell

if TYPE_CHECKING:
    from fedinit.report.runs.methods import Method

ABOUT = {
    "report": "report.html of a run, or of several in one page: one file for a browser, without network.",
    "compare": "Methods over seeds as a table, with what is beyond noise.",
}
EPILOG = """A FOLDER is a run's, as fedinit run prints it, or one with runs anywhere below it, such as a sweep's
outputs/digits. Runs that differ by their seed alone are one method. A run that is not done is shown as far as it came.
docs/report.md says what everything is."""
OPTIONS = {
    "report": {"--output": "where to; default: into the FOLDER, of several into the present folder"},
    "compare": {
        "--csv": "also write the table as CSV; -: to standard output, in place of the table",
        "--markdown": "also as Markdown, or -",
        "--latex": "also as LaTeX, or -",
        "--report": "also write the report of these runs",
    },
}
TEXTS = ("csv", "markdown", "latex")


def parser(name: str) -> Parser:
    """Of the words of `report` or `compare`."""
    made = Parser(f"fedinit {name}", ABOUT[name], EPILOG)
    made.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a run, or with runs below it")
    for option, about in OPTIONS[name].items():
        place = text_place if option[2:] in TEXTS else own_place
        made.add_argument(option, type=place, metavar="FILE", help=about)
    return made


def main(name: str, words: Sequence[str], console: Console) -> int:
    """Run `report` or `compare` and return the exit code. Raises InputError, one line."""
    options = parser(name).parse_args(words)
    return (_report if name == "report" else _compare)(options, console)


def _report(options: argparse.Namespace, console: Console) -> int:
    from fedinit.report.runs.damage import damage
    from fedinit.report.runs.finding import find
    from fedinit.report.runs.same_data import refuse_different_data
    from fedinit.report.writing import FILE, write_report

    standard_streams.prints_beside()
    refuse_lossy({"--output": options.output}, runs=options.folders)
    runs = find(options.folders)
    refuse_different_data(runs, "report")
    path = options.output or (options.folders[0] / FILE if len(options.folders) == 1 else Path(FILE))
    write_report(runs, path)
    for sentence in damage(runs, whole_path=True):
        tell(console, sentence)
    tell(console, f"{path}: {len(runs)} run{'s' * (len(runs) != 1)}")
    return 0


def _compare(options: argparse.Namespace, console: Console) -> int:
    from fedinit.report import formats
    from fedinit.report.panels.results import (
        absence,
        heads_ahead,
        in_full,
        judged,
        old_code,
        other_code,
        remarks,
        unfinished,
        unscored,
    )
    from fedinit.report.runs.damage import damage
    from fedinit.report.runs.finding import find
    from fedinit.report.runs.methods import methods
    from fedinit.report.runs.results import results
    from fedinit.report.terminal import print_table
    from fedinit.report.writing import write_report, write_whole

    if only_text(options, TEXTS):
        console = Console(quiet=True)
    if any(getattr(options, name) not in (None, STDOUT) for name in (*TEXTS, "report")):
        standard_streams.writes_files()
    refuse_lossy({f"--{name}": getattr(options, name) for name in (*TEXTS, "report")}, runs=options.folders)
    runs = find(options.folders)
    shown = methods(runs)
    found = results(shown)
    if not found.rows:
        raise InputError(f"nothing to compare. {absence(found, whole_path=True)[0]}")
    print_table(console, found)
    notes = [*in_full(found), *judged(found), *heads_ahead(found), *unscored(found), *unfinished(found), *_left(shown)]
    notes += [
        *remarks(found, whole_path=True),
        *other_code(shown),
        *old_code(shown),
        *absence(found, whole_path=True),
        *damage(runs, whole_path=True),
    ]
    for sentence in notes:
        tell(console, sentence)
    made = {"csv": formats.csv_text, "markdown": formats.markdown, "latex": formats.latex}
    for name, text in made.items():
        if (path := getattr(options, name)) is STDOUT:
            to_screen = name == "csv" and sys.stdout.isatty()  # the others are printable anyway
            print(formats.csv_text(found, printable) if to_screen else text(found), end="")
        elif path:
            write_whole(path, text(found))
            tell(console, f"{name}: {path}")
    if options.report:
        write_report(runs, options.report, how="fedinit compare … --report FILE writes it elsewhere")
        tell(console, f"report: {options.report}")
    return 0


def _left(shown: Sequence[Method]) -> list[str]:
    """The runs that have figures and are not done, a line each."""
    return [
        f"not done: {run.folder}, round {run.reached} of {run.rounds}"
        for method in shown
        for run in method.runs
        if run.summary is None and run.evaluated
    ]
