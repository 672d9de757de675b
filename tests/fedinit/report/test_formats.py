"""Names in tables for other programs are names there too."""

from __future__ import annotations

import csv

import pytest

from fedinit.report.formats import csv_text, latex
from fedinit.report.runs.methods import methods
from fedinit.report.runs.reading import read
from fedinit.report.runs.results import results
from tests.support.recorded_runs import config, write_run


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@a"])
def test_a_spreadsheet_computes_no_name_and_keeps_numbers(tmp_path, name):
    found = results(methods([read(write_run(tmp_path / "run", config(), domains=(name, "plain")))]))
    rows = list(csv.DictReader(csv_text(found).splitlines()))
    assert f"'{name}" in {row["column"] for row in rows} and name not in {row["column"] for row in rows}
    assert all(float(row["mean"]) > 0 for row in rows if row["mean"])


def test_latex_has_the_glyphs_of_a_name(tmp_path):
    found = results(methods([read(write_run(tmp_path / "run", config(), domains=("a<b>|c", "plain")))]))
    assert r"a\textless{}b\textgreater{}\textbar{}c" in latex(found)
