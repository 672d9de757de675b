"""Who was left out of a run that is done, for those who did not watch it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedinit.data.reporter import counted

KINDS = {
    "refused": "its update did not count",
    "evaluation_failed": "it was not evaluated",
    "node_refused": "not used",
    "sum_refused": "nobody's update counted, and the model stayed as it was,",
}


def left_out(ledger: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for everybody whose updates or evaluations are missing in a run, with how often, and why the first time;
    none where nobody's are. ledger: the events of the run."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in ledger:
        if entry.get("kind") in KINDS:
            who = f"client {entry['client']}" if "client" in entry else ""
            found.setdefault((entry["kind"], who), []).append(entry)
    lines = []
    for (kind, who), entries in found.items():
        first = entries[0]
        rounds = counted(len({entry.get("round") for entry in entries}), "round")
        why = str(first.get("detail", "")).split("\n")[0]
        lines.append(
            f"{who + ': ' if who else ''}{KINDS[kind]} in {rounds}, first in round {first.get('round')}: {why}"
        )
    return lines
