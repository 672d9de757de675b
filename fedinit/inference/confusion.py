"""The confusion matrix, for a terminal and for a file: rows are what images are, columns what was said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from torch import Tensor

from fedinit.said import csv_row, no_formula
from fedinit.telling import cell

MOST = 20  # classes, above which a terminal gets the commonest mistakes in place of the matrix


def matrix(confusion: Tensor, names: Sequence[str]) -> Table:
    """Counts, with the share of each row, and of each column, that is right; columns go by number."""
    title = "what images are (rows), and what was said of them; right, % of the row and of the column"
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), title_justify="left")
    shown.add_column("is")
    for number in range(len(names)):
        shown.add_column(str(number), justify="right")
    shown.add_column("%", justify="right")
    for number, (name, row) in enumerate(zip(names, confusion.tolist(), strict=True)):
        cells = [f"[bold]{n}[/bold]" if number == i else str(n) if n else "·" for i, n in enumerate(row)]
        shown.add_row(cell(f"{number} {name}"), *cells, _share(row[number], sum(row)))
    shown.add_section()
    columns = confusion.sum(0).tolist()
    right = confusion.diagonal().tolist()
    shown.add_row("%", *map(_share, right, columns), _share(sum(right), sum(columns)))
    return shown


def mistakes(confusion: Tensor, names: Sequence[str], most: int = 10) -> Table:
    """The commonest mistakes, for more classes than a terminal has room for."""
    shown = Table(title="the commonest mistakes")
    shown.add_column("is")
    shown.add_column("was called")
    for column in ("images", "% of the class"):
        shown.add_column(column, justify="right")
    wrong = confusion - confusion.diag().diag()
    for place in wrong.flatten().argsort(descending=True, stable=True)[:most]:
        row, column = divmod(int(place), len(names))
        if count := int(wrong[row, column]):
            share = _share(count, int(confusion[row].sum()))
            shown.add_row(cell(names[row]), cell(names[column]), str(count), share)
    return shown


def table(confusion: Tensor, names: Sequence[str]) -> Table:
    """Whichever of the two a terminal has room for."""
    return matrix(confusion, names) if len(names) <= MOST else mistakes(confusion, names)


def csv_text(confusion: Tensor, names: Sequence[str], shown: Callable[[str], str] = str) -> str:
    """A row a class, a column for each that was said. shown: what a name becomes; for a terminal `printable`."""
    told = [no_formula(shown(name)) for name in names]
    rows = [[name, *row] for name, row in zip(told, confusion.tolist(), strict=True)]
    return "".join(map(csv_row, [["is", *told], *rows]))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else "–"
