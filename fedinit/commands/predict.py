"""fedinit predict: what a run's model says of pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedinit.commands.parsing import Parser, add_run, load_run, whose
from fedinit.errors import InputError
from fedinit.pasted import pasted
from fedinit.runs.named import CONFIG
from fedinit.telling import tell
from fedinit.unreadable import is_file

ABOUT = """The class of each picture by the model that a run ended with, and how sure it is. Pictures are brought to
the model's size and colours as those that it was trained on were."""
EPILOG = """Pictures that cannot be read are a line each on stderr, and the exit code is 2; the others are predicted.

examples:
  fedinit predict outputs/pets/…-s0 cat.jpg dog.png
  fedinit predict outputs/pets/…-s0 holiday/ --csv > holiday.csv"""
WIDTH = 1000  # columns where nobody sees a terminal


def parser(name: str) -> Parser:
    """Of the command's words."""
    made = Parser(f"fedinit {name}", ABOUT, EPILOG)
    add_run(made)
    made.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="a picture, or a folder with pictures anywhere below"
    )
    made.add_argument("--csv", action="store_true", help="as CSV, with the probabilities of all classes")
    made.add_argument("--top", type=int, default=3, metavar="K", help="how many classes a picture the table has (3)")
    made.add_argument(
        "--grey-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the levels shown black and white, of grey with more than 8 bits; default: as in the run",
    )
    return made


def refuse_swapped(run: Path, images: Sequence[Path]) -> None:
    """Raise InputError where the run is not the first of the words, but one of those behind it."""
    if is_file(run / CONFIG):
        return
    for other in images:
        if is_file(other / CONFIG):
            right = f"fedinit predict {pasted(other)} {pasted(run)}"
            raise InputError(f"{run}: not the folder of a run, and {other} is one; the run comes first: {right}")


def main(name: str, words: Sequence[str], console: Console) -> int:
    """Predict, and print; the exit code. Raises InputError, one line."""
    options = parser(name).parse_args(words)
    if options.top < 1:
        raise InputError(f"--top {options.top}: expected 1 or more")
    grey = options.grey_range
    if grey and not grey[0] < grey[1]:
        raise InputError(f"--grey-range {grey[0]:g} {grey[1]:g}: expected two numbers of which the second is larger")
    refuse_swapped(options.run, options.images)
    run = load_run(options)
    from fedinit.inference import pictures, predicting

    whose(run, options.client)
    predictions = predicting.predict(run, options.images, options.client, tuple(grey) if grey else None)
    if options.csv:
        unread = predicting.write_csv(sys.stdout, predictions, run.class_names)
    else:
        every = list(predictions)
        unread = [p for p in every if p.why]
        if read := [p for p in every if not p.why]:
            wide = Console(file=console.file, width=None if console.is_terminal else WIDTH, quiet=console.quiet)
            wide.print(predicting.table(read, run.class_names, options.top))
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    for prediction in unread:
        why = f"cannot be read as a picture ({prediction.why}); {pictures.wanted(prediction.path, prediction.why)}"
        tell(errors, f"error: {prediction.path}: {why}")
    return 2 if unread else 0
