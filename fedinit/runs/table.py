"""The table a run ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from fedinit.config.schema import Config
from fedinit.data.reporter import counted
from fedinit.runs.export import PERSONAL, SHARED
from fedinit.runs.summary import OF_THE_SEED, SEED
from fedinit.said import upwards
from fedinit.scores import SCORES, average_among, judged_on, without
from fedinit.telling import cell, tell

# What is said of adapters where no one adapter is all clients'.
TOLD = {
    PERSONAL: "each client has an adapter of its own: adapter/client-0 to adapter/client-{last}",
    SHARED: "each client has an adapter of its own, at its site, in its state-dir; adapter/shared has the rest",
}
MOST = (
    "{own:,} of {clients:,} clients have an adapter of their own, adapter/client-N; that of the others, of whom no "
    "update counted, or whose factors were lost, is adapter/client-untrained"
)
MANY = 9  # domains, from which on each has a row, where otherwise it has a column


def print_summary(console: Console, summary: Mapping[str, Any], folder: str, config: Config) -> None:
    """The score by domain and on average, the head alone beside it, bytes, seconds, and where the run is.

    summary: of the run. config: what it ran by. folder: where it is, as it is told.
    """
    score = SCORES[summary["score"]]
    runs, by_domain = [(summary["strategy"], summary)], f"{score.name}_by_domain"
    if summary.get("head_alone"):
        runs.insert(0, ("head alone", summary["head_alone"]))
    domains = list(dict.fromkeys(name for _, figures in reversed(runs) for name in figures[by_domain]))
    columns = [[f"{judged_on(config.data)} {score.title}", *domains, average_among(domains)]]
    for label, figures in runs:
        if figures[score.name] is not None:
            shown = [score.show(figures[by_domain][name]) if name in figures[by_domain] else "" for name in domains]
            columns.append([label, *shown, score.show(figures[score.name])])
    rows = columns if len(domains) < MANY else [list(row) for row in zip(*columns, strict=True)]
    table = Table(title=cell(f"{summary['strategy']} on {summary['data']}, {summary['model']}"))
    for number, name in enumerate(rows[0]):
        table.add_column(cell(name), justify="right" if number else "left")
    for row in rows[1:]:
        table.add_row(*map(cell, row))
    if len(columns) > 1:
        console.print(table)
    clients = counted(summary["clients"], "client")
    console.print(
        f"{counted(summary['rounds'], 'round')} in {summary['seconds']:.1f} s, {clients}; "
        f"{summary['trainable_parameters']:,} trained parameters; sent {megabytes(summary['bytes_up'])} up, "
        f"{megabytes(summary['bytes_down'])} down",
        soft_wrap=True,
        highlight=False,
    )
    if missing := summary.get("not_scored"):
        tell(console, f"not scored: {without(missing)}")
    if summary[score.name] is not None and (share := config.evaluation.participation) < 1:
        tell(console, f"scored by a share of {share:g} of the clients, evaluation.participation")
    if summary[score.name] is None and "evaluation_failed" in (summary.get("left_out") or {}):
        tell(
            console,
            "not scored: the last round, which no client could evaluate; fedinit evaluate FOLDER does",
            "yellow",
        )
    spent = summary.get("privacy") or {}
    if spent:
        tell(console, f"privacy {privacy_said(spent)}")
    if (where := TOLD.get(summary.get("adapter", ""))) is not None:
        others, clients = summary.get("untrained", 0), summary["clients"]
        tell(console, (MOST if others else where).format(last=clients - 1, own=clients - others, clients=clients))
    tell(console, f"run folder: {folder}")


def privacy_ahead(planned: Mapping[str, Any]) -> str:
    """What all rounds will spend, by the ledger's `privacy`."""
    rounds = counted(planned["rounds"], "round")
    said = f"{rounds} with noise of {planned['noise']:.4g} clips spend ε {upwards(planned['epsilon'])}"
    return f"of {planned['unit']}s: {said} at δ {planned['delta']:g}"


def privacy_said(spent: Mapping[str, Any]) -> str:
    """What was spent, by a summary's `privacy`, and of whom."""
    of_examples = spent.get("unit") == "example"
    whose = f"the most of {counted(len(spent['epsilon_by_client']), 'client')}" if of_examples else "of every client"
    kind = "examples" if of_examples else "clients"
    said = f"of {kind}: ε {upwards(spent['epsilon'])} at δ {spent['delta']:g}, {whose}"
    return said + (f"; {OF_THE_SEED}" if spent.get("noise_drawn_by") == SEED else "")


def megabytes(count: int) -> str:
    """A number of bytes in MB of 10⁶ bytes, to one decimal."""
    return f"{count / 1e6:.1f} MB"
