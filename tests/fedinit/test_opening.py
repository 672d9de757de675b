"""A named pipe in the place of a file is told at once, whichever file it is and whoever reads it: nothing waits."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

import fedinit
from fedinit import cli
from fedinit.opening import make_folder, own, read_bytes, read_text, regular
from tests.support.small import WORDS, slow

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="named pipes are not in folders there")
SHORT = (*WORDS, "rounds=2", "client.max_steps=1", "engine.lanes=1", "report=full")
A_PIPE = "a named pipe, not a file"
WAITED = 60  # seconds until a command that waits has failed


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('whole')}").folder


@pytest.fixture(autouse=True)
def alarm():
    """Nothing waits for a pipe's writer."""

    def ring(*_) -> None:
        raise TimeoutError("it waits for a named pipe")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(WAITED)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def place(whole, tmp_path) -> Path:
    """With a run, another one, and a folder of pictures."""
    for name in ("runs/a", "runs/b"):
        shutil.copytree(whole, tmp_path / name)
    for name in ("a", "b"):
        (tmp_path / "images" / "site" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (32, 32), 40 * i).save(tmp_path / "images" / "site" / name / f"{i}.png")
    return tmp_path


def piped(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


READ = {
    "settings": ("config.yaml", "predict {run} {images}", "cannot be read"),
    "settings, reported": ("config.yaml", "report {run} --output {out}", "cannot be read"),
    "settings, evaluated": ("config.yaml", "evaluate {run}", "cannot be read"),
    "settings, watched": ("config.yaml", "watch {run}", "cannot be read"),
    "settings, exported": ("config.yaml", "export {run} --format peft", "cannot be read"),
    "settings, gone on with": ("config.yaml", "run resume={run}", "cannot be read"),
    "rounds": ("metrics.csv", "report {run} --output {out}", "cannot be read"),
    "rounds, compared": ("metrics.csv", "compare {run}", "cannot be read"),
    "lines": ("metrics.jsonl", "compare {run}", "cannot be read"),
    "a model": ("adapter/head.safetensors", "predict {run} {images}", "cannot be read"),
    "a model's classes": ("adapter/classes.json", "predict {run} {images}", "cannot be read"),
    "what no run wrote": ("adapter/base_offset.safetensors", "predict {run} {images}", "the run wrote no such file"),
    "the end": ("DONE.json", "predict {run} {images}", "its DONE.json is a named pipe, not what a run writes"),
    "the summary": ("summary.json", "predict {run} {images}", "its summary.json is not what a run writes"),
}


@pytest.mark.parametrize("case", READ)
def test_a_file_of_a_run_is_not_waited_for(case, place, capsys):
    name, words, why = READ[case]
    pipe = piped(place / "runs" / "a" / name)
    places = {"run": place / "runs" / "a", "images": place / "images", "out": place / "out.html"}
    capsys.readouterr()
    code = cli.main([word.format(**places) for word in words.split()])
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and why in said, said
    if why == "cannot be read":
        assert said.startswith(f"error: {pipe}: cannot be read ({A_PIPE}); mend that, or give another"), said
    assert not (place / "out.html").exists()


@pytest.mark.parametrize("name", ["ledger.jsonl", "clients.csv", "record/layers.csv"])
def test_a_part_of_a_report_is_left_out_with_a_warning(name, place, caplog):
    pipe = piped(place / "runs" / "a" / name)
    assert cli.main(["report", str(place / "runs" / "a"), "--output", str(place / "out.html")]) == 0
    assert f"is left out: {pipe}: cannot be read ({A_PIPE})" in caplog.text


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "metrics.jsonl"])
def test_beside_others_a_run_is_left_out_with_a_warning(name, place, caplog):
    pipe = piped(place / "runs" / "a" / name)
    assert cli.main(["compare", str(place / "runs")]) == 0
    assert f"left out: {pipe}: cannot be read ({A_PIPE})" in caplog.text


def test_a_picture_is_told_beside_the_others(place, capsys):
    piped(place / "images" / "site" / "a" / "9.png")
    assert cli.main(["predict", str(place / "runs" / "a"), str(place / "images")]) == 2
    said = capsys.readouterr()
    assert f"9.png: cannot be read as a picture ({A_PIPE})" in said.err and said.err.count("\n") == 1
    assert said.out.count(".png") == 8


def test_an_image_is_told_beside_the_others(place, capsys):
    piped(place / "images" / "site" / "a" / "9.png")
    assert cli.main(["data", "check", str(place / "images")]) == 2
    assert f"'site/a/9.png' is {A_PIPE}; take it away" in capsys.readouterr().err
    words = ["data=image_folder", f"data.root={place / 'images'}", f"output_dir={place / 'out'}"]
    assert cli.main(["run", *words]) == 2
    assert "site/a/9.png" in (said := capsys.readouterr().err) and A_PIPE in said and said.count("\n") == 1


def test_a_pipe_for_a_zip_a_table_or_a_checkpoint(place, capsys):
    pipe = piped(place / "pipe")
    archive = piped(place / "PACS.zip")
    out = f"output_dir={place / 'out'}"
    for words in (
        ["data", "check", str(pipe)],
        ["data", "prepare", "pacs", str(archive), "--to", str(place / "made")],
        ["run", "data=image_folder", f"data.root={pipe}", out],
        ["run", "data=csv", f"data.root={pipe}", out],
    ):
        assert cli.main(words) == 2
        assert A_PIPE in (said := capsys.readouterr().err) and said.count("\n") == 1, said
    assert cli.main(["run", f"model.checkpoint={pipe}", out]) == 2


TABLES = ("metrics.csv", "metrics.jsonl", "clients.csv", "record/timing.csv")


@pytest.mark.parametrize("name", ["clients.csv", "ledger.jsonl", *slow(*(t for t in TABLES if t != "clients.csv"))])
def test_a_run_that_goes_on_writes_into_no_pipe(name, place, capsys):
    """A table is there again from the checkpoint; what is no file is put aside."""
    folder = place / "runs" / "a"
    (folder / "DONE.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    pipe = piped(folder / name)
    capsys.readouterr()
    assert cli.main(["run", f"resume={folder}"]) == 0
    said = capsys.readouterr()
    assert pipe.is_file() and not said.err
    if not name.startswith("record"):
        assert f"{pipe} was not this run's; it is now {pipe.name}.edited.1\n" in said.out


def test_what_is_no_file_has_a_name(tmp_path):
    with pytest.raises(OSError, match="a device, not a file"):
        read_bytes(Path("/dev/zero"))
    with pytest.raises(OSError, match=A_PIPE):
        open(piped(tmp_path / "pipe"), "a", opener=regular)
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)


def test_a_folder_that_cannot_be_made_says_what_is_in_its_place(tmp_path):
    """mkdir says of a link that leads nowhere that it is there."""
    (tmp_path / "link").symlink_to(tmp_path / "away")
    (tmp_path / "file").touch()
    for place, odd, expected in (
        ("link", "link", f"is a link to {tmp_path / 'away'}, which is not there"),
        ("link/in/it", "link", f"is a link to {tmp_path / 'away'}, which is not there"),
        ("file", "file", "is a file"),
        ("file/in/it", "file", "is a file"),
    ):
        with pytest.raises(OSError) as caught:
            make_folder(tmp_path / place)
        assert caught.value.strerror == f"{tmp_path / odd} {expected}"
    make_folder(tmp_path / "in" / "it")
    make_folder(tmp_path / "in" / "it")
    assert (tmp_path / "in" / "it").is_dir()


def test_an_open_file_of_this_process_is_read_whatever_it_is():
    """As of a shell's <(…)."""
    reading, writing = os.pipe()
    os.write(writing, b"said")
    os.close(writing)
    assert own(Path(f"/dev/fd/{reading}")) == reading
    assert read_bytes(Path(f"/dev/fd/{reading}")) == b"said"
    os.close(reading)


def test_a_pipe_beside_an_index_is_no_image_that_it_lacks(place, capsys):
    names = sorted(path.relative_to(place / "images") for path in (place / "images").rglob("*.png"))
    (place / "images" / "index.csv").write_text("path,split\n" + "".join(f"{name},train\n" for name in names))
    piped(place / "images" / "site" / "a" / "9.png")
    assert cli.main(["data", "check", str(place / "images")]) == 2
    assert f"'site/a/9.png' is {A_PIPE}; take it away" in (said := capsys.readouterr().err) and "index.csv" not in said
    (place / "images" / "site" / "a" / "9.png").unlink()
    assert cli.main(["data", "check", str(place / "images")]) in (0, 1)  # the control


def test_what_is_to_be_checked_is_told_by_its_kind(place, capsys):
    pipe = piped(place / "pipe")
    assert cli.main(["data", "check", str(pipe)]) == 2
    assert capsys.readouterr().err == f"error: {pipe}: {A_PIPE}; give the folder, zip or table itself\n"
    assert cli.main(["run", "data=image_folder", f"data.root={pipe}", f"output_dir={place / 'out'}"]) == 2
    assert "Errno" not in capsys.readouterr().err


NO_FILES = {
    "is a named pipe, not a file": os.mkfifo,
    "is a folder, not a file": os.mkdir,
    "is a link to {cache}/gone, which is not there": lambda path: path.symlink_to(path.parent / "gone"),
    "is a link that leads back to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_in_the_place_of_a_kept_prefix_is_told(what, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache, kept = tmp_path / "fedinit", ("adapter.blocks=last:1", "engine.prefix_cache=true")
    words = ["run", *SHORT, *kept, "evaluation.head_alone=false", "report=none", f"output_dir={tmp_path / 'out'}"]
    assert cli.main([*words, "rounds=1"]) == 0
    (path,) = cache.glob("*.prefix")
    whole = path.rename(tmp_path / "whole")
    NO_FILES[what](path)
    capsys.readouterr()
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    why = f"engine.prefix_cache=true: cache {cache} cannot be used ({path} {what.format(cache=cache)}); give another"
    assert told.startswith(f"error: {why}") and told.count("\n") == 1
    if not path.is_symlink():
        return
    path.unlink()
    path.symlink_to(whole)  # the control: a link to a file is that file
    assert cli.main(words) == 0 and path.is_symlink()


@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_in_the_place_of_kept_images_is_told_and_these_are_in_memory(what, place, capsys):
    images, cache = place / "images", place / "cache"
    keep = ("data=image_folder", f"data.root={images}", f"data.cache_dir={cache}", "data.test_fraction=0.5")
    words = ["run", *(word for word in SHORT if not word.startswith("data.")), *keep, "preview=true"]
    words += ["evaluation.head_alone=false", f"output_dir={place / 'out'}"]
    assert cli.main(words) == 0
    assert "cannot be used" not in capsys.readouterr().out  # the control
    (path,) = cache.glob("*.images")
    path.unlink()
    NO_FILES[what](path)
    assert cli.main(words) == 0
    why = f"cache {cache} cannot be used ({path} {what.format(cache=cache)}): the images are held in memory"
    assert why in capsys.readouterr().out
