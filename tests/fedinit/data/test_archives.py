"""What is given to be prepared and is no archive and no list is named, and no image is left out without a word."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import zipfile
from pathlib import Path

import pytest

from fedinit.cli import main
from fedinit.data.official import OFFICIAL
from fedinit.data.preparing import plan
from fedinit.errors import InputError
from tests.support import releases
from tests.support.forbidding import forbidden

posix = pytest.mark.skipif(sys.platform == "win32", reason="named pipes and links are not so there")


def told(capsys, *words: object) -> str:
    """The one line that it is refused in."""
    capsys.readouterr()
    assert main(["data", "prepare", *map(str, words), "--to", "root"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert not list(Path().glob("root*"))
    return err.removeprefix("error: ").rstrip("\n")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def no_file(kind: str, name: str) -> str:
    """Make it; what it is called."""
    if kind == "pipe":
        os.mkfifo(name)
        return "a named pipe, not a file"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
        return "a socket, not a file"
    if kind == "folder":
        os.mkdir(name)
        return "a folder, not a file"
    os.symlink("nowhere" if kind == "astray" else Path(name).name, name)
    if kind == "round":
        return "is a link that leads back to itself"
    return f"is a link to {Path(name).absolute().parent / 'nowhere'}, which is not there"


@posix
@pytest.mark.parametrize("kind", ["pipe", "socket", "round", "astray"])
@pytest.mark.parametrize("name", ["PACS.zip", "photo_train_kfold.txt", "other"])
def test_an_archive_that_is_no_file_is_told_as_what_it_is(kind, name, capsys):
    what = no_file(kind, name)
    assert told(capsys, "pacs", name) == f"{name}: {what}; give the archive itself"


@posix
def test_a_device_is_none_either(capsys):
    assert told(capsys, "pacs", "/dev/zero") == "/dev/zero: a device, not a file; give the archive itself"


@posix
@pytest.mark.parametrize("kind", ["pipe", "socket", "round", "astray", "folder"])
@pytest.mark.parametrize("name", ["down/real_train.txt", "down/more.zip"])
def test_in_a_folder_too(kind, name, capsys):
    releases.domainnet(Path("down"))
    Path(name).unlink(missing_ok=True)
    what = no_file(kind, name)
    assert told(capsys, "domainnet", "down") == f"{name}: {what}; put the file itself there, or move this away"


def test_what_nobody_takes_for_an_archive_is_passed_over():
    releases.domainnet(Path("down"))
    os.mkdir("down/notes")
    Path("down/notes.txt").touch()
    if sys.platform != "win32":
        os.mkfifo("down/pipe")
    assert main(["data", "prepare", "domainnet", "down", "--to", "root"]) == 0


def test_a_folder_with_neither_an_archive_nor_a_list_is_named(capsys):
    Path("down/inner").mkdir(parents=True)
    releases.pacs(Path("down/inner/PACS.zip"))
    releases.pacs(Path("PACS.zip"))
    for given in (["down"], ["PACS.zip", "down"]):
        assert told(capsys, "pacs", *given).startswith(
            "down: this folder holds no archive and no list of PACS; expected PACS.zip, with its lists in it"
        )


@pytest.mark.parametrize("text", ["", "\n \n", "real/ant/ant_0.png 100\n", "clipart/airplane/airplane_0.png 0\n"])
@pytest.mark.parametrize("name", ["real_train.txt", "real_test.txt"])
def test_a_list_that_takes_no_image_of_its_domain_is_named(text, name, capsys):
    releases.domainnet(Path("down"))
    if "clipart" in text:  # an image that this split has already
        text = text.replace("_0", "_1") if "test" in name else text
    (Path("down") / name).write_text(text)
    assert told(capsys, "domainnet", "down") == (
        f"DomainNet: {name!r} names no image of its domain that is taken; download it again, or mend it"
    )


def test_in_a_zip_too(capsys):
    there = releases.pacs(Path("there.zip"))
    with zipfile.ZipFile(there) as old, zipfile.ZipFile("PACS.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"" if name.endswith("cartoon_train_kfold.txt") else old.read(name))
    assert "'cartoon_train_kfold.txt' names no image of its domain" in told(capsys, "pacs", "PACS.zip")


def test_no_domains_are_not_all(capsys):
    releases.pacs(Path("PACS.zip"))
    for words in ("--domains=", "--domains=photo,"):
        assert told(capsys, "pacs", "PACS.zip", words) == (
            "--domains '': PACS has art_painting, cartoon, photo, sketch"
        )
    with pytest.raises(InputError, match="--domains '': PACS has"):
        plan(OFFICIAL["pacs"], [Path("PACS.zip")], [])


@pytest.mark.parametrize(
    "name",
    [
        "kfold/photo/dog/a.png\n",
        "kfold/photo/dog/a.png\x1b",
        "kfold/photo/dog/a.png ",
        "kfold/photo\n/dog/a.png",
        "kfold/\rphoto/dog/a.png",
        "kfold/photo/dog/a\0b.png",
        "kfold/photo/dog/\0b.png",
    ],
)
def test_an_image_that_its_name_hides_is_counted_as_left_out(name, capsys):
    given = releases.pacs(Path("PACS.zip"))
    with zipfile.ZipFile(given, "a") as file:
        file.writestr(name.replace("\0", "@"), releases.picture(98))
    given.write_bytes(given.read_bytes().replace(name.replace("\0", "@").encode(), name.encode()))
    assert main(["data", "prepare", "pacs", "PACS.zip", "--to", "root"]) == 0
    line = f"left out: 1 with control characters in the name, or blanks at its ends ({name!r})\n"
    assert f"16 of 17 images of the archives are taken; {line}" in capsys.readouterr().out
    control = releases.archive(Path("notes.zip"), {"kfold/photo/dog/notes.txt\n": "a", "other/photo\n.png": "b"})
    assert main(["data", "prepare", "pacs", str(releases.pacs(Path("P.zip"))), str(control), "--to", "whole"]) == 0
    assert "all 16 images of the archives are taken\n" in capsys.readouterr().out


@posix
@pytest.mark.parametrize("name", ["clipart.zip", "clipart_train.txt"])
def test_what_may_not_be_read_is_not_to_be_downloaded_again(name, capsys):
    down = releases.domainnet(Path("down"))
    with forbidden(down / name):
        line = told(capsys, "domainnet", "down")
    assert f"{Path('down', name)}: cannot be read (permission denied)" in line and "download" not in line
    shutil.rmtree(down)
