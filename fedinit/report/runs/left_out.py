"""Who was left out of a run that is done, for those who did not watch it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedinit.data.reporter import counted
from fedinit.said import first_ten

KINDS = {
    "refused": "its update did not count",
    "evaluation_failed": "it was not evaluated",
    "sum_refused": "nobody's update counted, and the model stayed as it was,",
}
NODES = "node_refused"  # before anybody knows whose they are
ABSENT, EARLY = "began_without", "stops_early"


def left_out(ledger: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for everybody whose updates or evaluations are missing in a run, with how often, and why the first time,
    after one of a run that has fewer rounds than it was to have; none where nothing is missing.

    ledger: the events of the run.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    early = ""
    for entry in ledger:
        early = as_it_comes(entry) if entry.get("kind") == EARLY else early
        if entry.get("kind") == "resumed":  # what comes after is done again, whatever became of it before
            found = {key: kept for key, them in found.items() if (kept := _until(them, key[0], entry.get("round")))}
        if entry.get("kind") in (*KINDS, NODES, ABSENT):
            found.setdefault((entry["kind"], _who(entry)), []).append(entry)
    lines = [early] if early else []
    for (kind, who), entries in found.items():
        first = entries[0]
        if kind == ABSENT:
            lines.append(_began(first))
        elif kind == NODES:
            times = "" if len(entries) == 1 else f"{len(entries)} times, first "
            lines.append(f"a node was not used, {times}before round {first.get('round')}: {_why(first)}")
        else:
            rounds = counted(len({entry.get("round") for entry in entries}), "round")
            lines.append(f"{who}{KINDS[kind]} in {rounds}, first in round {first.get('round')}: {_why(first)}")
    return lines


def _until(entries: Sequence[Mapping[str, Any]], kind: str, round: object) -> list[Mapping[str, Any]]:
    """Those of a run that goes on behind this round."""
    if kind not in KINDS or not isinstance(round, int):
        return [*entries]
    return [entry for entry in entries if not isinstance(entry.get("round"), int) or entry["round"] <= round]


def as_it_comes(entry: Mapping[str, Any]) -> str:
    """A line for one event of a run's ledger, for those who wait for its end; empty for what is no matter of theirs."""
    kind, round, who = entry.get("kind"), entry.get("round"), _who(entry)
    if kind == ABSENT:
        return _began(entry)
    if kind == NODES:
        return f"before round {round} a node was not used: {_why(entry)}"
    if kind in KINDS:
        return f"round {round}: {who}{KINDS[str(kind)].removesuffix(',')}: {_why(entry)}"
    if kind == "not_unmasked":
        return f"round {round}: {who}it did not help to unmask the sum, in which its update is: {_why(entry)}"
    if kind == EARLY:
        return f"the run ends after round {entry.get('after_round')} of {entry.get('of')}: {_why(entry)}"
    if kind == "other_code":
        return f"round {round}, clients {first_ten([*entry.get('clients', ())])}: {_why(entry)}"
    if kind == "resampled":
        asked = ", ".join(map(str, entry.get("clients", ())))
        return f"round {round}: {entry.get('usable')} updates count so far, clients {asked} are asked as well"
    return f"round {round}: {who}is there again" if kind == "client_back" else ""


def _who(entry: Mapping[str, Any]) -> str:
    return f"client {entry['client']}: " if "client" in entry else ""


def _began(entry: Mapping[str, Any]) -> str:
    clients = [*entry.get("clients", ())]
    several = "s" * (len(clients) > 1)
    return f"the run began without client{several} {first_ten(clients)}, before round {entry.get('round')}"


def _why(entry: Mapping[str, Any]) -> str:
    return str(entry.get("detail", "")).split("\n")[0]
