"""What a person is told while images are read."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fedinit.stopping import standing
from fedinit.telling import tell

if TYPE_CHECKING:
    from rich.console import Console

_SECONDS = 60  # between two lines where there is no terminal


class Reporter:
    """Lines about the data, and a progress bar, on a console or nowhere."""

    def __init__(self, console: Console | None) -> None:
        """console: where they are printed; None: nowhere."""
        self.console = console

    def line(self, text: str) -> None:
        """Print a line about the data."""
        if self.console is not None:
            tell(self.console, f"data: {text}")

    @contextlib.contextmanager
    def progress(self, total: int, doing: str = "decoding") -> Iterator[Callable[[int], None]]:
        """A function that is told how many more images are done, of `total`: it moves a bar on a terminal, and prints a
        line a minute elsewhere. doing: what is done with them."""
        if self.console is None or not self.console.is_terminal:
            yield self._lines(total, doing)
            return
        from rich import progress  # a terminal's run has it loaded

        columns = progress.TextColumn(f"data: {doing}"), progress.BarColumn(), progress.MofNCompleteColumn()
        times = progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn()
        bar = progress.Progress(*columns, *times, console=self.console, transient=True)
        with standing(bar):
            task = bar.add_task("", total=total)
            yield lambda more: bar.update(task, advance=more)

    def _lines(self, total: int, doing: str) -> Callable[[int], None]:
        done, told = 0, time.monotonic()

        def advance(more: int) -> None:
            nonlocal done, told
            done += more
            if time.monotonic() - told > _SECONDS:
                told = time.monotonic()
                self.line(f"{doing}: {done:,} of {total:,} images")

        return advance


def counted(count: int, noun: str) -> str:
    """How many there are: 1 round, 15 rounds, 2 classes."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("s") else "s")


def readable(size: float) -> str:
    """A number of bytes in kB, MB or GB."""
    unit, name = next(
        unit for unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= unit[0] / 10 or unit[0] == 1e3
    )
    return f"{size / unit:.1f} {name}"
