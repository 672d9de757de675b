"""Lines over rounds, bytes or numbers, with bands over seeds, and areas that add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from fedinit.report.figures.frame import frame, numbered
from fedinit.report.figures.svg import MARGINS, colour_of, dash_of, draw, marker_of
from fedinit.report.markup import Markup
from fedinit.scores import Accuracy

SIZE = (420.0, 250.0)
MARKED = 20  # points; of a line with more some have a marker, at places of its own
MARKS = 6  # of such a line
# (least, most, step) of a lower one, which is larger, so that it is seen behind an upper.
WIDTHS, SIZES = (1.8, 3.2, 0.7), (3.6, 7.2, 1.8)


@dataclass(frozen=True)
class Series:
    """A line. x, y: (n,) with NaN where there is no point. low, high: (n,), the band; None: there is none.
    kind: the number of its colour, dashes and marker."""

    label: str
    x: np.ndarray
    y: np.ndarray
    kind: int
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Axis:
    """What the two axes are. whole: whether x has whole numbers. log: whether y is logarithmic. size: of the figure in
    the page's pixels."""

    x: str
    y: str
    whole: bool = True
    log: bool = False
    from_zero: bool = False
    size: tuple[float, float] = SIZE


def curves(title: str, alt: str, series: Sequence[Series], axis: Axis) -> Markup:
    """The lines over each other, in their order."""

    def plot(axes: Axes) -> None:
        for number, line in enumerate(series):
            seen = np.isfinite(line.y) & np.isfinite(line.x)
            x, y, colour = line.x[seen], line.y[seen], colour_of(line.kind)
            if line.low is not None and line.high is not None:
                axes.fill_between(x, line.low[seen], line.high[seen], color=colour, alpha=0.18, linewidth=0)
            apart = 1 if len(x) <= MARKED else len(x) // MARKS
            every = (number * apart // len(series), apart)
            above = len(series) - 1 - number
            width, size = (min(least + step * above, most) for least, most, step in (WIDTHS, SIZES))
            look = {"color": colour, "linewidth": width, "marker": marker_of(line.kind), "markersize": size}
            look["markevery"] = every
            axes.plot(x, y, dashes=dash_of(line.kind) or (None, None), **look)
        _label(axes, axis)

    return draw(title, alt, axis.size, plot)


def areas(title: str, alt: str, series: Sequence[Series], axis: Axis) -> Markup:
    """The series on top of each other, the first at the bottom, all over the x of the first."""

    def plot(axes: Axes) -> None:
        heights = [np.nan_to_num(line.y) for line in series]
        x = series[0].x
        if len(x) > MARKED:
            axes.stackplot(x, *heights, colors=[colour_of(s.kind) for s in series], linewidth=0)
        else:
            base = np.zeros(len(x))
            for line, height in zip(series, heights, strict=True):
                axes.bar(x, height, bottom=base, width=0.7, color=colour_of(line.kind), linewidth=0)
                base = base + height
        _label(axes, axis)

    return draw(title, alt, axis.size, plot)


def _label(axes: Axes, axis: Axis) -> None:
    if axis.log:
        axes.set_yscale("log")
    elif axis.from_zero:
        axes.set_ylim(0, 1.06 * axes.dataLim.y1 or 1)
    size = (axis.size[0] - MARGINS[0] - MARGINS[2], axis.size[1] - MARGINS[1] - MARGINS[3])
    if axis.whole and axes.dataLim.x0 == axes.dataLim.x1:  # one round: matplotlib makes a twentieth of it wide
        axes.set_xlim(axes.dataLim.x0 - 0.6, axes.dataLim.x1 + 0.6)
    x = numbered(*axes.get_xlim(), most=8, whole=axis.whole)
    low, high = axes.get_ylim()
    high = min(high, 100.0) if axis.y == Accuracy.title else high  # above are a line's and a marker's halves alone
    y = numbered(low, high, most=6, log=axis.log)
    frame(axes, size, x, y, (axis.x, axis.y))
