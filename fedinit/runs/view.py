"""A run as it goes on, for a terminal: rounds, cohort, loss, the score by domain with sparklines, bytes, time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedinit.data.reporter import counted, readable
from fedinit.said import printable
from fedinit.scores import SCORES, average_among
from fedinit.telling import cell

TICKS = "▁▂▃▄▅▆▇█"
KEPT = 24  # values of a sparkline
RECENT = 5  # rounds whose mean time foretells the others'
ROWS = 12  # domains with a row each, above which those between the worst and the best are left out
NAMED = 12  # clients of a cohort that are named


@dataclass(frozen=True)
class Round:
    """What is shown of a round.

    number: from 1; 0 for what comes before training.
    seconds: wall-clock time.
    clients: those whose updates were aggregated, by number; empty where they are not known.
    count: how many.
    loss: None where nobody trained.
    scores: {domain: figure}; empty in a round without evaluation.
    bytes_up, bytes_down: of this round.
    """

    number: int
    seconds: float
    clients: Sequence[int]
    count: int
    loss: float | None
    scores: Mapping[str, float]
    bytes_up: int
    bytes_down: int

    @property
    def mean(self) -> float:
        """Over the domains. Raises ZeroDivisionError in a round without evaluation."""
        return sum(self.scores.values()) / len(self.scores)


@dataclass
class View:
    """What is known of a run, drawn anew whenever it is printed.

    title: what is run.
    score: a key of SCORES.
    rounds: how many there will be; 0: not known yet.
    total: how many clients there are; 0: not known.
    doing: what it is at now, in words.
    done: the rounds so far.
    began: when the round that is going on began, by `clock`.
    going: whether a process is at it.
    """

    title: str
    score: str = "accuracy"
    rounds: int = 0
    total: int = 0
    doing: str = ""
    done: list[Round] = field(default_factory=list)
    began: float = 0.0
    clock: Callable[[], float] = time.monotonic
    going: bool = True

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def reached(self) -> int:
        """The last round that is done."""
        return self.done[-1].number if self.done else 0

    @property
    def left(self) -> float | None:
        """Seconds until the end, by the rounds of late; None before the first, and without rounds left to tell of."""
        times = [r.seconds for r in self.done if r.number and r.count][-RECENT:]
        if not times or not self.rounds:
            return None
        going_on = min(self.clock() - self.began, sum(times) / len(times))
        return max((self.rounds - self.reached) * sum(times) / len(times) - going_on, 0.0)

    def line(self, round: Round) -> str:
        """A round on a line of its own, where there is no terminal."""
        clients = counted(round.count, "client")
        if not round.number:
            return f"round 0: statistics of {clients}, {readable(round.bytes_up)} up, {round.seconds:.1f} s"
        loss = "" if round.loss is None else f", loss {figure(round.loss)}"
        name, _, unit = SCORES[self.score].title.partition(", ")
        scored = f", {name} {SCORES[self.score].show(round.mean)} {unit}".rstrip() if round.scores else ""
        return f"round {round.number}/{self.rounds}, {clients}{loss}{scored}, {round.seconds:.1f} s"

    def add(self, round: Round) -> None:
        """Take a round that is done."""
        self.done.append(round)
        self.began, self.doing = self.clock(), ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = [self._head(options.ascii_only), Text(self._facts(), style="dim")]
        scored = [r for r in self.done if r.scores]
        if scored:
            parts.append(self._scores(scored, options.ascii_only))
        yield Group(*parts)

    def _head(self, ascii_only: bool) -> Table:
        row = Table.grid(padding=(0, 1))
        times = "" if self.left is None else f"{clock(self.left)} left"
        row.add_row(
            Text(printable(self.title), style="bold"),
            ProgressBar(total=max(self.rounds, 1), completed=self.reached, width=24),
            f"{self.reached}/{self.rounds}" if self.rounds else "",
            times if self.going and self.reached < self.rounds else "",
        )
        return row

    def _facts(self) -> str:
        """What it is at, and the last round's cohort, loss and bytes, on one line."""
        trained = [r for r in self.done if r.number and r.count]
        facts = [self.doing] if self.doing and self.going else []
        if self.done and self.going and self.reached < self.rounds:
            facts.append(f"round {self.reached + 1} for {clock(self.clock() - self.began)}")
        if self.done:
            facts.append(f"sent {readable(self._sum('bytes_up'))} up, {readable(self._sum('bytes_down'))} down")
        if trained:
            last = trained[-1]
            facts.append(cohort(last, self.total))
            if last.loss is not None:
                facts.append(f"loss {figure(last.loss)}")
            facts.append(f"took {last.seconds:.1f} s")
        elif self.total:
            facts.append(counted(self.total, "client"))
        return printable("; ".join(facts))

    def _sum(self, name: str) -> int:
        return sum(getattr(r, name) for r in self.done)

    def _scores(self, scored: Sequence[Round], ascii_only: bool) -> Table:
        """A row a domain: its last figure, what that changed by since the evaluation before that scored it, and a
        sparkline; at the end the average, beside those over the same domains alone."""
        score, last = SCORES[self.score], scored[-1]
        table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left", show_header=True, header_style="dim")
        table.add_column(f"after round {last.number}")
        table.add_column(score.title, justify="right")
        table.add_column("since", justify="right")
        table.add_column("")
        histories = {name: [r.scores[name] for r in scored if name in r.scores] for name in last.scores}
        for name in chosen(last.scores):
            if name is None:
                table.add_row(f"… {len(last.scores) - ROWS} more", "", "", "", style="dim")
            else:
                table.add_row(*self._row(name, histories[name], ascii_only))
        alike = [r.mean for r in scored if r.scores.keys() == last.scores.keys()]  # others are of other domains
        table.add_row(*self._row(average_among(last.scores), alike, ascii_only), style="bold")
        return table

    def _row(self, name: str, values: Sequence[float], ascii_only: bool) -> tuple[Text, str, str, str]:
        show = SCORES[self.score].show
        change = "" if len(values) < 2 else f"{values[-1] - values[-2]:+.1f}" if self.score == "accuracy" else ""
        return cell(name), show(values[-1]), change, "" if ascii_only else sparkline(values)


def chosen(scores: Mapping[str, float]) -> list[str | None]:
    """The domains that have a row, in their order; of more than ROWS the lowest and the highest, and None between."""
    if len(scores) <= ROWS:
        return list(scores)
    ranked = sorted(scores, key=lambda name: scores[name])
    return [*ranked[: ROWS // 2], None, *ranked[-(ROWS - ROWS // 2) :]]


def sparkline(values: Sequence[float]) -> str:
    """The last KEPT values as bars, between the lowest and the highest of them; a gap where one is not finite."""
    shown = values[-KEPT:]
    finite = [v for v in shown if math.isfinite(v)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    step = (high - low) / (len(TICKS) - 1) or 1.0
    return "".join(TICKS[round((v - low) / step)] if math.isfinite(v) else " " for v in shown)


def cohort(round: Round, total: int) -> str:
    """Who trained: how many of how many, by number where they are few and not all."""
    who = f"{round.count} of {counted(total, 'client')}" if total else counted(round.count, "client")
    if round.clients and len(round.clients) <= NAMED and len(round.clients) != total:
        return f"{who} ({', '.join(map(str, round.clients))})"
    return who


def figure(loss: float) -> str:
    """A loss, to three decimals, or in powers of ten where that is nothing."""
    return f"{loss:.3f}" if loss >= 0.001 else f"{loss:.1e}"


def clock(seconds: float) -> str:
    """A time as 0:09, 12:34 or 1:02:03."""
    hours, rest = divmod(int(seconds + 0.5), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
