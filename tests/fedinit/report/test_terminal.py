"""The table of fedinit compare as a terminal of any width shows it: figures are whole, and what is left out is told."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from fedinit import cli
from fedinit.report.formats import csv_text
from fedinit.report.runs.finding import find
from fedinit.report.runs.methods import methods
from fedinit.report.runs.results import Results, results
from fedinit.report.terminal import METHOD, NAME, print_table
from tests.support.recorded_runs import DOMAINS, config, write_run

LONG = ("a_domain_with_a_name_of_forty_characters", *DOMAINS)
SOME = [None, {"rank": 4, "kind": "lora"}, {"rank": 16, "kind": "lora"}]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(root, seeds: int = 1, uneven: bool = False, domains: tuple[str, ...] = DOMAINS) -> Results:
    for i, adapter in enumerate(SOME):
        for seed in range(seeds + (uneven and i == 0)):
            values = config(rounds=1, seed=seed, reinit__name="local_on_global" if i else "auto")
            values["adapter"] = adapter or values["adapter"]
            write_run(root / f"{i}-{seed}", values, gain=i - 3.0 * seed, domains=domains, recorded=False)
    return results(methods(find([root])))


def shown(found: Results, width: int, screen: io.StringIO) -> tuple[list[list[str]], list[str]]:
    """The table's rows, each with its cells, folded ones put together, and the lines below it."""
    print_table(Console(file=screen, width=width), found)
    lines = re.sub("\x1b\\[[0-9;]*m", "", screen.getvalue()).splitlines()
    rows = [["".join(part) for part in zip(*_cells(lines, "┃"), strict=True)]]
    for line in _cells(lines, "│"):
        rows.append(line) if line[-1] else rows.append(["".join(parts) for parts in zip(rows.pop(), line, strict=True)])
    below = lines[1 + max(i for i, line in enumerate(lines) if line.startswith("└")) :]
    assert not any("…" in line for line in lines)
    if isinstance(screen, Screen):
        assert all(len(line) <= width for line in lines[: -len(below) or None])
    return rows, below


def _cells(lines: list[str], rule: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(rule)[1:-1]] for line in lines if line.startswith(rule)]


def figures(found: Results, heads: list[str]) -> list[list[str]]:
    """What the columns of these heads are to have."""
    kept = {"".join(name.split()): name for name in found.columns}
    return [[found.shown(row.figures[kept[head]]) for head in heads if head in kept] for row in found.rows]


@pytest.mark.parametrize(("seeds", "uneven"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("domains", [DOMAINS, LONG])
def test_figures_are_whole_at_any_width_and_what_is_left_out_is_told(tmp_path, seeds, uneven, domains):
    found = written(tmp_path, seeds, uneven, domains)
    named = 2 if uneven else 1
    for width in (40, 60, 66, 72, 80, 90, 100, 160):
        (heads, *rows), below = shown(found, width, Screen())
        assert heads[0] == "method" and heads[-1] == "average" and ("seeds" in heads) == uneven
        assert [row[named:] for row in rows] == figures(found, heads[named:])
        assert [row[0].replace(" ", "") for row in rows] == [str(row.label).replace(" ", "") for row in found.rows]
        left = len(found.columns) - len(heads[named:])
        columns = "1 column is" if left == 1 else f"{left} columns are"
        assert [line.startswith(f"{columns} left out: ") and "--csv -" in line for line in below] == [True] * bool(left)
        room = width - sum(
            max(map(len, column)) + 3 for column in zip(heads[1:], *(row[1:] for row in rows), strict=True)
        )
        assert not left or room - 4 - METHOD < 3 + max(NAME, len("26.8 ± 6.3")), "no room for one more"


def test_a_terminal_of_80_columns_has_all_of_six_domains_of_one_seed(tmp_path):
    (heads, *_), below = shown(written(tmp_path), 80, Screen())
    assert heads == ["method", *DOMAINS, "average"] and below == []


def test_what_is_no_terminal_has_everything_on_lines_of_their_own(tmp_path, monkeypatch, capsys):
    """FORCE_COLOR keeps the colours in a pipe, and makes no terminal of it."""
    found = written(tmp_path, 2, True, tuple(f"domain_{i}_{'x' * 40}" for i in range(30)))
    rows, below = shown(found, 80, io.StringIO())
    assert (
        below == []
        and len(rows) == 1 + len(found.rows)
        and [row[0] for row in rows[1:]] == [r.label for r in found.rows]
    )
    assert [row[2:] for row in rows[1:]] == figures(found, rows[0][2:]) and len(rows[0]) == 2 + len(found.columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["compare", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b[" in out and "left out" not in out and all(name in out for name in found.columns)
    assert csv_text(found).count("\n") == 1 + len(found.rows) * len(found.columns)
