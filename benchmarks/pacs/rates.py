"""The learning rate of each row, chosen on a validation split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.pacs.runs import run_all, selecting, summary_of
from benchmarks.pacs.table import Table


def beyond(table: Table, scores: Mapping[float, float]) -> float | None:
    """The next rate to try for a row, if its best one lies at an edge of those tried.

    scores: {rate: validation accuracy; NaN where the run failed}.
    """
    usable = {rate: score for rate, score in scores.items() if not math.isnan(score)}
    if table.ratio is None or not usable:
        return None
    best = max(usable, key=usable.__getitem__)
    if best == min(scores):
        return float(f"{best / table.ratio:.3g}")
    return float(f"{best * table.ratio:.3g}") if best == max(scores) else None


def choose_rates(table: Table, place: Sequence[str], workers: int) -> dict[str, tuple[float, dict[float, float]]]:
    """{row: (the rate, {rate: validation accuracy in percent; NaN where the run failed})}"""
    scores: dict[str, dict[float, float]] = {row.label: {} for row in table.rows}
    due = [(row, rate) for row in table.rows for rate in table.grid]
    while due:
        run_all([selecting(table, row, rate, place) for row, rate in due], workers)
        for row, rate in due:
            summary = summary_of(selecting(table, row, rate, place))
            scores[row.label][rate] = math.nan if summary is None else summary["accuracy"]
        found = [(row, beyond(table, scores[row.label])) for row in table.rows]
        due = [(row, rate) for row, rate in found if rate is not None]
    chosen = {}
    for label, tried in scores.items():
        usable = [rate for rate in tried if not math.isnan(tried[rate])]
        if not usable:
            raise SystemExit(f"{label}: no rate of {', '.join(f'{r:g}' for r in tried)} gave a run that ended")
        chosen[label] = max(usable, key=tried.__getitem__), tried
    return chosen
