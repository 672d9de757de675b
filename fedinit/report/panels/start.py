"""The diagnostics of a start (docs/diagnostics.md), of runs that have them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedinit.report.figures.curves import Axis, Series, curves
from fedinit.report.markup import behind, joined, missing, number, table
from fedinit.report.panels.panel import SMALL, Panel, figure, grid, legend, thinned
from fedinit.report.runs.methods import Method

SHOWN = {
    "ntk_alignment": "Kernel alignment with the labels",
    "ntk_drift": "Drift of the kernel from the start",
    "representation_change": "Change of the features (1 − CKA)",
    "weight_change": "Size of the update, of the frozen weights'",
}


def panel(methods: Sequence[Method]) -> Panel:
    title, lead = (
        "Diagnostics of the start",
        "On a probe set of training images; docs/diagnostics.md says what each is.",
    )
    measured = [method for method in methods if len(method.first.diagnostics)]
    if not measured:
        how = "`diagnostics=init` measures kernels, regimes, imbalance and variances."
        return Panel("start", title, lead, missing("Not recorded in this run.", how))
    figures = []
    for name, heading in SHOWN.items():
        tables = [m.first.diagnostics for m in measured]
        series = [
            Series(m.label, t.numbers("round"), t.numbers(name), i)
            for i, (m, t) in enumerate(zip(measured, tables, strict=True))
        ]
        if any(np.isfinite(line.y).any() for line in series):
            last = "; ".join(f"{line.label} {line.y[-1]:.3g} in round {line.x[-1]:.0f}" for line in series)
            drawn = curves(heading, f"{heading}: {last}.", series, Axis("round", name, size=SMALL))
            figures.append(figure(heading, drawn))
    parts = [legend([m.label for m in measured]), grid(*figures, kind="small")]
    for method in measured:
        rows = method.first.diagnostics
        columns = [rows.numbers(name) for name in rows.columns]
        at = {int(r): i for i, r in enumerate(rows.numbers("round")) if np.isfinite(r)}
        body = [[r, *[number(values[at[r]]) for values in columns[1:]]] for r in thinned(sorted(at))]
        caption = f"diagnostics.csv of {method.label}, seed {method.first.seed}"
        parts.append(behind(caption, table(rows.columns, body, caption=caption)))
    return Panel("start", title, lead, joined(parts))
