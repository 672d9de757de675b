"""Where a prepared set may go: to make room for it never deletes what it is made of, and nothing is written before."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from fedinit.cli import main
from tests.support import releases
from tests.support.recorded_runs import config, write_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="named pipes and links are not so there")


@pytest.fixture
def down(tmp_path, monkeypatch) -> Path:
    """A folder with PACS.zip, and the present one above it."""
    releases.pacs(tmp_path / "down" / "PACS.zip")
    monkeypatch.chdir(tmp_path)
    return Path("down")


def prepared(*given: object, to: object) -> int:
    return main(["data", "prepare", "pacs", *map(str, given), "--to", str(to)])


def refusal(capsys) -> str:
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("given", "to"),
    [
        ("down/PACS.zip", "down/PACS.zip"),
        ("down/PACS.zip", "hard.zip"),
        ("down/PACS.zip", "soft.zip"),
        ("soft.zip", "down/PACS.zip"),
        ("soft.zip", "down"),
        ("down/PACS.zip", "down"),
        ("down/PACS.zip", "."),
        ("down", "down"),
        ("down", "down/PACS.zip"),
        ("lists", "down"),  # in which a link of the folder given leads
    ],
)
def test_what_is_read_is_no_place(given, to, down, capsys):
    os.link("down/PACS.zip", "hard.zip")
    os.symlink("down/PACS.zip", "soft.zip")
    os.mkdir("lists")
    os.symlink("../down/PACS.zip", "lists/PACS.zip")
    before = (down / "PACS.zip").read_bytes()
    assert prepared(given, to=to) == 2
    assert refusal(capsys) == f"error: --to {to}: is what is read; give another\n"
    assert (down / "PACS.zip").read_bytes() == before and not list(Path().rglob("*partial*"))


def test_beside_the_archives_there_is_room_for_a_new_folder_and_for_nothing_that_is_there(down, capsys):
    assert prepared(down, to="down/new") == 0 and prepared(down, to="down/new") == 0
    assert "prepared already" in capsys.readouterr().out
    (down / "mine").mkdir()
    assert prepared(down, to="down/mine") == 0, "an empty folder is room"
    shutil.rmtree(down / "mine")
    for name in ("mine/notes.txt", "notes.txt"):
        (down / name).parent.mkdir(exist_ok=True)
        (down / name).touch()
    capsys.readouterr()
    for name in ("mine", "notes.txt"):
        assert prepared(down, to=down / name) == 2
        told = f"error: --to down/{name}: is there already, among what is read in down; give another\n"
        assert refusal(capsys) == told


def test_what_can_be_no_folder_is_told_as_what_it_is(down, capsys):
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    os.symlink("nowhere", "astray")
    os.symlink("round", "round")
    places = {
        "pipe": "a named pipe, not a folder; give another",
        "socket": "a socket, not a folder; give another",
        "/dev/null": "a device, not a folder; give another",
        "astray": f"is a link to {Path('nowhere').absolute()}, which is not there; make that folder, or give another "
        "--to",
        "round": "is a link that leads back to itself; make that folder, or give another --to",
    }
    for place, told in places.items():
        assert prepared(down, to=place) == 2
        assert refusal(capsys) == f"error: --to {place}: {told}\n"
    assert not list(Path().rglob("*partial*")) and not Path("nowhere").exists()


def test_a_link_to_an_empty_folder_is_that_folder(down, capsys):
    os.mkdir("there")
    os.symlink("there", "link")
    assert prepared(down, to="link") == 0 and prepared(down, to="there") == 0
    assert "prepared already" in capsys.readouterr().out and Path("link").is_symlink()


@pytest.mark.parametrize(
    ("name", "thing"),
    [
        *(("root.partial", thing) for thing in ("file", "pipe", "link", "folder")),
        *(("root.partial.lock", thing) for thing in ("pipe", "link", "folder")),
    ],
)
def test_what_is_needed_for_the_unfinished_and_is_something_else_stays(name, thing, down, capsys):
    if thing == "file":
        Path(name).write_text("mine")
    elif thing == "pipe":
        os.mkfifo(name)
    elif thing == "link":
        os.symlink("nowhere", name)
    else:
        os.mkdir(name)
        Path(name, "mine").touch()
    before = os.lstat(name)
    assert prepared(down, to="root") == 2
    told = refusal(capsys)
    assert told.startswith(f"error: {name}: is needed for what is unfinished, and") and "move it away" in told
    after = os.lstat(name)
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert not Path("root").exists() and not Path("nowhere").exists()


def test_a_runs_own_folder_is_no_place(down, tmp_path, capsys):
    run = write_run(tmp_path / "run", config(rounds=1))
    assert prepared(down, to=run / "record" / "pacs") == 2
    told = f"error: --to {run / 'record' / 'pacs'}: is among the files of the run in {run}; name another folder\n"
    assert refusal(capsys) == told
