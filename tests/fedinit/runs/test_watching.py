"""fedinit watch: another process's run by its files, as far as it came, until it ends or its process is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedinit
from fedinit import cli
from fedinit.report.runs.reading import read
from fedinit.runs import status, watching
from fedinit.runs.observer import Roster
from fedinit.runs.progress import shown
from fedinit.runs.status import StatusObserver, status_of
from tests.support.recorded_runs import config, write_run
from tests.support.small import WORDS

SHORT = (*WORDS, "client.max_steps=1", "engine.lanes=1")


@pytest.fixture
def begun(tmp_path) -> Path:
    """A run that came to round 2 of 5 and that this process is at."""
    folder = write_run(tmp_path / "runs" / "a", config(), reached=2, recorded=False)
    observer = StatusObserver(folder, "lora_fair")
    observer.started(5, Roster(examples=dict.fromkeys(range(8), 1), class_names=(), domain_names=()))
    return folder


def test_the_files_say_what_the_run_itself_shows(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("fedinit.runs.progress.shown", lambda report: seen.append(shown(report)) or seen[-1])
    run = fedinit.run(*SHORT, "evaluation.every=2", "init=eva", f"output_dir={tmp_path}")
    told = watching.rounds_of(read(run.folder))
    assert [r.number for r in told] == [0, 1, 2] and len(seen) == 3
    for ours, own in zip(told, seen, strict=True):
        assert ours.seconds == pytest.approx(own.seconds, abs=1e-3)
        assert (ours.count, ours.bytes_up, ours.bytes_down) == (own.count, own.bytes_up, own.bytes_down)
        assert ours.clients == list(own.clients) and ours.loss == own.loss and ours.scores == own.scores


def test_a_run_says_what_it_is_at_while_it_goes_on_and_nothing_behind_it(tmp_path, monkeypatch):
    """Its reference first, a start that clients measure, its rounds; in the end the folder is as ever."""
    told = []
    say = StatusObserver._say

    def note(self, **changes) -> None:
        say(self, **changes)
        found = status_of(self.file.parent)
        assert found is not None and found.process
        told.append((found.label, found.doing, found.round))

    monkeypatch.setattr(StatusObserver, "_say", note)
    words = ("evaluation.head_alone=true", "init=eva", "head=ridge", f"output_dir={tmp_path}")
    run = fedinit.run(*SHORT, *words)
    assert ("head alone", "", 0) in told and ("lora_fair", "", 2) in told
    assert ("lora_fair", "all 3 clients measure the start, init=eva head=ridge", 0) in told
    assert not (run.folder / status.FILE).exists()


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path):
    observer = StatusObserver(tmp_path / "absent", "fedit")
    observer.doing("nothing")
    status.remove(tmp_path / "absent")
    assert status_of(tmp_path / "absent") is None
    for text in ("", "{", "[]", '{"label": "x"}'):
        (tmp_path / status.FILE).write_text(text)
        assert status_of(tmp_path) is None


def test_the_view_has_what_goes_on_now(begun):
    StatusObserver(begun, "head alone").doing("clients measure the step scales")
    view = watching.view_of(read(begun))
    assert view.doing == "head alone, round 0/0: clients measure the step scales"
    observer = StatusObserver(begun, "lora_fair")
    observer.values["clients"] = 8
    observer.doing("clients measure the start")
    view = watching.view_of(read(begun))
    assert view.doing == "clients measure the start" and (view.reached, view.rounds, view.total) == (2, 5, 8)


def test_it_ends_with_the_run(begun):
    """The run goes on between two looks, and ends."""
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            whole = write_run(begun.parent.parent / "whole", config(), recorded=False)
            for name in ("metrics.csv", "clients.csv", "summary.json", "DONE.json"):
                (begun / name).write_bytes((whole / name).read_bytes())

    seen = [(run.summary is not None, view.reached) for run, view in watching.watch(begun, pause)]
    assert seen[0] == (False, 2) and seen[-1] == (True, 5) and len(pauses) == 2


def test_a_process_that_is_gone_ends_it_too(begun):
    assert watching.goes_on(begun)
    values = json.loads((begun / status.FILE).read_text())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (begun / status.FILE).write_text(json.dumps(values | {"pid": gone.pid}))
    assert not watching.goes_on(begun)
    (begun / status.FILE).write_text(json.dumps(values | {"pid": gone.pid, "host": "another machine"}))
    assert watching.goes_on(begun), "it cannot be told"
    assert len(list(watching.watch(write_run(begun.parent / "b", config(), reached=1, recorded=False)))) == 1


def test_of_several_runs_the_one_that_goes_on_is_meant(begun):
    done = write_run(begun.parent / "z", config(seed=1), recorded=False)
    os.utime(done / "metrics.csv", (2**31, 2**31))
    assert watching.newest(begun.parent) == begun and watching.newest(done) == done


def test_the_command(begun, capsys):
    assert cli.main(["watch", str(begun), "--once"]) == 0
    once = capsys.readouterr().out
    assert "lora_fair on digits" in once and "2/5" in once and "average" in once
    (begun / status.FILE).unlink()
    assert cli.main(["watch", str(begun)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("round 1/5, 6 clients, loss 2.000, accuracy ") and len(lines) == 3
    stopped = f"stopped after round 2 of 5; fedinit run resume={begun} goes on with it"
    assert lines[-1] == stopped
    assert cli.main(["watch", str(begun), "--once"]) == 1 and capsys.readouterr().out.splitlines()[-1] == stopped
    done = write_run(begun.parent / "done", config(), recorded=False)
    assert cli.main(["watch", str(done)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"done: {done}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("absent", "absent: no such folder"),
        ("file", "file: is a file; give the folder"),
        ("empty", "empty: no run in it"),
    ],
)
def test_a_folder_without_a_run_is_one_line(name, expected, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for more in ([], ["--wait", "0"], ["--once"]):
        if more or name == "file":
            assert cli.main(["watch", str(tmp_path / name), *more]) == 2
            said = capsys.readouterr()
            assert said.err.count("\n") == 1 and expected in said.err and not said.out
    for wrong in ("-1", "long", "nan", "inf"):
        assert cli.main(["watch", str(tmp_path), f"--wait={wrong}"]) == 2
        assert f"--wait: {wrong}: expected seconds" in capsys.readouterr().err


def test_a_run_that_has_no_folder_yet_is_waited_for(tmp_path, capsys, monkeypatch):
    folder, pauses = tmp_path / "later", []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            folder.mkdir()
        if len(pauses) == 3:
            write_run(folder / "a", config(), recorded=False)

    monkeypatch.setattr("fedinit.commands.watch.time.sleep", pause)
    assert cli.main(["watch", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: no run there yet; waiting for it up to 60 s, Ctrl-C ends that"
    assert lines[-1] == f"done: {folder / 'a'}" and len(pauses) == 3


def test_where_no_run_goes_on_the_last_one_is_shown_with_a_line_that_says_so(begun, capsys):
    """A run that has just begun has no folder yet: an old one is not taken for it in silence."""
    (begun / status.FILE).unlink()
    for name in ("b", "c"):
        root = begun.parent if name == "b" else begun.parent / "sub"
        last = write_run(root / name, config(seed=1), recorded=False)
    assert cli.main(["watch", str(begun.parent / "sub")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{begun.parent / 'sub'}: no run goes on there; {last} is the last one"
    assert lines[-1] == f"done: {last}" and sum("no run goes on" in line for line in lines) == 1
    assert cli.main(["watch", str(begun.parent)]) == 1
    assert capsys.readouterr().out.startswith(f"{begun.parent}: no run goes on there; {begun} is the last one\n")


def test_with_a_time_one_that_goes_on_is_waited_for(begun, capsys, monkeypatch):
    runs, says = begun.parent, (begun / status.FILE).read_bytes()
    (begun / status.FILE).unlink()

    monkeypatch.setattr("fedinit.commands.watch.time.sleep", lambda _: (begun / status.FILE).write_bytes(says))
    assert cli.main(["watch", str(runs), "--wait", "30", "--once"]) == 0
    assert capsys.readouterr().out.startswith(f"{runs}: no run goes on there; waiting for it up to 30 s")


@pytest.mark.parametrize("gone", [True, False])
def test_without_its_table_a_run_is_shown_by_its_lines_of_json(tmp_path, capsys, gone):
    folder = write_run(tmp_path / "a", config(rounds=3), recorded=False)
    header, *rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    objects = [dict(zip(header, map(float, row), strict=True)) | {"round": int(row[0])} for row in rows]
    whole = read(folder).metrics
    (folder / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in objects) + '{"round": 4')
    (folder / "metrics.csv").unlink() if gone else (folder / "metrics.csv").write_text("")
    lines = read(folder).metrics
    assert lines.columns == whole.columns and lines.numbers("accuracy").tolist() == whole.numbers("accuracy").tolist()
    assert cli.main(["watch", str(folder), "--once"]) == 0
    out = capsys.readouterr().out
    why = f"its metrics.csv {'is gone' if gone else 'has no whole rounds'}, so its figures are those of metrics.jsonl"
    assert "3/3" in out and f"{folder}: {why}, which has 3\n" in out
    (folder / "metrics.jsonl").unlink()
    assert cli.main(["watch", str(folder), "--once"]) == 0
    assert "neither its metrics.csv nor its metrics.jsonl has a round; resume=never" in capsys.readouterr().out


def test_and_no_longer_than_is_said(tmp_path, capsys):
    assert cli.main(["watch", str(tmp_path / "absent"), "--wait", "0.2"]) == 2
    said = capsys.readouterr()
    assert said.out.count("\n") == said.err.count("\n") == 1
    assert "absent: no such folder" in said.err and "waited for 0.2 s, --wait SECONDS is longer" in said.err


def test_watching_waits_for_no_torch():
    code = (
        "import sys, fedinit.commands.watch, fedinit.runs.watching; print({'torch', 'timm', 'flwr'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_a_run_that_has_not_said_anything_yet_goes_on(tmp_path):
    """It has its folder and the lock before it says what it is at; without the lock, or long after, it was stopped."""
    folder = write_run(tmp_path / "a", config(), reached=0, recorded=False)
    assert not watching.goes_on(folder)
    (folder / ".lock").touch()
    assert watching.goes_on(folder)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert not watching.goes_on(folder)


def test_a_run_that_nobody_is_at_has_no_time_left_and_no_round_in_progress(tmp_path, begun, capsys):
    stopped = write_run(tmp_path / "stopped", config(), reached=2, recorded=False)
    for folder, going in ((begun, True), (stopped, False)):
        assert cli.main(["watch", str(folder), "--once"]) == (0 if going else 1)
        out = capsys.readouterr().out
        assert "2/5" in out and (" left" in out) == going == ("round 3 for" in out)
