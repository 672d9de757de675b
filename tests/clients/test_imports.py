"""The client side's modules import each other in one direction, types included."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.source import nodes

ROOT = Path(__file__).resolve().parents[2]


def imported() -> dict[str, set[str]]:
    """{module: the modules of clients/ that it imports}, wherever in the file."""
    files = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in (ROOT / "clients").rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    found: dict[str, set[str]] = {}
    for name, file in files.items():
        froms = [n for n in nodes(file) if isinstance(n, ast.ImportFrom) and n.module]
        named = {(n.module, alias.name) for n in froms for alias in n.names if n.module.split(".")[0] == "clients"}
        found[name] = {f"{module}.{part}" if f"{module}.{part}" in files else module for module, part in named}
    return found


def test_no_circle():
    graph = imported()
    order = list(TopologicalSorter(graph).static_order())
    low, middle, high = (order.index(f"clients.{name}") for name in ("task", "training", "cohort"))
    assert len(graph) > 25 and low < middle < high
    with pytest.raises(CycleError):  # the negative control
        TopologicalSorter(graph | {"clients.task": {"clients.training"}}).prepare()
