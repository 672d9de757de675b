"""A head that was trained alone is no method, and where it is better than all of them that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedinit import cli
from fedinit.report.page import render
from fedinit.report.panels.results import heads_ahead
from fedinit.report.runs.finding import find
from fedinit.report.runs.methods import methods
from fedinit.report.runs.results import AVERAGE, results
from tests.support.recorded_runs import config, write_run


def write(root: Path, method: str, seed: int, ahead: float) -> Path:
    """A run whose head alone is so many points above it."""
    folder = write_run(root / f"{method}-s{seed}", config(strategy__name=method, seed=seed, rounds=2), layers=1)
    summary = json.loads((folder / "summary.json").read_text())
    summary["head_alone"]["accuracy"] = summary["accuracy"] + ahead
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def said(*folders: Path) -> list[str]:
    return heads_ahead(results(methods(find(folders))))


@pytest.mark.parametrize("places", ["terminal", "markdown", "latex", "page"])
def test_it_is_said_in_every_place(tmp_path, capsys, places):
    for method in ("fedit", "lora_fair"):
        for seed, ahead in enumerate((1.9, 2.0, 2.1)):
            write(tmp_path, method, seed, ahead)
    if places == "page":
        text = render(find([tmp_path]))
    else:
        words = [] if places == "terminal" else [f"--{places}", "-"]
        assert cli.main(["compare", str(tmp_path), *words]) == 0
        text = capsys.readouterr().out
    text = text.replace("\\", "")
    assert "head alone is better than the best method, " in text and "(+2.0 ± 0.2)" in text


def test_it_is_said_of_one_method_and_over_the_seeds_that_both_have(tmp_path):
    one = write(tmp_path, "fedit", 0, 1.0)
    assert len(said(one)) == 1 and said(one)[0].startswith("head alone is better than fedit: ")
    assert "best method" not in said(one)[0] and "(+1.0)" in said(one)[0]
    other = write(tmp_path, "lora_fair", 0, 1.0), write(tmp_path, "lora_fair", 1, 9.0)
    assert " over seed 0: " in " ".join(said(one, *other))


@pytest.mark.parametrize("ahead", [-1.0, 0.0, 1e-6])
def test_a_head_that_is_no_better_as_it_is_shown_is_not_mentioned(tmp_path, ahead):
    assert said(write(tmp_path, "fedit", 0, ahead)) == []


def test_of_errors_the_smaller_one_is_ahead(tmp_path):
    folder = write(tmp_path, "fedit", 0, -1.0)
    metrics = folder / "metrics.csv"
    metrics.write_text(metrics.read_text().replace("accuracy", "recovery_error"))
    summary = folder / "summary.json"
    summary.write_text(summary.read_text().replace("accuracy", "recovery_error"))
    assert len(said(folder)) == 1


def test_a_stopped_run_has_the_row_of_its_reference_which_was_done_before_it(tmp_path):
    """The reference comes first; until the run is done a file of its own has what it scored."""
    folder = write(tmp_path, "fedit", 0, ahead=1.0)
    alone = json.loads((folder / "summary.json").read_text())["head_alone"]
    (folder / "DONE.json").unlink()
    assert [row.label for row in results(methods(find([folder]))).rows] == ["fedit"]
    (folder / ".head_alone.json").write_text(json.dumps(alone))
    found = results(methods(find([folder])))
    assert [row.label for row in found.rows] == ["head alone", "fedit"]
    assert found.rows[0].figures[AVERAGE].mean == alone["accuracy"]
    for damaged in ("", "[]", '{"accuracy": 1}'):
        (folder / ".head_alone.json").write_text(damaged)
        assert [row.label for row in results(methods(find([folder]))).rows] == ["fedit"]
