"""Damaged values in a run's record cost their figure or their section, never the report or the comparison."""

from __future__ import annotations

import html
import itertools
import json
import os
import random
import re
import socket
import sys
import warnings
from pathlib import Path

import pytest

from fedinit import cli
from fedinit.errors import InputError
from fedinit.report import page as pages
from fedinit.report.page import render
from fedinit.report.panels import cost
from fedinit.report.panels.panel import Panel
from fedinit.report.panels.results import judged
from fedinit.report.panels.sources import SOURCES, source_of
from fedinit.report.runs.finding import find
from fedinit.report.runs.methods import methods
from fedinit.report.runs.reading import RecordedRun, read
from fedinit.report.runs.results import AVERAGE, last_scores, results
from tests.support.recorded_runs import config, write_run
from tests.support.small import slow, slow_unless

TABLES = ("metrics.csv", "clients.csv", "record/layers.csv", "record/spectra.csv", "record/timing.csv")
OBJECTS = ("summary.json", "record/partition.json", "record/provenance.json", "made_of.json")
TEXTS = ("", "nan", "inf", "-inf", "-1", "1e400", "1e308", "abc", "²", "99999999999999999999", "1_0")
posix = pytest.mark.skipif(sys.platform == "win32", reason="links and sockets are not so there")
VALUES = (None, [], {}, -1, 1e308, float("nan"), float("inf"), True, "text", [1], {"a": 1}, 10**400)


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_run(tmp_path / "run", config(rounds=3), domains=("plain", "noise"), classes=("a", "b"))


def shown(folder: Path) -> str:
    """The page, with the table's sentences made too, and numpy's warnings errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run: RecordedRun = read(folder)
        judged(results(methods([run])))
        return render([run])


@pytest.mark.parametrize("value", ["inf", "text", *slow("-inf", "nan", "1e308", "²")])
def test_a_damaged_number_of_a_table_is_left_out(folder, value):
    for name in TABLES:
        path = folder / name
        if not path.is_file():
            continue
        header, first, *rest = path.read_text().splitlines()
        damaged = ",".join([first.split(",")[0], *[value] * header.count(",")])
        path.write_text("\n".join([header, damaged, *rest]) + "\n")
    assert "</html>" in shown(folder)


@pytest.mark.parametrize("value", [None, "text", [1], float("nan"), float("inf"), -1, True])
@pytest.mark.parametrize("place", ["count", "client", "number", "by_domain", "classes"])
def test_a_damaged_partition_is_none(folder, place, value):
    path = folder / "record" / "partition.json"
    values = json.loads(path.read_text())
    if place == "count":
        values["clients"][0]["train"][0] = value
    elif place == "client":
        values["clients"][0] = value
    elif place == "number":
        values["clients"][0]["client"] = value
    elif place == "by_domain":
        values["test_by_domain"] = {"plain": value}
    else:
        values["classes"] = [value]
    path.write_text(json.dumps(values))
    assert read(folder).partition is None


def test_a_damaged_partition_is_said(folder):
    path = folder / "record" / "partition.json"
    path.write_text(path.read_text().replace('"train": [', '"train": [Infinity, ', 1))
    assert "What the run recorded is damaged, so it is left out." in shown(folder)


def test_a_section_that_cannot_be_made_is_left_out_alone(folder, monkeypatch, caplog):
    def panel(_: object) -> Panel:
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr(pages, "PANELS", (panel, *pages.PANELS[1:]))
    said = shown(folder)
    assert "damaged: cannot convert float infinity to integer." in said and 'id="clients"' in said
    assert "is left out: cannot convert float infinity" in caplog.text


def test_a_section_that_is_left_out_has_its_title_and_names_its_files(folder, tmp_path, monkeypatch):
    """Of several runs, the damaged one alone."""
    other = write_run(tmp_path / "whole", config(seed=1, rounds=3), domains=("plain", "noise"), classes=("a", "b"))

    def made(shown):
        if any(run.seed == 0 for method in shown for run in method.runs):
            raise OverflowError("too large")

    made.__module__ = cost.panel.__module__
    monkeypatch.setattr(pages, "PANELS", (made, *pages.PANELS[:2]))
    said = render([read(folder), read(other)])
    assert '<h2 id="cost-title">Time, bytes, memory</h2>' in said and '<a href="#cost">Time, bytes, memory</a>' in said
    assert "is damaged, in record/timing.csv or metrics.csv or summary.json of run: too large." in said


def test_sections_are_called_the_same_where_they_are_left_out(folder):
    page = render([read(folder)])
    headings = dict(re.findall(r'<h2 id="(\w+)-title">(.*?)</h2>', page))
    # Every section is listed; that on privacy and bad clients is there for runs that have any.
    assert headings == {name: source.title for name, source in SOURCES.items() if name != "trust"}
    assert set(SOURCES) == {make.__module__.rpartition(".")[2] for make in pages.PANELS}
    assert source_of("bad_clients").title == "Bad clients"


@pytest.mark.parametrize("mutations", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_no_mutation_of_a_record_raises(mutations, folder, caplog):
    draw = random.Random(0)
    for _ in range(mutations):
        name = draw.choice([name for name in (*TABLES, *OBJECTS) if (folder / name).is_file()])
        path, content = folder / name, (folder / name).read_text()
        path.write_text(mutated(draw, content, name))
        try:
            shown(folder)
        except InputError:  # one line, of a run whose data cannot be told
            pass
        path.write_text(content)
    assert "left out" not in caplog.text, "damage got past where the files are read"


def mutated(draw: random.Random, content: str, name: str) -> str:
    if name.endswith(".csv"):
        rows = [line.split(",") for line in content.splitlines()]
        row = draw.choice(rows)
        row[draw.randrange(len(row))] = draw.choice(TEXTS)
        return "\n".join(map(",".join, rows)) + "\n"
    values = json.loads(content)
    at = values
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = draw.choice(keys)
        if not isinstance(at[key], dict | list) or not at[key] or draw.random() < 0.3:
            at[key] = draw.choice(VALUES)
            return json.dumps(values)
        at = at[key]


def test_the_table_takes_the_last_round_whose_average_is_a_number(folder):
    path, run = folder / "metrics.csv", read(folder)
    before = last_scores(run)
    *rows, last = path.read_text().splitlines()
    at = rows[0].split(",").index("accuracy")
    cells = last.split(",")
    path.write_text("\n".join([*rows, ",".join([*cells[:at], "inf", *cells[at + 1 :]])]) + "\n")
    round, figures = last_scores(read(folder))
    assert (before[0], round) == (3, 2) and figures[AVERAGE] == float(rows[-1].split(",")[at])


def in_its_place(file: Path, kind: str) -> str:
    """Put something in the place of a file; what it is."""
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(file))
    elif kind == "round":
        file.symlink_to(file.name)
        return "is a link that leads back to itself"
    elif kind == "astray":
        file.symlink_to("nowhere")
        return f"is a link to {file.with_name('nowhere')}, which is not there"
    return f"is a {kind}"


@posix
@pytest.mark.parametrize(
    ("name", "kind"),
    slow_unless(
        lambda name, kind: (name, kind) in [("summary.json", "folder"), ("DONE.json", "astray")],
        itertools.product(("summary.json", "DONE.json"), ("folder", "socket", "round", "astray")),
    ),
)
def test_why_a_run_counts_as_not_done_is_said(folder, name, kind, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    what = in_its_place(folder / name, kind)
    for command in ("compare", "report"):
        assert cli.main([command, str(folder)]) == 0
        said = capsys.readouterr().out
        assert f"{folder}: its {name} {what}" in said and "so that it counts as not done; " in said
    assert f"run: its {name} {what}" in html.unescape((folder / "report.html").read_text())


@pytest.mark.parametrize(("text", "why"), [("{", "is no JSON"), ("{}", "has not what a run writes"), (None, "is not")])
def test_of_a_summary_too_that_is_a_file_or_gone(folder, text, why, capsys):
    (folder / "summary.json").unlink()
    if text is not None:
        (folder / "summary.json").write_text(text)
    assert cli.main(["compare", str(folder)]) == 0
    assert f"{folder}: its summary.json {why}" in capsys.readouterr().out
    (folder / "DONE.json").unlink()  # the control: a run that goes on has neither
    assert cli.main(["compare", str(folder)]) == 0 and "counts as not done" not in capsys.readouterr().out


@posix
@pytest.mark.parametrize("kind", ["folder", "astray"])
def test_settings_that_are_no_file_are_said_to_be(folder, kind, tmp_path, capsys, caplog):
    what = in_its_place(folder / "config.yaml", kind)
    for place in (folder, folder.parent):
        assert cli.main(["compare", str(place)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith(f"error: {folder / 'config.yaml'}: ")
        assert what in said or "is a directory" in said
    write_run(tmp_path / "other", config(rounds=3))
    assert cli.main(["compare", str(folder.parent)]) == 0
    assert f"left out: {folder / 'config.yaml'}: {what}" in caplog.text


@posix
def test_the_warning_of_a_section_names_the_link_that_it_is_of(folder, tmp_path, caplog):
    in_its_place(folder / "ledger.jsonl", "round")
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert "is left out: " in caplog.text and "(in ledger.jsonl)" in caplog.text and "()" not in caplog.text


def test_a_warning_without_a_file_has_no_empty_parentheses(folder, monkeypatch, caplog):
    def panel(_: object) -> Panel:
        raise OverflowError("too large")

    monkeypatch.setattr(pages, "PANELS", (panel,))
    shown(folder)
    assert caplog.messages == ["the section Test damage of the report is left out: too large"]


@pytest.mark.parametrize(
    "name", ["config.yaml", "ledger.jsonl", *slow("summary.json", "DONE.json", "record/provenance.json")]
)
def test_what_becomes_of_a_damaged_file_is_what_docs_report_says(folder, name):
    (folder / name).unlink() if name == "DONE.json" else (folder / name).write_text("{\n")
    if name == "config.yaml":
        with pytest.raises(InputError, match="not the folder of a run"):
            read(folder)
        with pytest.raises(InputError, match="no run in it"):
            find([folder.parent])
        return
    run, page = read(folder), shown(folder)
    assert (run.summary is None) == (name in ("summary.json", "DONE.json"))
    assert ("unreadable line" in page) == (name == "ledger.jsonl")
    assert ("Command and versions were not recorded." in page) == (name == "record/provenance.json")
