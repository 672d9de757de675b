"""Lines and cells for a terminal: a name in them is shown, and nothing in it obeyed, by the terminal or by rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedinit.said import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def tell(console: Console, text: object, style: str | None = None) -> None:
    """Print a text as one line, however long: what reads a pipe reads by lines. Where there is no memory for colours it
    has none."""
    try:
        console.print(one_line(text), style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)
    except MemoryError:
        print(one_line(text), file=console.file)


def announce(console: Console, text: str) -> None:
    """A line of a run's own; a warning is yellow."""
    tell(console, text, "yellow" if text.startswith("warning") else None)


def cell(name: object) -> Text:
    """A name as it stands in a table, or at its head."""
    from rich.text import Text

    return Text(printable(name))
