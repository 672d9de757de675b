"""fedinit evaluate: how good a run's model is on data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedinit import standard_streams
from fedinit.commands.parsing import Parser, add_run, load_run, only_text
from fedinit.commands.places import STDOUT, refuse_lossy, text_place
from fedinit.errors import InputError
from fedinit.said import printable
from fedinit.scores import average_among
from fedinit.telling import cell, tell

ABOUT = """How good the model that a run ended with is, by domain, and which classes it takes for which.

Without --data it is judged on the test images of the run's own data, and scores what the run's table says. Other images
are matched by the names of their classes; of those with named splits the test images count, of others all."""
EPILOG = """examples:
  fedinit evaluate outputs/pets/…-s0
  fedinit evaluate outputs/pets/…-s0 --data holiday/ --csv confusion.csv
  fedinit evaluate outputs/pets/…-s0 --data data=csv data.root=photos.csv"""


WIDTH = 1000  # columns where nobody sees a terminal


def parser(name: str) -> Parser:
    """Of the command's words."""
    made = Parser(f"fedinit {name}", ABOUT, EPILOG)
    add_run(made)
    made.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="a folder or zip of images, domain/class/image or class/image; or words: data=… data.root=…",
    )
    made.add_argument(
        "--split", choices=("auto", "test", "all"), default="auto", help="which of the images; auto: as said above"
    )
    made.add_argument("--csv", type=text_place, metavar="FILE", help="write the confusion matrix; -: that alone")
    return made


def main(name: str, words: Sequence[str], console: Console) -> int:
    """Evaluate, and print; the exit code. Raises InputError, one line."""
    options = parser(name).parse_args(words)
    if only_text(options, ["csv"]):
        console = Console(quiet=True)
    elif options.csv:
        standard_streams.writes_files()
    data = options.data
    refuse_lossy({"--csv": options.csv}, [Path(word.rpartition("=")[2]) for word in data], [options.run])
    run = load_run(options)
    from fedinit.data.reporter import counted
    from fedinit.inference import confusion
    from fedinit.inference.evaluating import evaluate
    from fedinit.report.writing import write_whole

    if not all("=" in word for word in data):
        if len(data) > 1:
            raise InputError(f"--data {' '.join(data)}: expected one folder or zip, or words such as data.root=FOLDER")
        data = data[0]
    found = evaluate(run, data, options.split, options.client, console)
    score, names = found.score, found.class_names
    noun = "measurement" if found.confusion is None else "image"
    table = Table(title=f"{run.config.strategy.name} on {counted(found.images, noun)}")
    table.add_column("domain")
    for column in (f"{noun}s", score.title):
        table.add_column(column, justify="right")
    for domain, value in score.by_domain.items():
        table.add_row(cell(domain), f"{found.judged[domain]:,}", score.show(value))
    table.add_row(average_among(score.by_domain), f"{found.images:,}", score.show(score.mean), style="bold")
    tell(console, f"judged on {found.what}")
    console.print(table)
    if found.confusion is None:
        if options.csv:
            raise InputError(f"--csv: data={run.config.data.name} has no classes, so there is no confusion matrix")
        return 0
    wide = Console(file=console.file, width=None if console.is_terminal else WIDTH, quiet=console.quiet)
    wide.print(confusion.table(found.confusion, names))
    if options.csv is STDOUT:
        print(confusion.csv_text(found.confusion, names, printable if sys.stdout.isatty() else str), end="")
    elif options.csv:
        write_whole(options.csv, confusion.csv_text(found.confusion, names))
        tell(console, f"csv: {options.csv}")
    return 0
