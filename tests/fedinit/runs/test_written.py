"""A file that only one process writes: whatever else is done to it, it has what that process wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedinit.runs import written
from fedinit.runs.written import Written


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def unseen(file: Path) -> None:
    """An edit of the same size and time, in the same place."""
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"1", b"7"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGES = {
    "gone": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"mine\n"),
    "no text": lambda file: file.write_bytes(b"\xff\xfe"),
    "a folder": folder,
    "a link": link,
}


@pytest.fixture
def made(tmp_path):
    """The file of a row, and the lines that were told of it."""
    told: list[str] = []
    file = Written(tmp_path / "table.csv", "é\n", told.append)
    file.append("1\n")
    return file, told


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("then", ["append", "hold"])
def test_what_is_not_what_was_written_is_put_aside_before_more_is_written(then, damage, made):
    file, told = made
    DAMAGES[damage](file.path)
    mine = file.path.read_bytes() if file.path.is_file() else None
    file.append("2\n") if then == "append" else file.hold()
    assert file.path.read_text() == file.text == ("é\n1\n2\n" if then == "append" else "é\n1\n")
    (line,) = told
    aside = file.path.with_name("table.csv.edited.1")
    if damage == "gone":
        assert line == f"{file.path} was not there; it is written anew" and not os.path.lexists(aside)
    else:
        assert line == f"{file.path} was not this run's; it is written anew, and the other one is {aside.name}"
        assert aside.read_bytes() == mine if aside.is_file() else aside.is_dir() or aside.is_symlink()
    file.append("3\n")
    file.hold()
    assert file.path.read_text() == file.text and len(told) == 1


def test_an_edit_that_leaves_size_and_time_as_they_were_is_found_at_the_end(made):
    file, told = made
    unseen(file.path)
    file.append("2\n")
    assert file.path.read_text() == "é\n7\n2\n" and file.text == "é\n1\n2\n" and not told
    file.hold()
    assert file.path.read_text() == file.text and len(told) == 1
    assert file.path.with_name("table.csv.edited.1").read_text() == "é\n7\n2\n"


def test_a_file_is_not_read_as_long_as_nobody_touched_it_and_one_that_was_only_touched_stays(made, monkeypatch):
    """Else a round of a long run would cost what all rounds before it wrote."""
    file, told = made
    read: list[Path] = []
    own = written.read_bytes
    monkeypatch.setattr(written, "read_bytes", lambda path: (read.append(path), own(path))[1])
    file.append("2\n")
    assert not read
    os.utime(file.path)
    for row in ("3\n", "4\n"):
        file.append(row)
    assert read == [file.path] and not told and file.path.read_text() == file.text == "é\n1\n2\n3\n4\n"


def test_a_disk_that_is_full_is_told_with_the_file(tmp_path, monkeypatch) -> None:
    """/dev/full takes no byte, as such a disk does."""
    file = Written(tmp_path / "a.csv", "round\n", print)
    (tmp_path / "a.csv").unlink()
    (tmp_path / "a.csv").symlink_to("/dev/full")
    monkeypatch.setattr(written, "_marks", lambda path: file._left)
    monkeypatch.setattr(written, "regular", None)
    with pytest.raises(OSError, match="No space left") as caught:
        file.append("1\n")
    assert caught.value.filename == str(tmp_path / "a.csv") and file.text == "round\n"
