"""Names in tables for other programs are names there too."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import pytest

from fedinit.report.formats import csv_text, latex, markdown
from fedinit.report.page import render
from fedinit.report.panels.results import panel
from fedinit.report.runs.methods import methods
from fedinit.report.runs.reading import read
from fedinit.report.runs.results import AVERAGE, Results, results
from tests.support.recorded_runs import DOMAINS, config, write_run


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@a"])
def test_a_spreadsheet_computes_no_name_and_keeps_numbers(tmp_path, name):
    found = results(methods([read(write_run(tmp_path / "run", config(), domains=(name, "plain")))]))
    rows = list(csv.DictReader(csv_text(found).splitlines()))
    assert f"'{name}" in {row["column"] for row in rows} and name not in {row["column"] for row in rows}
    assert all(float(row["mean"]) > 0 for row in rows if row["mean"])


def test_latex_has_the_glyphs_of_a_name(tmp_path):
    found = results(methods([read(write_run(tmp_path / "run", config(), domains=("a<b>|c", "plain")))]))
    assert r"a\textless{}b\textgreater{}\textbar{}c" in latex(found)


@pytest.mark.parametrize("name", ['ske"tch\n‹x', "a\r\nb", "c\rd", "e\u2028f", "g\x0bh", "i\x85j", "\n"])
def test_a_name_with_a_lines_end_in_it_keeps_its_figures(tmp_path, name):
    """It is looked up as it is, and printable only where it is printed."""
    run = read(write_run(tmp_path / "run", config(rounds=2), domains=(name, "plain")))
    found = results(methods([run]))
    assert run.domains == (name, "plain") and found.columns == (name, "plain", AVERAGE)
    alone, row = found.rows
    assert alone.figures[name].mean == row.figures[name].mean - 8
    rows = list(csv.DictReader(io.StringIO(csv_text(found), newline="")))
    assert sum(bool(r["mean"]) for r in rows) == 6
    for text in (markdown(found), latex(found)):
        assert found.show(alone.figures[name].mean) in text
    assert found.show(alone.figures[name].mean) in render([run])


def test_a_difference_that_is_shown_as_zero_has_no_sign():
    found = SimpleNamespace(show=lambda value: f"{value:.1f}")
    said = [Results.signed(found, value) for value in (-0.03, 0.04, 0.0, -0.06, 12.0)]  # type: ignore[arg-type]
    assert said == ["0.0", "0.0", "0.0", "−0.1", "+12.0"]
    found = SimpleNamespace(show=lambda value: f"{value:.1e}")
    assert [Results.signed(found, value) for value in (0.0, -2e-3)] == ["0.0e+00", "−2.0e-03"]  # type: ignore[arg-type]


def test_a_run_that_is_not_done_is_shown_everywhere_and_judged_nowhere(tmp_path):
    """Its figure is of another round, and among those that are tested it would weaken what is said of the others."""

    def table(reached: int | None) -> Results:
        place = tmp_path / str(reached)
        runs = [
            read(write_run(place / f"{name}-{seed}", config(strategy={"name": name}, seed=seed), gain=gain, reached=at))
            for name, gain, at in (("fedit", 0.0, None), ("lora_fair", 3.0, None), ("flora", 9.0, reached))
            for seed in (0, 1)
        ]
        return results(methods(runs))

    found = table(2)
    assert found.best and found.best.label == "lora_fair" and set(found.against) == {"fedit"}
    assert len([row for row in found.rows if not row.reference]) == 3
    rounds = "seed 0: round 2 of 5, seed 1: round 2 of 5"
    for text in (markdown(found), latex(found).replace("\\_", "_")):
        assert f"Not done, so shown as far as it came and not judged: flora, {rounds}." in text
    rows = list(csv.DictReader(csv_text(found).splitlines()))
    assert {row["method"] for row in rows if row["not_done"] == rounds} == {"flora"}
    assert all(row["best"] == "false" and not row["p_holm"] for row in rows if row["method"] == "flora")
    assert any(row["best"] == "true" for row in rows if row["method"] == "lora_fair")
    done = table(None)
    assert done.best and done.best.label == "flora" and "Not done" not in markdown(done), "the control"


def test_a_run_that_is_not_done_is_not_set_against_a_head_of_all_rounds(tmp_path):
    run = read(write_run(tmp_path / "run", config(), reached=2))
    alone = {"accuracy": 99.0, "accuracy_by_domain": dict.fromkeys(DOMAINS, 99.0)}
    (run.folder / ".head_alone.json").write_text(json.dumps(alone))
    done = read(write_run(tmp_path / "done", config()))
    assert "points from the head alone" in str(panel(methods([done])).body), "the control"
    page = str(panel(methods([run])).body)
    assert "99.0" in page and "from the head alone" not in page and "is better than" not in page
