"""Averages over different domains are not compared as if they were of the same, in whatever form they are shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fedinit.cli import main
from fedinit.report.formats import csv_text, latex, markdown
from fedinit.report.page import render
from fedinit.report.panels.results import judged, unscored
from fedinit.report.runs.methods import methods
from fedinit.report.runs.reading import read
from fedinit.report.runs.results import AVERAGE, Results, results
from tests.support.recorded_runs import config, write_run

DOMAINS = ("plain", "noise")


def without(folder: Path, domain: str) -> None:
    """Take the scores of a domain out of a run, as one whose clients did not give them."""
    table = list(csv.reader((folder / "metrics.csv").read_text().splitlines()))
    at, average = table[0].index(f"accuracy_{domain}"), table[0].index("accuracy")
    other = next(i for i, name in enumerate(table[0]) if name.startswith("accuracy_") and i != at)
    for row in table[1:]:
        row[at], row[average] = "", row[other]
    (folder / "metrics.csv").write_text("".join(",".join(row) + "\n" for row in table))
    summary = json.loads((folder / "summary.json").read_text())
    del summary["head_alone"]
    (folder / "summary.json").write_text(json.dumps({**summary, "not_scored": [domain]}))


@pytest.fixture(params=[(), ("noise",), ("noise", "plain")], ids=["all", "one of two", "each another"])
def sweep(request, tmp_path) -> tuple[Path, bool]:
    """A folder of two methods with two seeds, and whether a seed is without a domain that another has."""
    for strategy in ("fedit", "lora_fair"):
        for seed in (0, 1):
            values = config(rounds=2, seed=seed, strategy={"name": strategy})
            folder = write_run(tmp_path / f"{strategy}-{seed}", values, domains=DOMAINS, recorded=False)
            if seed < len(request.param):
                without(folder, request.param[seed])
    return tmp_path, bool(request.param)


def found_in(root: Path) -> Results:
    return results(methods([read(folder) for folder in sorted(root.iterdir())]))


def test_no_method_is_called_the_best_over_different_domains(sweep):
    root, apart = sweep
    found = found_in(root)
    assert found.mixed is apart and (found.best is None) is apart
    assert any("is called the best one: the averages are over different domains" in said for said in judged(found)) is (
        apart
    )
    assert any(found.is_best(row, AVERAGE) for row in found.rows) is not apart


def test_every_form_names_the_domains(sweep, capsys):
    root, apart = sweep
    found = found_in(root)
    said = "Not scored in fedit, seed 0: noise; the average is without it."
    texts = [render([read(folder) for folder in sorted(root.iterdir())]), markdown(found), latex(found)]
    capsys.readouterr()
    assert main(["compare", str(root)]) == 0
    texts.append(capsys.readouterr().out)
    assert [said in text for text in texts] == [apart] * 4
    assert bool(unscored(found)) is apart
    rows = [row for row in csv.DictReader(csv_text(found).splitlines()) if row["column"] == AVERAGE]
    assert all(("noise" in row["not_scored"]) is apart for row in rows if not row["method"].startswith("head"))


def test_the_same_domains_everywhere_are_compared(tmp_path):
    """The control: a domain that no run has a score of makes no average another."""
    for strategy in ("fedit", "lora_fair"):
        values = config(rounds=2, strategy={"name": strategy})
        without(write_run(tmp_path / strategy, values, domains=DOMAINS, recorded=False), "noise")
    found = found_in(tmp_path)
    assert not found.mixed and found.best is not None and len(unscored(found)) == 2
