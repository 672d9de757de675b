"""What a command is to write loses nothing: no file of a run, none that it reads, none that it just wrote, no mode."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

import fedinit
from fedinit import cli
from fedinit.runs.own_files import FILES, run_of
from tests.support.recorded_runs import config, write_run
from tests.support.small import WORDS

OPTIONS = ("--csv", "--markdown", "--latex", "--report")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", config(rounds=2))


@pytest.fixture
def run(recorded, tmp_path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "runs" / "run"))


def told(capsys) -> str:
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_all_that_a_run_writes_is_its_own(tmp_path):
    """Held to a run with every observer."""
    words = ("rounds=1", "client.max_steps=1", "engine.lanes=1", "report=full", "logger=tensorboard")
    folder = fedinit.run(*WORDS, *words, f"output_dir={tmp_path}", "evaluation.head_alone=true").folder
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if run_of(path) != folder] == []
    for other in (folder / "table.csv", folder / "export" / "peft" / "config.json", tmp_path / "metrics.csv"):
        assert run_of(other) is None


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["metrics.csv", "summary.json", "DONE.json", "config.yaml", "record/layers.csv"])
def test_a_runs_own_file_is_no_place(option, name, run, capsys):
    before = (run / name).read_bytes()
    assert cli.main(["compare", str(run), option, str(run / name)]) == 2
    assert told(capsys) == f"error: {option} {run / name}: is a file of the run in {run}; name another file\n"
    (run.parent / "link").symlink_to(run / name)
    assert cli.main(["compare", str(run), option, str(run.parent / "link")]) == 2
    assert "is a file of the run in" in told(capsys) and (run / name).read_bytes() == before
    assert cli.main(["compare", str(run), "--csv", str(run.parent / "metrics.csv")]) == 0  # the negative control
    if option != "--report":
        assert cli.main(["compare", str(run), option, str(run / "table")]) == 0


def test_a_report_is_no_place_for_a_table(run, capsys):
    assert cli.main(["compare", str(run), "--csv", str(run / "report.html")]) == 2
    told(capsys)
    assert cli.main(["compare", str(run), "--report", str(run / "report.html")]) == 0
    assert cli.main(["report", str(run), "--output", str(run / "summary.json")]) == 2
    assert "summary.json: is a file of the run" in told(capsys)
    assert cli.main(["report", str(run), "--output", str(run / "report.html")]) == 0


def test_a_folder_with_a_configuration_is_no_run(tmp_path):
    (tmp_path / "config.yaml").touch()
    assert not any(run_of(tmp_path / name) for name in FILES)


@pytest.mark.parametrize("other", ["table", "./table", "../here/table"])
def test_two_outputs_have_two_files(other, run, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli.main(["compare", str(run), "--csv", "table", "--latex", other]) == 2
    what = Path(other)
    assert told(capsys) == f"error: --csv and --latex: both are to be {what}; give each a file of its own\n"
    assert not (tmp_path / "here" / "table").exists()
    assert cli.main(["compare", str(run), "--csv", "/dev/stdout", "--latex", "/dev/stdout"]) == 0


def test_what_is_judged_on_is_no_place(tmp_path, capsys):
    words = ("rounds=1", "client.max_steps=1", "engine.lanes=1")
    folder = fedinit.run(*WORDS, *words, f"output_dir={tmp_path / 'out'}").folder
    table = tmp_path / "photos.csv"
    table.write_text("path,label\na.png,0\n")
    for given in (str(table), f"data.root={table}"):
        data = [given] if "=" not in given else ["data=csv", given]
        assert cli.main(["evaluate", str(folder), "--data", *data, "--csv", str(table)]) == 2
        assert f"--csv {table}: is what is read, {table}; name another file" in told(capsys)
        other = tmp_path / "other.csv"
        other.unlink(missing_ok=True)
        os.link(table, other)
        assert cli.main(["evaluate", str(folder), "--data", *data, "--csv", str(other)]) == 2
        assert f"--csv {other}: is what is read, {table}; name another file" in told(capsys)
    images = tmp_path / "images" / "a"
    images.mkdir(parents=True)
    (images / "0.png").touch()
    os.link(images / "0.png", tmp_path / "image")
    assert cli.main(["evaluate", str(folder), "--data", str(images.parent), "--csv", str(tmp_path / "image")]) == 2
    assert f"is what is read, {images / '0.png'}; name another" in told(capsys)
    os.link(folder / "metrics.csv", tmp_path / "m.csv")
    assert cli.main(["evaluate", str(folder), "--csv", str(tmp_path / "m.csv")]) == 2
    assert f"is a file of the run in {folder}; name another" in told(capsys)
    assert table.read_text().startswith("path,label")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["metrics.csv", "DONE.json", "record/layers.csv"])
def test_another_name_of_a_runs_own_file_is_none_either(option, name, run, tmp_path, capsys):
    """A hard link, which no path tells."""
    other = tmp_path / "table"
    os.link(run / name, other)
    before = other.read_bytes()
    for folder in (run, run.parent):
        assert cli.main(["compare", str(folder), option, str(other)]) == 2
        assert told(capsys) == f"error: {option} {other}: is a file of the run in {run}; name another file\n"
    assert cli.main(["report", str(run), "--output", str(other)]) == 2
    assert "is a file of the run in" in told(capsys) and other.read_bytes() == before


def test_another_name_of_what_is_no_runs_is_a_place(run, tmp_path):
    """The controls: a table beside the run's files, and the report under another name."""
    (run / "table").write_text("old")
    os.link(run / "table", tmp_path / "table")
    assert cli.main(["compare", str(run), "--csv", str(tmp_path / "table")]) == 0
    (run / "report.html").write_text("old")
    os.link(run / "report.html", tmp_path / "report")
    assert cli.main(["compare", str(run), "--report", str(tmp_path / "report")]) == 0


def test_another_name_of_an_output_is_the_same_file(run, tmp_path, capsys):
    (tmp_path / "one").write_text("old")
    os.link(tmp_path / "one", tmp_path / "two")
    assert cli.main(["compare", str(run), "--csv", str(tmp_path / "one"), "--latex", str(tmp_path / "two")]) == 2
    assert told(capsys).startswith(f"error: --csv and --latex: both are to be {tmp_path / 'two'}; give each")
    assert (tmp_path / "one").read_text() == "old"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_keeps_its_mode(mode, run, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("old")
    table.chmod(mode)
    assert cli.main(["compare", str(run), "--csv", str(table)]) == 0
    assert stat.S_IMODE(table.stat().st_mode) == mode and table.read_text().startswith("method")
    assert cli.main(["compare", str(run), "--csv", str(tmp_path / "new.csv")]) == 0
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o644 & ~umask


def test_a_place_that_is_none_is_told(run, tmp_path, capsys):
    assert cli.main(["compare", str(run), "--csv", ""]) == 2
    assert told(capsys) == "error: argument --csv: '': expected a name; see fedinit compare --help\n"
    assert cli.main(["report", str(run), "--output", ""]) == 2
    assert "argument --output: '': expected a name" in told(capsys)
    (tmp_path / "file").touch()
    assert cli.main(["compare", str(run), "--csv", str(tmp_path / "file" / "table")]) == 2
    assert "cannot be written (Not a directory)" in told(capsys)
    absent = tmp_path / "absent" / "deep" / "table.md"
    assert cli.main(["compare", str(run), "--markdown", str(absent)]) == 2
    assert f"{absent}: cannot be written (there is no folder {absent.parent}); name a file in" in told(capsys)
