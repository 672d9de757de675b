"""Matrices as colours: layers by rounds, clients by classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from fedinit.report.figures.frame import LETTER, Ticks, beyond, frame, numbered
from fedinit.report.figures.svg import SMALL_TEXT, draw, short
from fedinit.report.markup import Markup

NAMED = 40  # rows or columns; of more, some are named
WIDTH = 470.0
TOP = 8  # pixels above
SCALE = 26.5  # pixels from the matrix to the numbers of its scale


def heat(
    title: str,
    alt: str,
    values: np.ndarray,
    rows: Sequence[object],
    columns: Sequence[object],
    what: tuple[str, str],
    width: float = WIDTH,
    span: float | None = 0.0,
) -> Markup:
    """A matrix (rows, columns) as colours from low, dark, to high, light; NaN is left out.

    what: (what the columns are, what the colours are). width: in the page's pixels.
    span: the least that the ends of the colours are apart, so that what is no difference has none; None: they begin at
    zero, as those of counts do.
    """
    named = [short(name) for name in columns]
    turned = sum(map(len, named[:: _step(len(named), "x")])) * LETTER > width - 150
    left = 14 + LETTER * max((len(short(row)) for row in rows), default=0)
    bottom = 42 + (0.7 * LETTER * max(map(len, named)) if turned else 0)
    height = bottom + 8 + max(3, min(len(rows), 60)) * (15 if len(rows) <= 30 else 11)

    low, high = _ends(values, span)
    scale = numbered(low, high, most=4)
    named_at = SCALE + beyond(scale, 39.5)
    right = named_at + 12

    def plot(axes: Axes) -> None:
        axes.imshow(values, aspect="auto", interpolation="none", vmin=low, vmax=high)
        inside = (width - left - right, height - bottom - TOP)
        frame(
            axes, inside, _named(columns, "x", turned), _named(rows, "y"), ("" if turned else what[0], ""), grid=False
        )
        bar = axes.inset_axes((1 + 10 / inside[0], 0.0, 11 / inside[0], 1.0))
        bar.imshow(np.linspace(1, 0, 64)[:, None], aspect="auto", interpolation="none", extent=(0, 1, low, high))
        bar.set_axis_off()
        for place, text in zip(scale.places, scale.texts, strict=True):
            bar.text(1.5, place, text, va="center_baseline", fontsize=SMALL_TEXT)
        axes.text(
            1 + named_at / inside[0], 0.5, what[1], transform=axes.transAxes, rotation=90, ha="center", va="center"
        )

    return draw(title, alt, (width, height), plot, (left, bottom, right, TOP))


def _ends(values: np.ndarray, span: float | None) -> tuple[float, float]:
    """(low, high) of the colours, as `heat` has them."""
    seen = values[np.isfinite(values)]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    low = min(low, 0.0) if span is None else low
    low, high = (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))
    middle, half = (low + high) / 2, (span or 0.0) / 2
    return min(low, middle - half), max(high, middle + half)


def _named(names: Sequence[object], side: str, turned: bool = False) -> Ticks:
    places = range(0, len(names), _step(len(names), side))
    return Ticks(places, [short(names[i]) for i in places], turned)


def _step(count: int, side: str) -> int:
    """Every how many-th row or column is named."""
    return max(1, -(-count // (NAMED if side == "y" else 16)))
