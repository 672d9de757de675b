"""The frame of a figure: gridlines, the numbers and names beside them, what the axes are.

matplotlib's own ticks are objects of five parts each and take longer than all else of a page, so a frame is a few texts
and one collection of lines; its locators say where they go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import LogLocator, MaxNLocator

from fedinit.report.figures.svg import GRID, SMALL_TEXT

NEAR = 7.0  # pixels between an axis and its numbers
LETTER = 5.9  # pixels of a digit of SMALL_TEXT


@dataclass(frozen=True)
class Ticks:
    """Places on an axis, in its units, and what stands there. turned: whether the texts are, by 45 degrees."""

    places: Sequence[float]
    texts: Sequence[str]
    turned: bool = False


def numbered(low: float, high: float, most: int, whole: bool = False, log: bool = False) -> Ticks:
    """At most so many round numbers between two. whole: whole ones alone. log: of a logarithmic axis."""
    if log:
        places = [p for p in LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(low, high) if low <= p <= high]
        places = [p for p in places if len(places) <= most or math.isclose(math.log10(p) % 1, 0, abs_tol=1e-9)]
        return Ticks(places, [f"{p:g}" for p in places])
    found = np.asarray(MaxNLocator(nbins=most, integer=whole, min_n_ticks=1 if whole else 2).tick_values(low, high))
    places = [float(p) for p in found if low - 1e-9 * (high - low) <= p <= high + 1e-9 * (high - low)]
    places = [float(round(p)) for p in places if abs(p - round(p)) < 1e-6] if whole else places
    step = float(found[1] - found[0]) if len(found) > 1 else 1.0
    step = max(step, 1.0) if whole else step
    if max(map(abs, places), default=0) >= 1e6 or step < 1e-4:
        return Ticks(places, [f"{p:.3g}" for p in places])
    decimals = next((n for n in range(5) if abs(round(step, n) - step) < 1e-6 * step), 5)
    return Ticks(places, [f"{p + 0.0:,.{decimals}f}".replace("-", "−") for p in places])


def beyond(ticks: Ticks, least: float) -> float:
    """Pixels from where numbers begin to the middle of a turned text behind the longest of them; not under `least`."""
    return max(least, LETTER * max(map(len, ticks.texts), default=0) + 8)


def frame(axes: Axes, size: tuple[float, float], x: Ticks, y: Ticks, names: tuple[str, str], grid: bool = True) -> None:
    """Put the texts around the axes, and lines across at the places of y.

    size: (width, height) of the axes in the page's pixels. names: what x and y are.
    """
    axes.set_axis_off()
    (left, right), low = axes.get_xlim(), axes.get_ylim()[0]
    if grid:
        lines = [[(left, place), (right, place)] for place in [*y.places, low]]
        axes.add_collection(LineCollection(lines, colors=GRID, linewidths=0.8, zorder=0), autolim=False)
    below, beside = axes.get_xaxis_transform(), axes.get_yaxis_transform()
    away_x, away_y = NEAR / size[0], NEAR / size[1]
    for place, text in zip(x.places, x.texts, strict=True):
        turn: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if x.turned else {"ha": "center"}
        axes.text(place, -away_y, text, transform=below, va="top", fontsize=SMALL_TEXT, **turn)
    for place, text in zip(y.places, y.texts, strict=True):
        axes.text(-away_x, place, text, transform=beside, ha="right", va="center_baseline", fontsize=SMALL_TEXT)
    if names[0]:
        axes.text(0.5, -26 / size[1], names[0], transform=axes.transAxes, ha="center", va="top")
    if names[1]:
        style: Any = {"rotation": 90, "ha": "center", "va": "center"}
        axes.text(-(NEAR + beyond(y, 41.0)) / size[0], 0.5, names[1], transform=axes.transAxes, **style)
