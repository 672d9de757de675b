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
from tests.support.recorded_runs import DOMAINS, config, write_run, write_table


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@a"])
def test_a_spreadsheet_computes_no_name_and_keeps_numbers(tmp_path, name):
    found = results(methods([read(write_run(tmp_path / "run", config(), domains=(name, "plain")))]))
    rows = list(csv.DictReader(csv_text(found).splitlines()))
    assert f"'{name}" in {row["column"] for row in rows} and name not in {row["column"] for row in rows}
    assert all(float(row["mean"]) > 0 for row in rows if row["mean"])


def test_latex_has_the_glyphs_of_a_name(tmp_path):
    found = results(methods([read(write_run(tmp_path / "run", config(), domains=("a<b>|c", "plain")))]))
    assert r"a\textless{}b\textgreater{}\textbar{}c" in latex(found)


RARE = [pytest.param(name, marks=pytest.mark.slow) for name in ("a\r\nb", "c\rd", "g\x0bh", "i\x85j", "\n")]


@pytest.mark.parametrize("name", ['ske"tch\n‹x', "e\u2028f", *RARE])
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
        assert f"As far as it came, and not judged: flora, {rounds}." in text
    rows = list(csv.DictReader(csv_text(found).splitlines()))
    assert {row["method"] for row in rows if row["early"] == rounds} == {"flora"}
    assert all(row["best"] == "false" and not row["p_holm"] for row in rows if row["method"] == "flora")
    assert any(row["best"] == "true" for row in rows if row["method"] == "lora_fair")
    done = table(None)
    assert done.best and done.best.label == "flora" and "not judged" not in markdown(done), "the control"


def test_a_run_that_is_not_done_is_not_set_against_a_head_of_all_rounds(tmp_path):
    run = read(write_run(tmp_path / "run", config(), reached=2))
    alone = {"accuracy": 99.0, "accuracy_by_domain": dict.fromkeys(DOMAINS, 99.0)}
    (run.folder / ".head_alone.json").write_text(json.dumps(alone))
    done = read(write_run(tmp_path / "done", config()))
    assert "points from the head alone" in str(panel(methods([done])).body), "the control"
    page = str(panel(methods([run])).body)
    assert "99.0" in page and "from the head alone" not in page and "is better than" not in page


def test_a_domain_that_is_called_average_has_its_own_figures(tmp_path):
    domains = ("average", "photo")
    runs = [
        read(write_run(tmp_path / name, config(strategy={"name": name}), domains=domains))
        for name in ("fedit", "flora")
    ]
    found = results(methods(runs))
    row = next(row for row in found.rows if not row.reference)
    own = float(runs[0].metrics.numbers("accuracy_average")[-1])
    assert row.figures["average"].mean == own != row.figures[AVERAGE].mean == runs[0].metrics.numbers("accuracy")[-1]
    assert [found.title(column) for column in found.columns] == ["average", "photo", "average over domains"]
    rows = [r for r in csv.DictReader(csv_text(found).splitlines()) if r["method"] == "fedit"]
    assert [r["column"] for r in rows] == ["average", "photo", "average over domains"]
    for text in (markdown(found), latex(found), str(panel(methods(runs)).body)):
        assert text.count("average over domains") >= 1
    whole = results(methods([read(write_run(tmp_path / "usual", config()))]))
    assert whole.title(whole.columns[-1]) == "average", "the control"


def test_no_mean_is_over_figures_of_several_rounds(tmp_path):
    """A seed that was stopped, or whose tables were cut short, is left out of it, and named."""
    for case in ("stopped", "cut"):
        folders = [tmp_path / case / str(seed) for seed in range(3)]
        for seed, folder in enumerate(folders):
            write_run(folder, config(seed=seed), reached=2 if case == "stopped" and seed == 2 else None)
        if case == "cut":
            table = folders[2] / "metrics.csv"
            table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
        found = results(methods([read(folder) for folder in folders]))
        row = found.rows[-1]
        assert row.judged and row.seeds == (0, 1) and row.early == {2: (2 if case == "stopped" else 4, 5)}
        told = f"lora_fair, seed 2: round {row.early[2][0]} of 5."
        assert f"In no mean, as it is not at its end: {told}" in markdown(found).replace("\\", "")
        alone = results(methods([read(folders[2])]))
        assert not alone.rows[-1].judged and f"As far as it came, and not judged: {told}" in latex(alone)


def test_what_is_beyond_noise_is_not_the_best_though_it_is_shown_alike(tmp_path):
    """With a digit less than they differ by."""
    for name, least in (("fedit", 0.0), ("flora", -0.012)):
        for seed in range(3):
            folder = write_run(tmp_path / f"{name}{seed}", config(strategy={"name": name}, seed=seed))
            header, *rows = list(csv.reader((folder / "metrics.csv").open()))
            rows[-1][header.index("accuracy")] = str(70.03 + seed + least * (1 + 0.01 * seed))
            write_table(folder / "metrics.csv", header, rows)
    runs = [read(tmp_path / f"{name}{seed}") for name in ("fedit", "flora") for seed in range(3)]
    found = results(methods(runs))
    one, other = (row for row in found.rows if not row.reference)
    assert found.show(one.figures[AVERAGE].mean) == found.show(other.figures[AVERAGE].mean)
    assert found.beyond_noise(other) and found.is_best(one, AVERAGE)
    assert not found.is_best(other, AVERAGE) and not found.also_best
