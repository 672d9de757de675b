"""Aggregation bias, and what the method made of it, by round and layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedinit.report.figures.heat import heat
from fedinit.report.markup import Markup, behind, joined, missing, number, table, tag
from fedinit.report.panels.panel import SMALL, Panel, figure, grid, legend, over_rounds, thinned, trace
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import Table

MOST_METHODS = 6  # whose layers are shown
MOST_ROUNDS = 25  # in the table behind the layers
HOW = "`strategy.diagnostics=true` records it, for methods that show the server their products."
BIAS = "bias"


LEAST = 1e-6  # a bias below it is rounding, and nothing of it can be repaired


def panel(methods: Sequence[Method]) -> Panel:
    lead = (
        "How far the average of the factors is from the average of their products, ‖ΔW − B̄Ā‖/‖ΔW‖, and how much of "
        "that error's square the method took away."
    )
    bias = [trace(m.label, m.runs, lambda run: run.metrics.numbers(BIAS)) for m in methods]
    if not any(len(line.rounds) for line in bias):
        return Panel("aggregation", "Aggregation", lead, missing("Not recorded in this run.", HOW))
    repaired = [trace(m.label, m.runs, lambda run: _repaired(run.metrics)) for m in methods]
    could = [trace(m.label, m.runs, lambda run: 100 * run.metrics.numbers("correctable")) for m in methods]
    parts = [legend([m.label for m in methods])]
    parts.append(
        grid(
            over_rounds("Aggregation bias by round", bias, "share of ‖ΔW‖", from_zero=True, size=SMALL),
            over_rounds("Repaired by the method", repaired, "% of the bias²", size=SMALL),
            over_rounds("What a change of B can repair", could, "% of the bias²", size=SMALL),
            kind="three",
        )
    )
    shown = [method for method in methods[:MOST_METHODS] if len(method.first.layers)]
    parts += [_by_layer(method, len(methods) > 1) for method in shown]
    if not shown:
        parts.append(missing("By layer it was not recorded.", "`report=full` with `strategy.diagnostics=true` does."))
    return Panel("aggregation", "Aggregation", lead, joined(parts))


def _repaired(rows: Table) -> np.ndarray:
    """Percent of ‖C‖² that the method's update is nearer to ΔW: with c the cosine and q the ratio of norms,
    ‖ΔW − merged‖²/‖ΔW‖² = 1 + q² − 2qc. NaN where there was no bias to speak of."""
    bias, c, q = (rows.numbers(name) for name in (BIAS, "cosine", "norm_ratio"))
    left = np.maximum(1 + q**2 - 2 * q * c, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.round(100 * (1 - left / bias**2), 2)  # of what it takes nothing away from, rounding is left
        return np.where(bias > LEAST, share + 0.0, np.nan)


def matrix(table_: Table, values: np.ndarray) -> tuple[np.ndarray, list[str], list[int]]:
    """(layers, rounds) from a table of a row a layer and round, with the layers and the rounds."""
    names, rounds = table_.texts("layer"), table_.numbers("round")
    layers = list(dict.fromkeys(names))
    columns = sorted({int(r) for r in rounds if np.isfinite(r)})
    row_of, column_of = {n: i for i, n in enumerate(layers)}, {r: i for i, r in enumerate(columns)}
    result = np.full((len(layers), len(columns)), np.nan)
    for name, r, value in zip(names, rounds, values, strict=True):
        if np.isfinite(r):
            result[row_of[name], column_of[int(r)]] = value
    return result, layers, columns


def _by_layer(method: Method, several: bool) -> Markup:
    run, of = method.first, f" ({method.label}, seed {method.first.seed})" if several else ""
    layers, percent = run.layers, "% of the bias²"
    return grid(
        layers_by_round(f"Aggregation bias by layer{of}", "share of ‖ΔW‖", layers, layers.numbers(BIAS), LEAST),
        layers_by_round(f"Repaired by layer{of}", percent, layers, _repaired(layers), span=1.0),
        kind="wide",
    )


def layers_by_round(title: str, what: str, rows: Table, figures: np.ndarray, span: float = 0.0) -> Markup:
    """A figure of layers by rounds, with its numbers. figures: (rows,), a number a row of the table. span: as `heat`
    has it."""
    values, layers, rounds = matrix(rows, figures)
    if not np.isfinite(values).any():
        return tag("p", f"{title}: nothing to show.", class_="missing")
    low, high = (
        np.unravel_index(int(np.nanargmin(values)), values.shape),
        np.unravel_index(int(np.nanargmax(values)), values.shape),
    )
    alt = f"{title}, {what}: least {values[low]:.3g} in {layers[low[0]]} in round {rounds[low[1]]}, "
    alt += f"most {values[high]:.3g} in {layers[high[0]]} in round {rounds[high[1]]}."
    drawn = heat(title, alt, values, layers, rounds, ("round", what), span=span)
    shown = thinned(rounds, MOST_ROUNDS)
    at = [rounds.index(r) for r in shown]
    body = [[layer, *[number(values[i, j]) for j in at]] for i, layer in enumerate(layers)]
    caption = title if len(shown) == len(rounds) else f"{title} ({len(shown)} of {len(rounds)} rounds)"
    return figure(title, drawn, behind("numbers", table(["layer", *shown], body, caption=caption)))
