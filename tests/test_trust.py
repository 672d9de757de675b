"""docs/trust.md: every row of its tables names tests that are there, and says which of them are slow."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/trust.md").read_text(encoding="utf-8")
WHO = {"The server", "Another site", "Whoever gets the model", "The network", "Somebody on a machine"}
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`( \(slow\))?")


def rows() -> list[tuple[str, list[str]]]:
    """(who, cells) of every row of a table with a column of tests, heads and rules left out."""
    found, who, inside = [], "", False
    for line in PAGE.splitlines():
        if line.startswith("## "):
            who = line[3:]
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[-1].strip("| ") == "test":
            inside = True
        elif inside and set(line) - set("|- "):
            found.append((who, [cell.strip("| ") for cell in cells]))
    return found


@functools.cache
def in_file(path: str) -> dict[str, bool]:
    """{name of a test in the file: whether it is slow}, without running any of it."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {f.name: any(ast.unparse(mark) == "pytest.mark.slow" for mark in f.decorator_list) for f in functions}


def fault(cells: list[str]) -> str:
    """Why a row is none; empty where it is one."""
    if len(cells) != 3 or not all(cells):
        return f"{len(cells)} cells, expected what could be done, what stops it, and the tests"
    named = NAMED.findall(cells[2])
    if not named or NAMED.sub("", cells[2]).strip():
        return "its last cell is not one test or more"
    for path, name, slow in named:
        if not (ROOT / path).exists() or name not in in_file(path):
            return f"there is no {path}::{name}"
        if in_file(path)[name] != bool(slow):
            return f"{name} is {'not ' if slow else ''}slow"
    return ""


@pytest.mark.parametrize("who", sorted(WHO))
def test_every_row_has_tests_that_are_there(who):
    of_who = [cells for name, cells in rows() if name == who]
    assert len(of_who) > 3
    assert [why for cells in of_who if (why := fault(cells))] == []


def test_the_tables_are_of_all_who_could_do_harm():
    assert {who for who, _ in rows()} == WHO


def test_rows_that_are_none_are_found():
    """The controls."""
    here = "`tests/test_trust.py::test_rows_that_are_none_are_found`"
    assert not fault(["it could", "nothing", here])
    assert fault(["it could", here]) and fault(["it could", "", here]) and fault(["it could", "nothing", "by reading"])
    assert "there is no" in fault(["a", "b", here.replace("found", "lost")])
    assert "there is no" in fault(["a", "b", here.replace("test_trust", "test_nowhere")])
    assert fault(["a", "b", f"{here} (slow)"]) == "test_rows_that_are_none_are_found is not slow"
