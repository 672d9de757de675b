"""report.html: one file that asks nobody for anything.

Its content-security policy allows its own style sheet and its own script, each by its hash, images inside the file, and
nothing else; without the script the page says the same and cannot be sorted. The same folders give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedinit.report.markup import Markup, joined, tag, text
from fedinit.report.panels import (
    aggregation,
    clients,
    cost,
    domains,
    ledger,
    provenance,
    results,
    start,
    training,
    trust,
    update,
)
from fedinit.report.panels.panel import Panel
from fedinit.report.panels.sources import source_of
from fedinit.report.runs.methods import Method, methods
from fedinit.report.runs.reading import RecordedRun, number_of
from fedinit.report.runs.results import AVERAGE, compared
from fedinit.said import printable
from fedinit.scores import SCORES

PANELS: tuple[Callable[[Sequence[Method]], Panel | None], ...] = (
    results.panel,
    training.panel,
    domains.panel,
    clients.panel,
    aggregation.panel,
    update.panel,
    start.panel,
    cost.panel,
    trust.panel,
    ledger.panel,
    provenance.panel,
)
OF_ALL = (results.panel, ledger.panel, provenance.panel)  # also of methods that have no figure yet
_log = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent


def render(runs: Sequence[RecordedRun]) -> str:
    """The page of one run, or of several on the same data. Raises InputError for runs on different data."""
    every = methods(runs)
    shown = [method for method in every if method.evaluated] or every
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of figures that are not there: the page says so itself
        made = [_made(make, every if make in OF_ALL else shown) for make in PANELS]
        panels = [panel for panel in made if panel is not None]
        facts = _facts(shown)
    title = _title(shown)
    names = [tag("p", sentence) for sentence in results.unsaid(shown[0].usual)]
    style, script = (
        (HERE / "page.css").read_text(encoding="utf-8"),
        (HERE / "page.js").read_text(encoding="utf-8"),
    )
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Markup(f"<style>{style}</style>"),
    ]
    links = [tag("li", tag("a", panel.title, href=f"#{panel.name}")) for panel in panels]
    body = [
        tag("header", tag("p", "fedinit", class_="brand"), tag("h1", title), tag("p", _under(shown)), *names, facts),
        tag("nav", tag("ul", joined(links)), aria_label="Sections"),
        tag("main", joined(_section(panel) for panel in panels)),
        Markup(f"<script>{script}</script>"),
    ]
    page = tag("html", tag("head", joined(head)), tag("body", joined(body)), lang="en")
    return f"<!doctype html>\n{page}\n"


def _made(make: Callable[[Sequence[Method]], Panel | None], shown: Sequence[Method]) -> Panel | None:
    """A section, None where there is nothing to show; of records that it cannot be made of, one that says so, so that
    the others are there."""
    try:
        return make(shown)
    except Exception as error:  # noqa: BLE001 (whatever a damaged record makes of it, it is this section alone)
        name = make.__module__.rpartition(".")[2]
        title, files = source_of(name)
        why = " ".join(str(error).split())[:200] or type(error).__name__
        runs = _damaged(make, shown)
        there = [file for file in files if any(os.path.lexists(run.folder / file) for run in runs)]
        of = f" of {', '.join(run.folder.name for run in runs)}" if sum(len(m.runs) for m in shown) > 1 else ""
        where = f", in {' or '.join(there)}" if there else ""
        whose = f" ({said})" if (said := f"{where.removeprefix(', ')}{of}".strip()) else ""
        _log.warning("the section %s of the report is left out: %s%s", title, printable(why), whose)
        body = tag("p", f"Left out, since what the run recorded of it is damaged{where}{of}: {why}.", class_="warning")
        return Panel(name, title, "", body)


def _damaged(make: Callable[[Sequence[Method]], Panel | None], shown: Sequence[Method]) -> list[RecordedRun]:
    """The runs of which alone the section cannot be made either; all where each can."""
    runs = [(method.label, run) for method in shown for run in method.runs]
    found = []
    for label, run in runs:
        try:
            make([Method(label, (run,))])
        except Exception:  # noqa: BLE001 (the same as of all)
            found.append(run)
    return found or [run for _, run in runs]


def _section(panel: Panel) -> Markup:
    lead = tag("p", panel.lead, class_="lead") if panel.lead else ""
    heading = tag("h2", panel.title, id=f"{panel.name}-title")
    return tag("section", heading, lead, panel.body, id=panel.name, aria_labelledby=f"{panel.name}-title")


def _title(shown: Sequence[Method]) -> str:
    data = shown[0].first.config["data"]["name"]
    if len(shown) > 3:
        return f"{len(shown)} methods on {data}"
    return f"{', '.join(method.label for method in shown)} on {data}"


def _under(shown: Sequence[Method]) -> Markup:
    """The models, kinds of adapters and partitions that there are among the runs."""
    models = dict.fromkeys(method.first.model for method in shown)
    adapters, partitions = (
        [method.first.config.get(key) or {} for method in shown] for key in ("adapter", "partition")
    )
    adapted = dict.fromkeys(f"{of.get('kind')} of rank {of['rank']}" for of in adapters if of.get("rank"))
    dealt = dict.fromkeys(str(of["name"]) for of in partitions if of.get("name"))
    parts = [", ".join(models), ", ".join(adapted), f"partition by {', '.join(dealt)}" if dealt else ""]
    return text(" · ".join(part for part in parts if part))


def _facts(shown: Sequence[Method]) -> Markup:
    """What one asks first, each in a box."""
    runs = [run for method in shown for run in method.runs]
    first = runs[0]
    facts: list[tuple[str, str]] = []
    if len(shown) == 1:
        score = SCORES[first.score]
        found = [figures[AVERAGE] for figures in compared(shown[0])[0].values()]
        if found:
            facts.append((score.title, score.show(sum(found) / len(found))))
    else:
        facts.append(("methods", str(len(shown))))
    seeds = sorted({run.seed for run in runs})
    facts.append(("seeds" if len(seeds) > 1 else "seed", ", ".join(map(str, seeds))))
    facts.append(("rounds", _rounds(runs)))
    facts.append(("clients", ", ".join(map(str, sorted({_clients(run) for run in runs})))))
    if len(runs) == 1:
        table = first.metrics
        facts.append(("MB up", f"{sum(v for v in table.numbers('bytes_up') if v == v) / 1e6:,.1f}"))
        facts.append(("MB down", f"{sum(v for v in table.numbers('bytes_down') if v == v) / 1e6:,.1f}"))
        seconds = sum(v for v in table.numbers("seconds") if v == v)
        facts.append(("seconds", f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"))
    return tag("dl", *[tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="tiles")


def _rounds(runs: Sequence[RecordedRun]) -> str:
    reached = sorted({run.reached for run in runs})
    said = str(reached[0]) if len(reached) == 1 else f"{reached[0]} to {reached[-1]}"
    return said if all(run.summary is not None for run in runs) else f"{said} of {max(run.rounds for run in runs)}"


def _clients(run: RecordedRun) -> int:
    if run.partition:
        return len(run.partition["clients"])
    told = number_of((run.summary or {}).get("clients"))  # of a deployment, where some may have had no update counted
    return int(told) if math.isfinite(told) else len(set(run.clients.texts("client")))


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
