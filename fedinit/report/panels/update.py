"""What the update is like: how far clients start from the global factors, its singular values, its effective rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedinit.report.figures.curves import Axis, Series, curves
from fedinit.report.markup import Markup, behind, joined, missing, number, table, tag
from fedinit.report.panels.aggregation import layers_by_round
from fedinit.report.panels.panel import Panel, figure, grid, legend, over_rounds, traces
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import number_of

MOST_METHODS = 6
SHOWN_VALUES = 16
HOW = "`report=full` with `strategy.diagnostics=true` records them after every evaluated round."


def panel(methods: Sequence[Method]) -> Panel:
    lead = (
        "Drift is how far a client's start is from the global factors, by reinit=. The spectrum is of what a layer's "
        "frozen weight has got, O + BA; its effective rank is exp of the entropy of σ/Σσ."
    )
    drifts = [traces(methods, name) for name in ("drift_factors", "drift_product")]
    parts = [legend([m.label for m in methods])]
    if any(line.mean.any() for lines in drifts for line in lines):
        titles = ("Drift of the factors", "Drift of the products")
        parts.append(grid(*[over_rounds(t, d, "‖·‖ of the difference") for t, d in zip(titles, drifts, strict=True)]))
    else:
        parts = [tag("p", "Every client started every round from the global factors: no drift.", class_="note")]
    shown = [method for method in methods[:MOST_METHODS] if len(method.first.spectra)]
    parts += [_spectra(method, len(methods) > 1) for method in shown]
    if not shown:
        parts.append(missing("Spectra and effective ranks were not recorded.", HOW))
    return Panel("update", "Drift, spectra, effective rank", lead, joined(parts))


def _spectra(method: Method, several: bool) -> Markup:
    run, of = method.first, f" ({method.label}, seed {method.first.seed})" if several else ""
    rows = run.spectra
    rounds = rows.numbers("round")
    last = int(rounds.max())
    spectra = {
        layer: np.array([number_of(v) for v in values.split()])
        for layer, r, values in zip(rows.texts("layer"), rounds, rows.texts("singular_values"), strict=True)
        if r == last
    }
    kinds = list(dict.fromkeys(_kind(layer) for layer in spectra))
    lines = [
        Series(layer, np.arange(1.0, len(v[:SHOWN_VALUES]) + 1), _positive(v[:SHOWN_VALUES]), kinds.index(_kind(layer)))
        for layer, v in spectra.items()
    ]
    title = f"Singular values after round {last}{of}"
    largest = max((v[0] for v in spectra.values() if len(v)), default=0.0)
    alt = f"{title}: {len(spectra)} layers, the largest value {largest:.3g}, coloured by kind: {', '.join(kinds)}."
    drawn = curves(title, alt, lines, Axis("number, from the largest", "singular value", log=largest > 0))
    width = max((len(v[:SHOWN_VALUES]) for v in spectra.values()), default=0)
    body = [[layer, *[number(v[i] if i < len(v) else None) for i in range(width)]] for layer, v in spectra.items()]
    numbers = behind("numbers", table(["layer", *[f"σ{i + 1}" for i in range(width)]], body, caption=title))
    ranks = layers_by_round(f"Effective rank by layer{of}", "effective rank", rows, rows.numbers("effective_rank"))
    return grid(figure(title, legend(kinds), drawn, numbers), ranks, kind="wide")


def _kind(layer: str) -> str:
    """attn.qkv of blocks.3.attn.qkv: what comes after the block's number."""
    parts = layer.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbered[-1] + 1 :]) or layer if numbered else layer


def _positive(values: np.ndarray) -> np.ndarray:
    """For a logarithmic axis: what is rounding, or zero, is left out."""
    return np.where(values > 1e-9 * max(values.max(initial=0.0), 1e-300), values, np.nan)
