"""What a run has of privacy and of bad clients: ε by round, what each client counted for, what was refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedinit.data.reporter import counted
from fedinit.report.figures.heat import heat
from fedinit.report.markup import Cell, Markup, behind, joined, number, table, tag
from fedinit.report.panels.panel import Panel, figure, legend, over_rounds, thinned, trace
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import RecordedRun, number_of
from fedinit.runs.summary import OF_THE_SEED, SEED

MOST_CLIENTS, MOST_ROUNDS = 200, 60  # of a figure of weights
GUARDS = ("robust", "attack")


def panel(methods: Sequence[Method]) -> Panel | None:
    """The section; None where nothing in it was chosen."""
    private, masked = _with(methods, "privacy"), _with(methods, "secure_aggregation")
    guarded = [m for m in methods if any(m.first.chosen(group) for group in GUARDS)]
    if not private and not masked and not guarded:
        return None
    parts = _privacy(private) if private else []
    if masked:
        said = ", ".join(method.label for method in masked)
        parts.append(tag("p", f"The server saw sums of masked updates and no single one: {said}.", class_="note"))
    for method in guarded:
        parts += _clients(method, len(guarded) > 1)
    lead = [f"{m.label}: privacy={m.first.chosen('privacy')}." for m in private] + [_attack(m) for m in guarded]
    return Panel("trust", "Privacy and bad clients", " ".join(lead), joined(parts))


def attackers(run: RecordedRun) -> set[int]:
    """The clients that attacked, as the run has them in its ledger."""
    told = [event.get("clients") for event in run.ledger if event.get("kind") == "attackers"]
    return {client for clients in told if isinstance(clients, list) for client in clients if type(client) is int}


def _with(methods: Sequence[Method], group: str) -> list[Method]:
    return [method for method in methods if method.first.chosen(group)]


def _privacy(methods: Sequence[Method]) -> list[Markup]:
    lines = [trace(m.label, m.runs, _epsilon) for m in methods]
    rows = [[method.label, *_spent(run)] for method in methods for run in method.runs]
    headers = ["method", "seed", "protects", "ε", "δ", "noise, over the clip", "ε compares"]
    caption = "Privacy that the run had spent at its end, or as far as it came"
    seeded = [m.label for m in methods if any(_told(run).get("noise_drawn_by") == SEED for run in m.runs)]
    if seeded:
        caption += f"; of {', '.join(seeded)} {OF_THE_SEED}"
    return [
        legend([m.label for m in methods]),
        over_rounds("Privacy spent by round", lines, "ε so far", from_zero=True),
        table(headers, rows, caption=caption),
        *(by_client for method in methods for run in method.runs for by_client in _by_client(method, run)),
    ]


def _by_client(method: Method, run: RecordedRun) -> list[Markup]:
    """ε of each client's own examples, of a finished run."""
    told = (run.summary or {}).get("privacy")
    spent = told.get("epsilon_by_client") if isinstance(told, Mapping) else None
    if not isinstance(spent, Mapping) or not spent:
        return []
    rows = [[client, number(number_of(epsilon), 4)] for client, epsilon in [*spent.items()][:MOST_CLIENTS]]
    left = f", {MOST_CLIENTS} of {len(spent)}; all are in summary.json" if len(spent) > MOST_CLIENTS else ""
    caption = f"ε of each client that trained ({method.label}, seed {run.seed}){left}"
    shown = table(["client", "ε"], rows, caption=caption)
    return [shown if len(rows) <= 12 else behind("ε by client", shown)]


def _epsilon(run: RecordedRun) -> np.ndarray:
    """ε so far, after each row of metrics.csv: of clients, or the largest that a client has said of its examples."""
    if "epsilon" in run.metrics.columns:
        return run.metrics.numbers("epsilon")
    rounds, told = run.clients.numbers("round"), run.clients.numbers("epsilon")
    largest, found = np.nan, []
    for at in run.metrics.numbers("round"):
        largest = np.fmax(largest, np.fmax.reduce(told[rounds == at], initial=np.nan))
        found.append(largest)
    return np.array(found, dtype=np.float64)


def _told(run: RecordedRun) -> Mapping[str, Any]:
    """What a run says of its privacy; of one that is not done, its ledger."""
    told = (run.summary or {}).get("privacy")
    if isinstance(told, Mapping):
        return told
    return next((event for event in reversed(run.ledger) if event.get("kind") == "privacy"), {})


def _spent(run: RecordedRun) -> list[object]:
    """The cells of a run's row."""
    told = _told(run)
    values = _epsilon(run)
    last = values[np.isfinite(values)]
    epsilon = float(last[-1]) if len(last) else number_of(told.get("epsilon"))
    unit = "a client's images" if run.chosen("privacy") == "clients" else "an image"
    compares = str(told.get("neighbours") or ("with and without one image" if unit == "an image" else ""))
    settings = run.config.get("privacy", {})
    noise = number_of(told.get("noise", settings.get("noise")))
    delta = number_of(told.get("delta", settings.get("delta")))
    of_each = run.chosen("privacy") == "examples" and not math.isfinite(noise)
    figures = [number(epsilon, 4), number(delta, 2), "each client's own" if of_each else number(noise, 3)]
    return [Cell(run.seed, run.seed, "number"), unit, *figures, compares]


def _attack(method: Method) -> str:
    """Who attacked, and what stood against it, in a sentence."""
    run, bad = method.first, sorted(attackers(method.first))
    rule, attack = run.chosen("robust"), run.chosen("attack")
    who = f"clients {', '.join(map(str, bad))}" if len(bad) > 1 else f"client {bad[0]}" if bad else "clients"
    did = f"attack={attack} by {who}" if attack else "nobody attacks"
    return f"{method.label}: {did}, {f'robust={rule}' if rule else 'no rule against it'}."


def _clients(method: Method, several: bool) -> list[Markup]:
    """What each client counted for by round, and a row a client."""
    run, bad = method.first, attackers(method.first)
    of = f" ({method.label}, seed {run.seed})" if several or len(method.runs) > 1 else ""
    values, clients, rounds = _weights(run)
    told = [event.get("client") for event in run.ledger if event.get("kind") == "refused"]
    refused = Counter(client for client in told if type(client) is int)
    everybody = sorted({*clients, *bad, *refused})
    parts: list[Markup] = []
    if values.size and len(clients) <= MOST_CLIENTS:
        names = [f"{client} attacks" if client in bad else str(client) for client in clients]
        alt = f"Weights of {counted(len(clients), 'client')} in {counted(len(rounds), 'round')}."
        drawn = heat(f"What each client counted for{of}", alt, values, names, rounds, ("round", "weight"), 760.0, None)
        parts.append(figure(f"What each client counted for{of}", drawn))
    rows = []
    for client in everybody[:MOST_CLIENTS]:
        own = values[clients.index(client)] if client in clients else np.array([])
        own = own[np.isfinite(own)]
        weights: list[Any] = [number(float(f(own)) if len(own) else None) for f in (np.mean, np.min, np.max)]
        rows.append([Cell(client, client, "number"), "yes" if client in bad else "", *weights, refused[client]])
    if not rows:
        return parts
    caption = f"Clients by the weight of their updates over the rounds that they were in{of}"
    if len(everybody) > MOST_CLIENTS:
        caption += f", {MOST_CLIENTS} of {len(everybody)}; all are in clients.csv"
    shown = table(["client", "attacks", "mean weight", "least", "most", "updates refused"], rows, caption=caption)
    if values.size and bad:
        share = np.nansum(values[[clients.index(c) for c in clients if c in bad]]) / max(np.nansum(values), 1e-12)
        parts.append(tag("p", f"Attackers had {100 * share:.1f} % of all weight{of}.", class_="note"))
    return [*parts, shown if len(rows) <= 12 else behind("clients by weight", shown)]


def _weights(run: RecordedRun) -> tuple[np.ndarray, list[int], list[int]]:
    """(clients, rounds) weights, NaN of who was not in a round; the clients, and the rounds, of many rounds some."""
    rows = run.clients
    found = zip(rows.numbers("client"), rows.numbers("round"), rows.numbers("weight"), strict=True)
    known = {(int(client), int(at)): weight for client, at, weight in found if np.isfinite([client, at, weight]).all()}
    clients = sorted({client for client, _ in known})
    rounds = thinned(sorted({at for _, at in known}), MOST_ROUNDS)
    values = [[known.get((client, at), np.nan) for at in rounds] for client in clients]
    return np.array(values, dtype=np.float64).reshape(len(clients), len(rounds)), clients, rounds
