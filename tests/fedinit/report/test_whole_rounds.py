"""A run of one round: its axis has that round, and its seconds are not none."""

from __future__ import annotations

import re

import numpy as np

from fedinit.report.figures.curves import Axis, Series, curves
from fedinit.report.figures.frame import numbered
from fedinit.report.page import render
from fedinit.report.runs.reading import read
from fedinit.scores import Accuracy
from tests.support.recorded_runs import config, write_run


def test_one_round_alone_is_a_whole_number_on_its_axis():
    assert numbered(1.89, 2.11, most=8, whole=True).texts == ["2"]
    assert numbered(0.0, 3.0, most=8, whole=True).texts == ["0", "1", "2", "3"]


def test_a_short_run_took_some_time(tmp_path):
    folder = write_run(tmp_path / "run", config(rounds=1))
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    at = header.split(",").index("seconds")
    cells = [[*r.split(",")[:at], "0.04", *r.split(",")[at + 1 :]] for r in rows]
    (folder / "metrics.csv").write_text("\n".join([header, *map(",".join, cells)]) + "\n")
    assert re.search(r"seconds</dt>\s*<dd>0\.0\d", render([read(folder)]))


def test_no_accuracy_is_above_all() -> None:
    """A method that is right of all images stands at the upper edge, below room for its line."""
    always = [Series("one", np.array([1.0]), np.array([100.0]), 0)]
    for y, above in ((Accuracy.title, False), ("loss", True)):
        drawn = str(curves("t", "t", always, Axis("round", y)))
        assert ("100<" in drawn) and ("102<" in drawn) == above
