"""Time by phase, bytes up and down, memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedinit.report.figures.curves import Axis, Series, areas, curves
from fedinit.report.markup import Markup, behind, joined, missing, number, table
from fedinit.report.panels.panel import SMALL, Panel, figure, grid, legend, thinned
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import RecordedRun

PHASES = ("clients", "server", "evaluation")
MOST_METHODS = 6


def panel(methods: Sequence[Method]) -> Panel:
    lead = "Seconds of a round by what they went to, bytes of its messages as serialised, memory of the process."
    parts = [_totals(methods)] if sum(len(method.runs) for method in methods) > 1 else []
    parts += [_of(method, len(methods) > 1) for method in methods[:MOST_METHODS]]
    return Panel("cost", "Time, bytes, memory", lead, joined(parts))


def _of(method: Method, several: bool) -> Markup:
    run, of = method.first, f" ({method.label}, seed {method.first.seed})" if several else ""
    return grid(_time(run, of), _bytes(run, of), _memory(run, of), kind="three")


def _time(run: RecordedRun, of: str) -> Markup:
    rows, title = run.timing, f"Seconds by phase{of}"
    if not len(rows):
        return missing(f"{title}: not recorded in this run.", "`report=full` does, in `record/timing.csv`.")
    rounds = rows.numbers("round")
    series = [Series(phase, rounds, rows.numbers(phase), kind) for kind, phase in enumerate(PHASES)]
    sums = [float(np.nansum(line.y)) for line in series]
    alt = f"{title}: in all {', '.join(f'{p} {s:.1f} s' for p, s in zip(PHASES, sums, strict=True))}."
    drawn = areas(title, alt, series, Axis("round", "seconds", from_zero=True, size=SMALL))
    return figure(title, legend(PHASES, lines=False), drawn, _numbers(title, series))


def _bytes(run: RecordedRun, of: str) -> Markup:
    rounds, title = run.metrics.numbers("round"), f"MB by round{of}"
    if not len(rounds):
        return missing(f"{title}: no round is done yet.", "")
    names = ("up", "down")
    series = [Series(name, rounds, run.metrics.numbers(f"bytes_{name}") / 1e6, i) for i, name in enumerate(names)]
    sums = [float(np.nansum(line.y)) for line in series]
    alt = f"{title}: in all {sums[0]:.1f} MB from clients to the server, {sums[1]:.1f} MB to them."
    drawn = curves(title, alt, series, Axis("round", "MB", from_zero=True, size=SMALL))
    return figure(title, legend(names), drawn, _numbers(title, series))


def _memory(run: RecordedRun, of: str) -> Markup:
    rows, title = run.timing, f"Memory after each round{of}"
    if not np.isfinite(rows.numbers("memory")).any():
        return missing(f"{title}: not recorded in this run.", "`report=full` does, in `record/timing.csv`.")
    columns = {"process": "memory", "tensors on the accelerator, at most": "accelerator_memory"}
    found = {label: rows.numbers(name) / 1e6 for label, name in columns.items()}
    shown = [(label, values) for label, values in found.items() if np.isfinite(values).any()]
    series = [Series(label, rows.numbers("round"), values, i) for i, (label, values) in enumerate(shown)]
    alt = f"{title}: at most {', '.join(f'{line.label} {np.nanmax(line.y):,.0f} MB' for line in series)}."
    drawn = curves(title, alt, series, Axis("round", "MB", from_zero=True, size=SMALL))
    return figure(title, legend([line.label for line in series]), drawn, _numbers(title, series))


def _numbers(title: str, series: Sequence[Series]) -> Markup:
    at = {int(r): i for i, r in enumerate(series[0].x) if np.isfinite(r)}
    rows = [[r, *[number(line.y[at[r]], 4) for line in series]] for r in thinned(sorted(at))]
    return behind("numbers", table(["round", *[line.label for line in series]], rows, caption=title))


def _totals(methods: Sequence[Method]) -> Markup:
    rows = []
    for method in methods:
        for run in method.runs:
            seconds, up, down = (np.nansum(run.metrics.numbers(n)) for n in ("seconds", "bytes_up", "bytes_down"))
            trained = (run.summary or {}).get("trainable_parameters")
            figures = [number(float(v), 4) for v in (seconds, up / 1e6, down / 1e6)]
            rows.append([method.label, run.seed, run.reached, *figures, trained if isinstance(trained, int) else ""])
    headers = ["method", "seed", "rounds", "seconds", "MB up", "MB down", "trained parameters"]
    return table(headers, rows, caption="Totals of every run")
