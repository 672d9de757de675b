"""What a sweep says of its runs."""

from __future__ import annotations

import io

from rich.console import Console

from fedinit.commands.sweep import tell
from fedinit.sweeps.outcome import Outcome


def told(*outcomes: Outcome, quiet: bool = False) -> tuple[int, str]:
    out, errors = io.StringIO(), Console(file=io.StringIO())
    code = tell(outcomes, len(outcomes), Console(file=out, quiet=quiet), errors)
    return code, out.getvalue()


def done(folder: str) -> Outcome:
    return Outcome("seed=0", {"folder": folder})


def test_those_that_are_done_make_a_table_also_where_others_failed():
    code, out = told(done("outputs/b/1-s0"), Outcome("seed=1", why="run failed: x"), done("outputs/my runs/2-s0"))
    assert code == 1 and out.endswith("\nthe table: fedinit compare outputs/b 'outputs/my runs'\n")
    assert told(done("outputs/b/1-s0"))[1].endswith("the table: fedinit compare outputs/b\n")


def test_no_table_of_nothing_and_none_that_nobody_asked_to_see():
    assert "table" not in told(Outcome("seed=1", why="run failed: x"))[1]
    assert "table" not in told(Outcome("seed=0"))[1], "a preview"
    assert "table" not in told(done("outputs/b/1-s0"), quiet=True)[1]
