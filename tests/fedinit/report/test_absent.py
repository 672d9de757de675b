"""Runs without an evaluated round are no rows, a line names them, and rows come in an order that no machine changes."""

from __future__ import annotations

import json
import os
import platform
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from fedinit import cli
from fedinit.config.compose import compose_config
from fedinit.errors import RunFailed
from fedinit.report.formats import csv_text
from fedinit.report.page import render
from fedinit.report.runs.finding import find
from fedinit.report.runs.methods import methods
from fedinit.report.runs.results import results
from fedinit.runs import ended
from fedinit.runs.reporting import OpenRun
from fedinit.stopping import Stopped
from tests.support.recorded_runs import config, write_run


@pytest.fixture
def sweep(tmp_path) -> Path:
    """What a sweep leaves of which a part failed: a method that did, and a seed of another."""
    for method in ("fedit", "lora_fair"):
        for seed in (0, 1):
            write_run(tmp_path / f"{method}-s{seed}", config(strategy__name=method, seed=seed, rounds=2))
    failed = write_run(tmp_path / "0failed-s0", config(strategy__name="flora", rounds=2), reached=0)
    ended.note(failed, RunFailed("round 1: no usable update"))
    stopped = write_run(tmp_path / "stopped-s2", config(strategy__name="fedit", seed=2, rounds=2), reached=0)
    ended.note(stopped, KeyboardInterrupt())
    begun = write_run(tmp_path / "begun-s3", config(strategy__name="fedit", seed=3, rounds=2), reached=0)
    (begun / "ledger.jsonl").unlink()
    return tmp_path


def test_failed_runs_are_a_line_and_no_rows(sweep, capsys):
    assert cli.main(["compare", str(sweep)]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("In no row")]
    assert f"flora seed 0 in {sweep / '0failed-s0'}: failed, round 1: no usable update" in line
    assert f"fedit seed 2 in {sweep / 'stopped-s2'}: stopped" in line
    assert f"fedit seed 3 in {sweep / 'begun-s3'}: not begun" in line
    rows = [line.split()[1] for line in out.splitlines() if line.startswith("│") and "head" not in line]
    assert rows == ["fedit", "lora_fair"] and "Nothing is said" not in out and "not done" not in out
    found = results(methods(find([sweep])))
    assert found.even and [row.seeds for row in found.rows if not row.reference] == [(0, 1), (0, 1)]
    assert "flora" not in csv_text(found)


def test_the_page_says_it_too_and_draws_nothing_of_them(sweep):
    page = render(find([sweep]))
    assert "flora seed 0 in 0failed-s0: failed, round 1: no usable update" in page
    assert str(sweep) not in page.split("the whole configuration")[0]
    training = page[page.index('id="training"') : page.index('id="domains"')]
    assert "lora_fair" in training and "flora" not in training


def test_only_failed_runs_are_nothing_to_compare(sweep, capsys):
    assert cli.main(["compare", str(sweep / "0failed-s0")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "nothing to compare" in said.err and "no usable update" in said.err
    assert said.err.count("\n") == 1


def test_rows_of_a_folder_are_by_method_option_and_seed(tmp_path, monkeypatch):
    """Numbers as numbers, whatever the folders are called and whichever way the file system lists them."""
    options = [("lora_fair", 16), ("fedit", 16), ("fedit", 4), ("lora_fair", 4), ("fedit", None)]
    for i, (method, rank) in enumerate(options):
        values = config(strategy__name=method, adapter={"kind": "lora", "rank": rank}, rounds=1)
        write_run(tmp_path / f"{(7 * i) % 5}-s0", values, layers=1)
    expected = [("fedit", None), ("fedit", 4), ("fedit", 16), ("lora_fair", 4), ("lora_fair", 16)]
    walk = os.walk
    for listed in (walk, lambda path, **more: ((a, b[::-1], c) for a, b, c in walk(path, **more))):
        monkeypatch.setattr(os, "walk", listed)
        assert [(r.name, r.config["adapter"]["rank"]) for r in find([tmp_path])] == expected
    given = [tmp_path / name for name in ("3-s0", "0-s0", "4-s0")]
    assert [run.folder for run in find(given)] == given


def test_what_ended_a_run_is_there_until_it_goes_on(tmp_path):
    ended.note(tmp_path, None)
    assert not list(tmp_path.iterdir()) and ended.standing(tmp_path) == "not begun"
    ended.note(tmp_path, OSError(28, "No space left on device", "x"))
    assert ended.standing(tmp_path) == "failed, No space left on device (x)"
    ended.note(tmp_path, ValueError("a\nb"))
    assert ended.standing(tmp_path) == "failed, ValueError: a b"
    ended.forget(tmp_path)
    assert not list(tmp_path.iterdir())
    for damaged in ("", "[]", '{"failed": true}', "{"):
        (tmp_path / ended.FILE).write_text(damaged)
        assert ended.standing(tmp_path) == "not begun"


@pytest.mark.parametrize(("error", "said"), [(RunFailed("no reply"), "failed, no reply"), (Stopped(15), "stopped")])
def test_a_run_that_ends_before_its_end_notes_it_when_it_is_closed(tmp_path, error, said):
    opened = OpenRun(compose_config([]), cast(Any, SimpleNamespace(path=tmp_path)), [], Console(quiet=True))
    with pytest.raises(type(error)), closing(opened):
        raise error
    assert ended.standing(tmp_path) == said


def test_a_run_that_is_being_run_says_so(tmp_path):
    status = {"label": "x", "doing": "", "round": 0, "rounds": 2, "clients": 3, "since": 0.0, "pid": os.getpid()}
    (tmp_path / ".status.json").write_text(json.dumps({**status, "host": platform.node()}))
    assert ended.standing(tmp_path) == "being run"
    (tmp_path / ".status.json").write_text(json.dumps({**status, "host": platform.node(), "pid": 2**22 + 1}))
    assert ended.standing(tmp_path) == "stopped: its process is gone"


def test_a_run_without_its_tables_says_so_in_every_place(tmp_path, capsys):
    for method in ("fedit", "flora"):
        write_run(tmp_path / method, config(strategy__name=method, rounds=2), recorded=False)
    emptied = tmp_path / "flora" / "metrics.csv"
    header, *rows = [line.split(",") for line in emptied.read_text().splitlines()]
    lines = [dict(zip(header, map(float, row), strict=True)) | {"round": int(row[0])} for row in rows]
    emptied.write_text("")
    assert cli.main(["compare", str(tmp_path)]) == 0
    why = "done; neither its metrics.csv nor its metrics.jsonl has a round; resume=never with its words runs it anew."
    assert f"flora seed 0 in {tmp_path / 'flora'}: {why}" in capsys.readouterr().out
    (tmp_path / "flora" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["compare", str(tmp_path), "--markdown", str(tmp_path / "t.md")]) == 0
    why = "its metrics.csv has no whole rounds, so its figures are those of metrics.jsonl, which has 2."
    out = capsys.readouterr().out
    assert f"flora seed 0 in {tmp_path / 'flora'}: {why}" in out and "In no row" not in out
    assert why in render(find([tmp_path])) and "which has 2" in (tmp_path / "t.md").read_text()


@pytest.mark.parametrize("where", ["none", "server"])
def test_a_run_that_nobody_was_to_evaluate_says_so(tmp_path, capsys, where):
    folder = write_run(tmp_path / "run", config(evaluation={"where": where}))
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    first = header.split(",").index("accuracy")
    cut = [",".join("" if first <= i < first + 7 else cell for i, cell in enumerate(row.split(","))) for row in rows]
    (folder / "metrics.csv").write_text("\n".join([header, *cut]) + "\n")
    assert cli.main(["compare", str(folder)]) == 2
    told = capsys.readouterr().err
    assert ("done; evaluation=none scores no round" in told) == (where == "none")
