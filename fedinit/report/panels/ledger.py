"""The ledger of faults: refusals, missing replies, damaged checkpoints, and what went on from where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from fedinit.report.markup import Cell, joined, table, tag
from fedinit.report.panels.panel import Panel
from fedinit.report.runs.methods import Method

MOST = 200  # events of the page; the first and the last of more
NO_FAULTS = ("attackers", "privacy", "engine")  # which are in sections of their own
COMMON = ("kind", "round", "client", "code")


def panel(methods: Sequence[Method]) -> Panel:
    told = [(m.label, run.seed, event) for m in methods for run in m.runs for event in run.ledger]
    events = [row for row in told if row[2].get("kind") not in NO_FAULTS]
    title = "Ledger of faults"
    if not events:
        return Panel("ledger", title, "Nothing was refused, missing or damaged.", joined([]))
    counts = Counter(str(event.get("kind", "")) for _, _, event in events)
    lead = "; ".join(f"{count} × {kind.replace('_', ' ')}" for kind, count in counts.most_common(8)) + "."
    shown = events if len(events) <= MOST else [*events[: MOST // 2], *events[-MOST // 2 :]]
    several = sum(len(method.runs) for method in methods) > 1
    rows = []
    for label, seed, event in shown:
        rest = {key: value for key, value in event.items() if key not in COMMON}
        cells: list[object] = [str(event.get("kind", "")).replace("_", " ")]
        cells += [_cell(event.get(key)) for key in COMMON[1:]]
        said = "; ".join(f"{key} {v if isinstance(v, str) else json.dumps(v)}"[:300] for key, v in rest.items())
        rows.append([*cells, said, *([label, seed] if several else [])])
    headers = [*COMMON, "more", *(["method", "seed"] if several else [])]
    caption = "Events in their order" + (f", {len(shown)} of {len(events)}" if len(shown) < len(events) else "")
    full = tag("p", "All are in ledger.jsonl of the run's folder.", class_="note") if len(shown) < len(events) else None
    return Panel(
        title="Ledger of faults",
        name="ledger",
        lead=lead,
        body=joined([table(headers, rows, caption=caption), full or ""]),
    )


def _cell(value: object) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(value, float(value), "number")
    return Cell("" if value is None else value)
