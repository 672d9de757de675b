"""What all sections are made of: a panel, a figure with its legend and numbers, a figure over rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedinit.report.figures.curves import Axis, Series, curves
from fedinit.report.figures.svg import DASHES, PALETTE
from fedinit.report.markup import Cell, Markup, behind, joined, number, table, tag
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import RecordedRun

SMALL = (330.0, 205.0)  # where three are side by side
# MARKERS, in a legend's line of 26 by 12.
SHAPES = (
    "M13 2.5a3.5 3.5 0 1 0 .01 0z",
    "M9.8 2.8h6.4v6.4h-6.4z",
    "M13 2l4 7.4h-8z",
    "M13 1.6l4.4 4.4-4.4 4.4-4.4-4.4z",
    "M13 10l-4-7.4h8z",
)
SHOWN_ROWS = 60  # of a table behind a figure; of more rounds, evenly spaced ones


@dataclass(frozen=True)
class Panel:
    """A section. name: of its anchor. title: of its heading. lead: a sentence under it. body: the rest."""

    name: str
    title: str
    lead: str
    body: Markup


@dataclass(frozen=True)
class Trace:
    """A figure over the rounds of a method, over its seeds.

    rounds, mean, megabytes: (n,), the last being all bytes sent until then, up and down, mean over seeds.
    std: (n,), NaN where fewer than two seeds have the round.
    """

    label: str
    rounds: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    megabytes: np.ndarray

    def series(self, kind: int, by_bytes: bool = False) -> Series:
        """Its line with the band of one standard deviation, where there are seeds."""
        band = np.nan_to_num(self.std)
        low, high = (self.mean - band, self.mean + band) if band.any() else (None, None)
        return Series(self.label, self.megabytes if by_bytes else self.rounds, self.mean, kind, low, high)


def trace(label: str, runs: Sequence[RecordedRun], figures: Callable[[RecordedRun], np.ndarray]) -> Trace:
    """`figures` of each run, a number a row of its metrics, as one trace, without rounds in which no run has one."""
    at: dict[int, list[float]] = {}
    sent: dict[int, list[float]] = {}
    for run in runs:
        rounds, values = run.metrics.numbers("round"), figures(run)
        total = np.nancumsum(run.metrics.numbers("bytes_up") + run.metrics.numbers("bytes_down")) / 1e6
        for round, value, megabytes in zip(rounds, values, total, strict=True):
            if np.isfinite([round, value]).all():
                at.setdefault(int(round), []).append(float(value))
                sent.setdefault(int(round), []).append(float(megabytes))
    rounds = sorted(at)
    return Trace(
        label,
        np.array(rounds, dtype=np.float64),
        np.array([np.mean(at[r]) for r in rounds]),
        np.array([np.std(at[r], ddof=1) if len(at[r]) > 1 else np.nan for r in rounds]),
        np.array([np.mean(sent[r]) for r in rounds]),
    )


def column(name: str) -> Callable[[RecordedRun], np.ndarray]:
    """What `trace` takes for a column of metrics.csv."""
    return lambda run: run.metrics.numbers(name)


def traces(methods: Sequence[Method], name: str) -> list[Trace]:
    """A column of metrics.csv of every method."""
    return [trace(method.label, method.runs, column(name)) for method in methods]


def over_rounds(title: str, lines: Sequence[Trace], y: str, by_bytes: bool = False, **axis: object) -> Markup:
    """A figure of these traces with its numbers behind it; one line where there are none."""
    if not any(len(line.rounds) for line in lines):
        return tag("p", f"{title}: no round has a figure.", class_="missing")
    x = "MB sent, up and down" if by_bytes else "round"
    shown = [line.series(kind, by_bytes) for kind, line in enumerate(lines)]
    drawn = curves(title, told(title, lines), shown, Axis(x, y, whole=not by_bytes, **axis))  # pyright: ignore
    return figure(title, drawn, behind("numbers", numbers(title, lines, by_bytes)))


def told(title: str, lines: Sequence[Trace]) -> str:
    """What the figure shows, for those who do not see it: where each line begins and ends."""
    ends = [
        f"{line.label} from {line.mean[0]:.4g} in round {line.rounds[0]:.0f} to {line.mean[-1]:.4g} in round "
        f"{line.rounds[-1]:.0f}"
        for line in lines[:12]
        if len(line.rounds)
    ]
    return f"{title}: {'; '.join(ends)}."


def numbers(title: str, lines: Sequence[Trace], by_bytes: bool = False) -> Markup:
    """The table behind a figure of traces: a row a round."""
    rounds = sorted({int(r) for line in lines for r in line.rounds})
    shown = thinned(rounds)
    rows: list[list[object]] = []
    for r in shown:
        cells: list[object] = [Cell(r, r, "number")]
        for line in lines:
            (here,) = np.nonzero(line.rounds == r)
            if by_bytes:
                cells.append(number(float(line.megabytes[here[0]]) if len(here) else None, 4))
            cells.append(_with_deviation(line, here[0]) if len(here) else Cell(""))
        rows.append(cells)
    each = [[f"{line.label}, MB", line.label] if by_bytes else [line.label] for line in lines]
    cut = "" if len(shown) == len(rounds) else f" ({len(shown)} of {len(rounds)} rounds; all are in metrics.csv)"
    return table(["round", *sum(each, [])], rows, caption=f"{title}{cut}")


def thinned(rounds: Sequence[int], most: int = SHOWN_ROWS) -> list[int]:
    """These rounds, or where they are more than so many, evenly spaced ones, the last among them."""
    if len(rounds) <= most:
        return list(rounds)
    return [rounds[i] for i in sorted({round(p) for p in np.linspace(0, len(rounds) - 1, most)})]


def figure(title: str, drawn: Markup, *below: object) -> Markup:
    """A drawn figure under its title."""
    return tag("figure", tag("figcaption", title), drawn, *below)


def grid(*figures: Markup, kind: str = "") -> Markup:
    """Figures side by side, as many as the window takes."""
    return tag("div", joined(figures), class_=f"grid {kind}".strip())


def legend(labels: Sequence[str], lines: bool = True) -> Markup:
    """Which colour, dashes and marker are whose, once for all figures of a section; nothing for one line alone.
    lines: whether they are, or areas, which differ by colour alone."""
    if len(labels) < 2:
        return Markup("")
    items = []
    for kind, label in enumerate(labels):
        colour = kind % len(PALETTE)
        dashes = f" d{kind % len(DASHES)}" if lines else ""
        drawn = f'<line x1="1" y1="6" x2="25" y2="6" class="s{colour}{dashes}"/>'
        if lines:
            drawn += f'<path d="{SHAPES[kind % len(SHAPES)]}" class="f{colour}"/>'
        items.append(tag("li", tag("svg", Markup(drawn), viewBox="0 0 26 12", aria_hidden="true"), label))
    return tag("ul", joined(items), class_="legend")


def _with_deviation(line: Trace, at: int) -> Cell:
    std = line.std[at]
    return Cell(f"{line.mean[at]:.4g}" + (f" ± {std:.2g}" if np.isfinite(std) else ""), line.mean[at], "number")
