"""The table of results where it is printed. A figure is whole, or its column is left out and that is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedinit.report.runs.results import Results
from fedinit.scores import SCORES
from fedinit.telling import cell, tell

WIDTH = 1000  # columns where nobody sees a terminal
METHOD, NAME = 10, 12  # characters that a method's name, and a domain's or the seeds, have at least before they fold
RULES = 3  # characters of a column beside its text


def print_table(console: Console, found: Results) -> None:
    """Print it with the best of each column in bold. How the averages differ is said in sentences: a terminal is
    narrow. On one, names are folded, and then domains are left out; elsewhere nothing is."""
    named = ["method", *([] if found.even else ["seeds"])]
    heads = [cell(name) for name in (*named, *map(found.title, found.columns))]
    lines = [_line(found, i) for i in range(len(found.rows))]
    texts = [*zip(heads, *lines, strict=True)]
    whole = [max(cell_len(text.plain) for text in column) for column in texts]
    screen = console.file.isatty()
    widths = _fitted(texts, whole, len(named), console.width) if screen else dict(enumerate(whole))
    table = Table(title=f"{found.judged_on} {SCORES[found.score].title}")
    for i, width in widths.items():
        table.add_column(heads[i], justify="left" if i < len(named) else "right", width=width, overflow="fold")
    for row, line in zip(found.rows, lines, strict=True):
        line[0] = _folding(line[0], widths[0])
        table.add_row(*(line[i] for i in widths), style="dim" if row.reference else None)
    room = max(console.width if screen else WIDTH, _taken(widths.values()))
    Console(file=console.file, width=room, quiet=console.quiet).print(table)
    if left := len(heads) - len(widths):
        columns = "1 column is" if left == 1 else f"{left} columns are"
        tell(console, f"{columns} left out: this terminal is too narrow. A wider one shows all, and so does --csv -.")


def _line(found: Results, i: int) -> list[Text]:
    """The cells of a row."""
    row = found.rows[i]
    seeds = [] if found.even else [Text(", ".join(map(str, row.seeds)))]
    figures = [
        Text(found.shown(row.figures[column]), "bold" if found.is_best(row, column) else "") for column in found.columns
    ]
    return [cell(row.label), *seeds, *figures]


def _folding(name: Text, width: int) -> Text:
    """The name with words that are wider broken behind their key, and not where the column ends."""
    words = name.plain.split(" ")
    return Text(" ".join(word.replace("=", "=\n", 1) if cell_len(word) > width else word for word in words))


def _fitted(texts: Sequence[Sequence[Text]], whole: Sequence[int], named: int, room: int) -> dict[int, int]:
    """{column: its width} of those that there is room for: the method (and seeds), the average, and as many domains as
    fit. texts: the columns with their heads. whole: their widths where nothing folds. named: how many have no figures.
    """
    least = dict(enumerate([min(whole[0], METHOD), *whole[1:]]))
    if _taken(least.values()) > room:
        for i in range(1, len(texts)):
            figures = max((cell_len(text.plain) for text in texts[i][1:]), default=0) if i >= named else 0
            least[i] = max(figures, min(whole[i], NAME))
    last = len(texts) - 1
    kept = {*range(named), last}
    for i in range(named, last):
        if _taken(least[j] for j in {*kept, i}) <= room:
            kept.add(i)
    widths = {i: least[i] for i in sorted(kept)}
    widths[0] += max(0, min(whole[0] - widths[0], room - _taken(widths.values())))
    return widths


def _taken(widths: Iterable[int]) -> int:
    """The width of a table of columns of these."""
    return 1 + sum(width + RULES for width in widths)
