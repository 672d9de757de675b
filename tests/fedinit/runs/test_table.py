"""The table that a run ends with: domains in columns while a terminal has room for them, else in rows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedinit.runs.table import print_summary


def printed(domains: int) -> list[str]:
    scores = {f"domain{i}": float(i) for i in range(domains)}
    figures = {"score": "accuracy", "accuracy": 50.0, "accuracy_by_domain": scores}
    head = {"accuracy": 25.0, "accuracy_by_domain": dict.fromkeys(scores, 99.0)}
    what = {"strategy": "fedit", "data": "digits", "model": "vit", "rounds": 1, "clients": 2, "seconds": 1.0}
    sent = {"trainable_parameters": 1, "bytes_up": 1, "bytes_down": 1, "head_alone": head}
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    with console.capture() as captured:
        print_summary(console, figures | what | sent, "outputs/x")
    return captured.get().splitlines()


@pytest.mark.parametrize("domains", [1, 8])
def test_few_domains_are_columns(domains):
    row = next(line for line in printed(domains) if "fedit" in line and "│" in line)
    assert row.count("│") == domains + 3


@pytest.mark.parametrize("domains", [9, 40])
def test_many_domains_are_rows(domains):
    lines = printed(domains)
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == [[f"domain{i}", "99.0", f"{i:.1f}"] for i in range(domains)] + [["average", "25.0", "50.0"]]
    heads = [[cell.strip() for cell in line.strip("┃").split("┃")] for line in lines if line.startswith("┃")]
    assert heads == [["test accuracy, %", "head alone", "fedit"]]
