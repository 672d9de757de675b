"""What a person names to be written to is followed, or written into where it is no file."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedinit import cli
from fedinit.state import disk
from tests.support.recorded_runs import config, write_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", config(rounds=1), recorded=False)


@pytest.mark.parametrize("there", [True, False])
def test_a_links_target_is_written_and_the_link_stays(tmp_path, there):
    target, link = tmp_path / "elsewhere" / "table.csv", tmp_path / "link.csv"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    (tmp_path / "step").symlink_to("elsewhere/table.csv")
    link.symlink_to("step")
    disk.put(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new" and [*target.parent.iterdir()] == [target]


def test_a_link_in_a_run_is_replaced(tmp_path):
    """The negative control: files of a run's own are followed nowhere."""
    (tmp_path / "victim").write_text("old")
    (tmp_path / "link").symlink_to("victim")
    disk.replace(tmp_path / "link", b"new")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "victim").read_text() == "old"


def test_a_pipe_is_written_into(tmp_path, run_folder, capsys):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    assert cli.main(["compare", str(run_folder), "--csv", str(pipe)]) == 0
    reader.join(10)
    assert got and got[0].startswith("method,column,mean") and stat.S_ISFIFO(pipe.stat().st_mode)
    assert [*tmp_path.iterdir()] == [pipe]


def test_a_shells_redirection_keeps_what_was_written_before(tmp_path, run_folder):
    """/dev/stdout is the stream itself: opened anew, it would begin at the top of its file."""
    command = [sys.executable, "-m", "fedinit", "compare", str(run_folder), "--markdown", "/dev/stdout"]
    with (tmp_path / "all.txt").open("wb") as file:
        file.write(b"before\n")
        file.flush()
        assert subprocess.run(command, stdout=file, timeout=60).returncode == 0
    text = (tmp_path / "all.txt").read_text()
    assert text.startswith("before\n") and text.index("lora_fair") < text.index("| method |")
    assert text.rstrip().endswith("markdown: /dev/stdout")


def test_what_the_shell_opened_is_written_into():
    near, far = os.pipe()
    with os.fdopen(near) as file:
        disk.put(Path(f"/dev/fd/{far}"), b"text")
        os.close(far)
        assert file.read() == "text"


@pytest.mark.parametrize(("code", "exit_code"), [(errno.ENOSPC, 1), (errno.EPIPE, 1), (errno.EACCES, 2)])
def test_a_place_that_takes_no_more_is_one_line(tmp_path, run_folder, capsys, monkeypatch, code, exit_code):
    """As a device that is full, whose node is of this test alone."""
    pipe = tmp_path / "full"
    os.mkfifo(pipe)
    opened = os.open

    def refusing(path, *rest, **more):
        if Path(path) == pipe:
            raise OSError(code, os.strerror(code))
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    assert cli.main(["compare", str(run_folder), "--latex", str(pipe)]) == exit_code
    err = capsys.readouterr().err
    assert os.strerror(code) in err and str(pipe) in err and err.count("\n") == 1
    monkeypatch.undo()
    assert stat.S_ISFIFO(pipe.stat().st_mode) and [*tmp_path.iterdir()] == [pipe]


def test_a_folder_is_no_place(tmp_path, run_folder, capsys):
    for word in (str(tmp_path), "/"):
        assert cli.main(["compare", str(run_folder), "--csv", word]) == 2
        assert capsys.readouterr().err.count("Is a directory") == 1


def test_a_signal_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    """Of a folder neither: the old one stays."""

    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    disk.replace(tmp_path / "a", b"old")
    disk.replace_folder(tmp_path / "b", {"c": b"old"})
    monkeypatch.setattr(disk.os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        disk.replace(tmp_path / "a", b"new")
    with pytest.raises(KeyboardInterrupt):
        disk.replace_folder(tmp_path / "b", {"c": b"new"})
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "c"}
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b" / "c").read_bytes() == b"old"
