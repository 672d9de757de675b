"""A figure a domain, the worst of them, and how evenly the method serves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedinit.report.markup import Cell, Markup, behind, joined, number, table, tag
from fedinit.report.panels.panel import SMALL, Panel, Trace, grid, legend, over_rounds, trace, traces
from fedinit.report.runs.methods import Method
from fedinit.report.runs.reading import RecordedRun
from fedinit.report.runs.results import last_scores
from fedinit.said import first_ten
from fedinit.scores import SCORES, judged_on


def panel(methods: Sequence[Method]) -> Panel:
    first = methods[0].first
    score, domains = first.score, max((m.first.domains for m in methods), key=len)
    title, log = SCORES[score].title, score == "recovery_error"
    if not domains:
        return Panel("domains", "Domains and clients", "", tag("p", "No domain is known yet.", class_="missing"))
    name, images = title.partition(",")[0], judged_on(first.config["data"]).capitalize()
    small = [
        over_rounds(f"{images} {name} on {domain}", traces(methods, f"{score}_{domain}"), title, log=log, size=SMALL)
        for domain in domains
    ]
    parts: list[Markup] = [legend([m.label for m in methods]), grid(*small, kind="small")]
    if len(domains) > 1:
        lead = "The model on each domain, which it serves worst, and how evenly."
        parts.append(_fairness(methods, score, title, log))
    else:
        lead = "The model on its domain, and the client that it serves worst."
        parts.append(grid(_worst_client(methods), kind="three"))
    return Panel("domains", "Domains and clients", lead, joined(parts))


def _fairness(methods: Sequence[Method], score: str, title: str, log: bool) -> Markup:
    worst = np.max if score == "recovery_error" else np.min
    lowest = [trace(m.label, m.runs, _of_domains(lambda values: worst(values, axis=0))) for m in methods]
    spread = [trace(m.label, m.runs, _of_domains(lambda values: np.std(values, axis=0))) for m in methods]
    figures = [
        over_rounds("The worst domain by round", lowest, title, log=log, size=SMALL),
        over_rounds("Fairness: deviation between domains", spread, "standard deviation", size=SMALL),
        _worst_client(methods),
    ]
    rows = [_row(method, run, score) for method in methods for run in method.runs]
    headers = ["method", "seed", "worst domain", "its score", "best domain", "its score", "apart", "deviation"]
    caption = "The worst and the best domain after the last evaluated round"
    return joined(
        [
            grid(*figures, kind="three"),
            behind("worst and best domain", table(headers, rows, caption=caption)),
            _held(methods),
        ]
    )


def _worst_client(methods: Sequence[Method]) -> Markup:
    return over_rounds("The worst client: largest training loss", _largest_loss(methods), "loss", size=SMALL)


def _held(methods: Sequence[Method]) -> Markup:
    """What is to be said of clients: where each holds one domain alone, its score is the domain's."""
    runs = [run for method in methods for run in method.runs]
    partitions = [run.partition for run in runs]
    if None in partitions:
        of = "" if all(partition is None for partition in partitions) else " for every run"
        told = f"Which client holds which domain was not recorded{of}, so the worst client is that of the loss."
        return tag("p", told)
    held = [[client.get("domain") for client in partition["clients"]] for partition in partitions if partition]
    if all(None not in domains and len(set(domains)) == len(domains) for domains in held):
        free = dict.fromkeys(d for run, its in zip(runs, held, strict=True) for d in run.domains if d not in its)
        of = f"of all but {first_ten([*free])}, which nobody holds, " if free else ""
        told = f"Each client holds one domain, so {of}the worst domain is the worst client."
        return tag("p", told, class_="note")
    return tag("p", "Clients share domains: the model is scored by domain, and by client its training loss is known.")


def _of_domains(reduce: Callable[[np.ndarray], np.ndarray]) -> Callable[[RecordedRun], np.ndarray]:
    """For `trace`: a figure of each row's scores by domain, (domains, rows)."""

    def figures(run: RecordedRun) -> np.ndarray:
        values = np.array([run.metrics.numbers(f"{run.score}_{domain}") for domain in run.domains])
        return reduce(values) if len(values) else np.full(len(run.metrics), np.nan)

    return figures


def _largest_loss(methods: Sequence[Method]) -> list[Trace]:
    def figures(run: RecordedRun) -> np.ndarray:
        rounds, losses = run.clients.numbers("round"), run.clients.numbers("train_loss")
        of_round = {r: losses[rounds == r] for r in np.unique(rounds)}
        largest = {r: np.nanmax(values) for r, values in of_round.items() if np.isfinite(values).any()}
        return np.array([largest.get(r, np.nan) for r in run.metrics.numbers("round")], dtype=np.float64)

    return [trace(method.label, method.runs, figures) for method in methods]


def _row(method: Method, run: RecordedRun, score: str) -> list[object]:
    last = last_scores(run)[1]
    figures = {domain: last[domain] for domain in run.domains if np.isfinite(last.get(domain, np.nan))}
    if not figures:
        return [method.label, Cell(run.seed, run.seed, "number"), *[Cell("")] * 6]
    order = sorted(figures, key=lambda domain: figures[domain], reverse=score == "recovery_error")
    low, high = order[0], order[-1]
    cells: list[object] = [low, number(figures[low], 4), high, number(figures[high], 4)]
    apart = number(abs(figures[high] - figures[low]), 4)
    return [
        method.label,
        Cell(run.seed, run.seed, "number"),
        *cells,
        apart,
        number(float(np.std([*figures.values()])), 4),
    ]
