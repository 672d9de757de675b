"""HTML as values: a text is escaped the moment it becomes markup, so nothing that a run's files say is ever code."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedinit.said import printable

VOID = ("img", "meta", "br", "col", "line", "path")


class Markup(str):
    """A string that is HTML already."""


class Cut(str):
    """A name that was cut to fit. whole: all of it, which a page shows to who points at it."""

    whole: str

    def __new__(cls, shown: str, whole: str) -> Cut:
        made = super().__new__(cls, shown)
        made.whole = whole
        return made


def whole(name: str) -> str:
    """The name before it was cut, if it was."""
    return name.whole if isinstance(name, Cut) else name


@dataclass(frozen=True)
class Cell:
    """A table's cell. value: what is shown. sort: the number it is sorted by; None: as a text. kind: CSS classes."""

    value: object
    sort: float | None = None
    kind: str = ""


def text(value: object) -> Markup:
    """The value, escaped; what is Markup already stays as it is. A `Cut` name has the whole of it as its title."""
    if isinstance(value, Cut):
        return tag("span", str(value), title=value.whole)
    return value if isinstance(value, Markup) else Markup(html.escape(printable(value)))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element: ``tag("p", "a < b", class_="note")``. An attribute of None or False is left out, a trailing or inner
    underscore of its name is none or a hyphen; a child is `text`."""
    given = ""
    for key, value in attributes.items():
        if value is not None and value is not False:
            given += f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(str(value))}"')
    inside = "".join(text(child) for child in children if child is not None)
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{inside}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """The parts one after another."""
    return Markup("\n".join(text(part) for part in parts))


def table(headers: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str, kind: str = "") -> Markup:
    """A table that a reader may sort by any column. A plain cell is a text, a number is set to the right.

    caption: what it shows, for those who hear it.
    """
    lines = [[cell if isinstance(cell, Cell) else _cell(cell) for cell in row] for row in rows]
    body = [tag("tr", *[_element(cell, first=i == 0) for i, cell in enumerate(line)]) for line in lines]
    numbers = [any("number" in cell.kind for cell in column) for column in zip(*lines, strict=True)]
    kinds = ["number" if number else None for number in numbers] or [None] * len(headers)
    head = tag("tr", *[tag("th", t, scope="col", class_=kind) for t, kind in zip(headers, kinds, strict=True)])
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", joined(body)), class_="sortable")
    return tag("div", whole, class_=f"scroll {kind}".strip(), tabindex="0", role="region", aria_label=caption)


def behind(summary: str, *children: object) -> Markup:
    """Something that opens: the numbers behind a figure."""
    return tag("details", tag("summary", summary), *children)


def missing(what: str, how: str) -> Markup:
    """One line for what a run did not record. how: what to set so that the next one does; a piece in `backquotes` is
    set as code."""
    pieces = how.split("`")
    how_to = [tag("code", piece) if i % 2 else text(piece) for i, piece in enumerate(pieces)]
    return tag("p", what, " ", *how_to, class_="missing")


def number(value: float | None, digits: int = 3) -> Cell:
    """A cell of a figure to so many significant digits; empty for None and what is no number."""
    if value is None or value != value:
        return Cell("", None, "number")
    return Cell(f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}", value, "number")


def _cell(value: object) -> Cell:
    if isinstance(value, float):
        return number(value)
    return Cell(f"{value:,}", value, "number") if isinstance(value, int) else Cell(value)


def _element(cell: Cell, first: bool) -> Markup:
    sort = None if cell.sort is None else f"{cell.sort:.12g}"
    if first:
        return tag("th", cell.value, scope="row", class_=cell.kind or None, data_sort=sort)
    return tag("td", cell.value, class_=cell.kind or None, data_sort=sort)
