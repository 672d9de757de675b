"""Matrices as colours: layers by rounds, clients by classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from fedinit.report.figures.frame import Ticks, frame, numbered
from fedinit.report.figures.svg import SMALL_TEXT, draw, short
from fedinit.report.markup import Markup

NAMED = 40  # rows or columns; of more, some are named
WIDTH = 470.0
TOP, RIGHT = 8, 78  # pixels above, and for the scale of the colours


def heat(
    title: str,
    alt: str,
    values: np.ndarray,
    rows: Sequence[object],
    columns: Sequence[object],
    what: tuple[str, str],
    width: float = WIDTH,
    from_zero: bool = False,
) -> Markup:
    """A matrix (rows, columns) as colours from low, dark, to high, light; NaN is left out.

    what: (what the columns are, what the colours are). width: in the page's pixels.
    from_zero: whether the colours begin at zero, as those of counts do.
    """
    letter, named = 5.9, [short(name) for name in columns]
    turned = sum(map(len, named[:: _step(len(named), "x")])) * letter > width - 150
    left = 14 + letter * max((len(short(row)) for row in rows), default=0)
    bottom = 42 + (0.7 * letter * max(map(len, named)) if turned else 0)
    height = bottom + 8 + max(3, min(len(rows), 60)) * (15 if len(rows) <= 30 else 11)

    seen = values[np.isfinite(values)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    low = min(low, 0.0) if from_zero else low
    low, high = (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))

    def plot(axes: Axes) -> None:
        axes.imshow(values, aspect="auto", interpolation="none", vmin=low, vmax=high)
        inside = (width - left - RIGHT, height - bottom - TOP)
        frame(
            axes, inside, _named(columns, "x", turned), _named(rows, "y"), ("" if turned else what[0], ""), grid=False
        )
        bar = axes.inset_axes((1 + 10 / inside[0], 0.0, 11 / inside[0], 1.0))
        bar.imshow(np.linspace(1, 0, 64)[:, None], aspect="auto", interpolation="none", extent=(0, 1, low, high))
        bar.set_axis_off()
        for place, text in zip(*_scale(low, high), strict=True):
            bar.text(1.5, place, text, va="center_baseline", fontsize=SMALL_TEXT)
        axes.text(1 + 66 / inside[0], 0.5, what[1], transform=axes.transAxes, rotation=90, ha="center", va="center")

    return draw(title, alt, (width, height), plot, (left, bottom, RIGHT, TOP))


def _scale(low: float, high: float) -> tuple[Sequence[float], Sequence[str]]:
    ticks = numbered(low, high, most=4)
    return ticks.places, ticks.texts


def _named(names: Sequence[object], side: str, turned: bool = False) -> Ticks:
    places = range(0, len(names), _step(len(names), side))
    return Ticks(places, [short(names[i]) for i in places], turned)


def _step(count: int, side: str) -> int:
    """Every how many-th row or column is named."""
    return max(1, -(-count // (NAMED if side == "y" else 16)))
