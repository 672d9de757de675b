"""Averages over different domains are not shown as if they were comparable, in any form of the table."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest

from fedinit import cli
from fedinit.report.page import render
from fedinit.report.panels.results import panel
from fedinit.report.runs.finding import find
from fedinit.report.runs.methods import methods
from fedinit.report.runs.reading import read
from fedinit.report.runs.results import results
from tests.support.recorded_runs import DOMAINS, config, unscore, write_run

FORMS = ("csv", "markdown", "latex")


@pytest.fixture
def sweep(tmp_path):
    """Two methods over two seeds; lora_fair is better by 2 points on every domain."""
    for method, gain in (("fedit", 0.0), ("lora_fair", 2.0)):
        for seed in (0, 1):
            write_run(_of(tmp_path, method, seed), config(strategy__name=method, seed=seed), gain=gain, recorded=False)
    return tmp_path


def _of(root, method, seed):
    return root / "runs" / f"{method}-s{seed}"


def _compared(root, capsys) -> dict[str, str]:
    """The terminal's text, that of every form, and the page's."""
    options = [word for name in (*FORMS, "report") for word in (f"--{name}", str(root / name))]
    assert cli.main(["compare", str(root / "runs"), *options]) == 0
    return {"terminal": capsys.readouterr().out, **{name: (root / name).read_text() for name in (*FORMS, "report")}}


def _averages(text: str) -> dict[str, dict[str, str]]:
    rows = csv.DictReader(text.splitlines())
    return {row["method"]: row for row in rows if row["column"] == "average"}


def test_seeds_of_other_domains_are_told_in_every_form(sweep, capsys):
    whole = _compared(sweep, capsys)
    assert all("Not scored" not in text and "seed to seed" not in text for text in whole.values()), "the control"
    assert {row["not_scored"] for row in _averages(whole["csv"]).values()} == {""}
    for method in ("fedit", "lora_fair"):
        unscore(_of(sweep, method, 1), "noise", "texture")
    told = _compared(sweep, capsys)
    methods_said = "fedit and lora_fair, seed 1: noise, texture; the average is without them."
    for name in ("terminal", "report"):
        assert methods_said in told[name] and "which is of other domains from seed to seed." in told[name]
    assert methods_said.replace("_", r"\_") in told["markdown"].split("Test accuracy")[1]
    assert methods_said.replace("_", r"\_") in told["latex"].split(r"\end{tabular}")[1]
    rows = _averages(told["csv"])
    assert rows["fedit"]["not_scored"] == "seed 1: noise, texture" and rows["fedit"]["seeds"] == "0 1"
    assert "lora_fair has the best average, " in told["terminal"] and rows["lora_fair"]["best"] == "true"
    (noise,) = [r for r in csv.DictReader(told["csv"].splitlines()) if (r["method"], r["column"]) == ("fedit", "noise")]
    assert noise["seeds"] == "0"


def test_methods_are_compared_over_the_seeds_that_they_have_the_same_domains_of(sweep, capsys):
    """Without its worst domains fedit has the better average of seed 1."""
    unscore(_of(sweep, "fedit", 1), *DOMAINS[3:])
    told = _compared(sweep, capsys)
    assert "lora_fair has the best average over seed 0, which all have over the same domains" in told["terminal"]
    assert "Nothing is said of noise for fedit (−2.0)" in told["terminal"]
    rows = _averages(told["csv"])
    assert float(rows["fedit"]["mean"]) > float(rows["lora_fair"]["mean"]) and rows["fedit"]["best"] == "false"
    assert "no average is marked as the best, since these or their domains differ" in told["markdown"]
    unscore(_of(sweep, "fedit", 0), *DOMAINS[3:])
    out = _compared(sweep, capsys)["terminal"]
    assert "no seed that all have a run of, over the same domains" in out and "best average" not in out


def test_a_head_alone_of_other_domains_is_not_set_against_the_method(sweep, capsys):
    summary = _of(sweep, "lora_fair", 0) / "summary.json"
    figures = json.loads(summary.read_text())
    by_domain = dict.fromkeys(DOMAINS, 99.0)
    for domains, better in ((DOMAINS, True), (DOMAINS[:2], False)):
        alone = {"accuracy": 99.0, "accuracy_by_domain": {name: by_domain[name] for name in domains}}
        summary.write_text(json.dumps({**figures, "head_alone": alone}))
        assert cli.main(["compare", str(summary.parent)]) == 0
        assert ("head alone is better than lora_fair" in capsys.readouterr().out) == better
    assert not results(methods(find([summary.parent]))).even


def test_a_run_that_is_not_done_says_it_too(tmp_path, capsys):
    write_run(_of(tmp_path, "fedit", 0), config(strategy__name="fedit"), reached=2, recorded=False)
    unscore(_of(tmp_path, "fedit", 0), "thick", round=1)
    assert "Not scored" not in _compared(tmp_path, capsys)["terminal"]  # the control: the table is of round 2
    unscore(_of(tmp_path, "fedit", 0), "thick")
    told = _compared(tmp_path, capsys)["terminal"]
    assert "Not scored in fedit, seed 0: thick; the average is without it." in told


def test_drawing_images_is_reckoned_over_the_domains_that_were_scored(tmp_path):
    folder = write_run(tmp_path / "run", config())
    whole = render([read(folder)])
    unscore(folder, "noise", "texture")
    run = read(folder)
    page = render([run])
    assert "what drawing 2,184 test images moves" in whole and "what drawing 1,456 test images moves" in page
    assert "±nan" not in page and "from the head alone. That is beyond ±" in page
    summary = dict(run.summary or {})
    summary["head_alone"] = {"accuracy": 50.0, "accuracy_by_domain": {"plain": 50.0}}
    assert "from the head alone" not in render([dataclasses.replace(run, summary=summary)])


def test_nothing_is_reckoned_of_images_that_a_share_of_the_clients_or_a_failed_one_had(tmp_path):
    """Which of them were judged is not recorded, and all of them are more: the ± was too small."""
    run = read(write_run(tmp_path / "run", config(rounds=2, evaluation={"participation": 1.0}), layers=1))
    share = dataclasses.replace(run, config=run.config | {"evaluation": {"participation": 0.5}})
    failed = {"left_out": {"evaluation_failed": {"0": 1}}}
    lost = dataclasses.replace(run, summary={**(run.summary or {}), **failed})
    alone = dataclasses.replace(run, summary={**(run.summary or {}), "head_alone": {**run.head_alone, **failed}})
    for odd in (share, lost, alone):
        body = panel(methods([odd])).body
        assert "One seed says nothing of noise" in body and "what drawing" not in body
    assert "what drawing 2,184 test images moves" in panel(methods([run])).body  # the control


def test_figures_of_validation_images_are_called_so_in_every_form(tmp_path, capsys):
    for data, one, other in (({}, "test", "validation"), ({"validation_fraction": 0.2}, "validation", "test")):
        values = config(rounds=2, data={"name": "digits", **data})
        write_run(_of(tmp_path / one, "fedit", 0), values, layers=1)
        for form, text in _compared(tmp_path / one, capsys).items():
            told = text.lower()
            assert (f"{one} accuracy" in told or form == "csv") and f"{other} accuracy" not in told
            assert form != "report" or (f"{one} images" in told and f"{other} images" not in told)
