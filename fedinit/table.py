"""The table a run ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(console: Console, summary: Mapping[str, Any], folder: str) -> None:
    """Accuracy by domain and on average, the head alone beside it, bytes, seconds, and where the run is."""
    table = Table(title=f"{summary['strategy']} on {summary['data']}, {summary['model']}")
    domains = list(summary["accuracy_by_domain"])
    table.add_column("test accuracy, %")
    for name in domains:
        table.add_column(name, justify="right")
    table.add_column("average", justify="right")
    rows = [(summary["strategy"], summary)]
    if summary.get("head_alone"):
        rows.insert(0, ("head alone", summary["head_alone"]))
    for label, figures in rows:
        if figures["accuracy"] is not None:
            cells = [f"{figures['accuracy_by_domain'][name]:.1f}" for name in domains]
            table.add_row(label, *cells, f"{figures['accuracy']:.1f}")
    if table.row_count:
        console.print(table)
    console.print(
        f"{summary['rounds']} rounds, {summary['clients']} clients, {summary['seconds']:.1f} s; "
        f"{summary['trainable_parameters']:,} trained parameters; sent {megabytes(summary['bytes_up'])} up, "
        f"{megabytes(summary['bytes_down'])} down",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"run folder: {folder}", soft_wrap=True, highlight=False, markup=False)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
