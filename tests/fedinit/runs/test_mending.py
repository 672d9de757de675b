"""Files of a run that is done which are not what it wrote: told when the run is shown, and written anew where they can
be."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

import fedinit
import run_sim
from fedinit.runs import mending
from fedinit.state import disk
from tests.support.small import WORDS, slow_unless

SHORT = (*WORDS, "rounds=2", "client.max_steps=1", "engine.lanes=1")
TABLES = ("metrics.csv", "clients.csv", "metrics.jsonl")
SHOWN = "this run is done; resume=never runs it again"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return fedinit.run(*SHORT, f"output_dir={tmp_path_factory.mktemp('whole')}").folder


@pytest.fixture(params=["words", "folder"])
def again(request, done, tmp_path, capsys):
    """The run's own words, or its folder, once more: what is printed."""
    words = [*SHORT, f"output_dir={tmp_path}"] if request.param == "words" else [f"resume={done}"]

    def run() -> str:
        capsys.readouterr()
        assert run_sim.main(words) == 0
        said = capsys.readouterr()
        assert not said.err
        return said.out

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_as_it_was_written_is_shown_without_a_line(done, whole, again):
    told = again().splitlines()
    assert told[0] == SHOWN and not any(str(done) in line for line in told[1:-1]) and files(done) == files(whole)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_gone_comes_back(name, done, whole, again):
    (done / name).unlink()
    assert f"{done}/{name} was not there; it is written anew\n" in (told := again()) and SHOWN in told
    assert files(done) == files(whole) and name not in again()


@pytest.mark.parametrize("name", TABLES)
def test_an_edited_table_is_put_aside_and_comes_back(name, done, whole, again):
    edited = (whole / name).read_bytes().replace(b"2", b"3") + b"\xff"
    (done / name).write_bytes(edited)
    told = f"{done}/{name} was not this run's; it is written anew, and the other one is {name}.edited.1\n"
    assert told in again()
    assert files(done) == files(whole) | {f"{name}.edited.1": edited} and name not in again()


def test_a_full_disk_takes_no_table_away(done, whole, again, monkeypatch):
    """What was edited stays in its place as long as nothing can be written there; the next start mends it."""
    (done / "metrics.csv").write_bytes(edited := b"round\n")

    def full(path, *_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        told = again()
    assert "metrics.csv: not this run's, and cannot be written anew (" in told and "it is written anew" not in told
    assert files(done) == files(whole) | {"metrics.csv": edited}
    assert "metrics.csv.edited.1" in again() and files(done) == files(whole) | {"metrics.csv.edited.1": edited}


def test_an_average_that_was_edited_is_not_compared(done, again):
    (done / "metrics.csv").write_text("round,accuracy\n1,100.0\n2,100.0\n")
    again()
    assert max(fedinit.load(done).metrics["accuracy"][1:]) < 100


@pytest.mark.parametrize("lost", ["all", "last"])
def test_without_a_checkpoint_of_its_end_a_table_that_is_gone_is_a_line(lost, done, again):
    shutil.rmtree(done / "checkpoints" / ("" if lost == "all" else "round-000002"))
    assert str(done) not in again().partition(SHOWN)[2].rpartition("run folder")[0], "the control"
    table = (done / "metrics.csv").read_bytes()
    (done / "clients.csv").unlink()
    why = (
        "is not there, nor is a checkpoint of the run's end that has it; resume=never with the run's own words runs it"
    )
    assert f"{done}/clients.csv: {why} again\n" in again()
    assert not (done / "clients.csv").exists() and (done / "metrics.csv").read_bytes() == table


@pytest.mark.parametrize("lost", ["all", "last"])
@pytest.mark.parametrize("content", [b"", b"round,accuracy\n1,50.0\n"], ids=["emptied", "cut short"])
def test_without_that_checkpoint_a_table_that_is_not_whole_is_a_line(lost, content, done, again):
    shutil.rmtree(done / "checkpoints" / ("" if lost == "all" else "round-000002"))
    for name in TABLES:
        (done / name).write_bytes(content)
    told = again()
    for name in ("metrics.csv", "clients.csv"):
        why = "round 2 is not in it, nor is a checkpoint of the run's end that has it; resume=never with the run's own"
        assert f"{done}/{name}: {why}" in told and (done / name).read_bytes() == content


@pytest.mark.parametrize("content", [None, b"round,accuracy\n1,50.0\n"], ids=["gone", "cut short"])
def test_without_that_checkpoint_metrics_csv_is_written_by_the_lines_that_say_the_same(content, done, whole, again):
    shutil.rmtree(done / "checkpoints")
    (done / "metrics.csv").unlink() if content is None else (done / "metrics.csv").write_bytes(content)
    told, what = again(), "is not there" if content is None else "round 2 is not in it"
    assert f"{done}/metrics.csv: {what}; its figures are all in metrics.jsonl, by which it is written\n" in told
    assert (done / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert content is None or (done / "metrics.csv.edited.1").read_bytes() == content
    assert "metrics.jsonl" not in again()


@pytest.mark.parametrize("damage", ["cut", "a round twice", "a key less", "no json"])
def test_lines_that_have_not_every_round_once_are_no_source_of_metrics_csv(damage, done, again):
    shutil.rmtree(done / "checkpoints")
    (done / "metrics.csv").unlink()
    first, last = (done / "metrics.jsonl").read_text().splitlines(keepends=True)
    spoilt = {"cut": last[:-9], "a round twice": last + last, "a key less": '{"round": 2}\n', "no json": last[1:]}
    (done / "metrics.jsonl").write_text(first + spoilt[damage])
    assert f"{done}/metrics.csv: is not there, nor is a checkpoint" in again() and not (done / "metrics.csv").exists()


def link(place: Path) -> None:
    place.symlink_to("nowhere")


def folder(place: Path) -> None:
    place.mkdir()
    (place / "x").write_bytes(b"mine")


@pytest.mark.parametrize("odd", [folder, link])
@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "made_of.json"])
def test_what_is_no_file_is_put_aside_and_the_runs_own_comes_back(odd, name, done, whole, tmp_path, capsys):
    (done / name).unlink()
    odd(done / name)
    assert run_sim.main([*SHORT, f"output_dir={tmp_path}"]) == 0
    told = "it is now" if name == "config.yaml" else "it is written anew, and the other one is"
    assert f"{done}/{name} was not this run's; {told} {name}.edited.1\n" in (said := capsys.readouterr()).out
    assert not said.err
    now = {key: value for key, value in files(done).items() if ".edited." not in key}
    placed = {"config.yaml": now["config.yaml"]}  # its own output_dir
    assert now == files(whole) | placed
    assert (done / f"{name}.edited.1" / "x").is_file() if odd is folder else (done / f"{name}.edited.1").is_symlink()


PLACES = ["metrics.csv", "ledger.jsonl", "made_of.json", "report.html", "record/layers.csv", "adapter", "summary.json"]


@pytest.mark.parametrize(
    ("odd", "name"),
    slow_unless(
        lambda odd, name: (odd, name) == (folder, "metrics.csv"),
        [*((folder, name) for name in PLACES), (link, "ledger.jsonl"), (link, "adapter")],
    ),
)
def test_a_model_is_written_anew_whatever_lies_in_the_places_of_the_runs_files(odd, name, tmp_path, capsys):
    """And nothing of what is there is lost."""
    words = [*SHORT, "report=full", f"output_dir={tmp_path}"]
    done = fedinit.run(*words).folder
    before = files(done)
    target = done / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    odd(target)
    shutil.rmtree(done / "adapter", ignore_errors=True) if name != "adapter" else None
    capsys.readouterr()
    assert run_sim.main(words) == 0
    said = capsys.readouterr()
    assert not said.err and "warning" not in said.out
    now = files(done)
    anew = (
        "record/provenance",
        "record/timing",
        "report.html",
        "ledger",
        name if name.startswith("record") else "none",
    )
    same = {key for key in before if not key.startswith(anew)}
    assert {key: now[key] for key in same} == {key: before[key] for key in same}
    assert now["record/timing.csv"].count(b"\n") == before["record/timing.csv"].count(b"\n") == 3
    if odd is folder:
        assert b"mine" in now.values()


def test_what_was_edited_is_put_aside_where_the_model_is_written_anew_too(done, whole, again):
    (done / HEAD).unlink()
    for name in (*TABLES, "made_of.json"):
        (done / name).write_bytes(b"mine" + (done / name).read_bytes())
    told = again()
    for name in (*TABLES, "made_of.json"):
        assert f"{done}/{name} was not this run's; it is written anew, and the other one is {name}.edited.1\n" in told
        assert (done / name).read_bytes() == (whole / name).read_bytes()
        assert (done / f"{name}.edited.1").read_bytes().startswith(b"mine")


def test_rows_since_the_last_checkpoint_are_no_edits(done, whole, again):
    """As a crash leaves them."""
    (done / "DONE.json").unlink()
    shutil.rmtree(done / "checkpoints" / "round-000002")
    assert "edited" not in again() and (done / "metrics.csv").read_text().count("\n") == 3


def test_a_link_that_was_put_aside_is_not_written_over(done, again):
    for i in (1, 2):
        (done / "clients.csv").unlink()
        (done / "clients.csv").symlink_to(f"nowhere-{i}")
        assert f"clients.csv.edited.{i}" in again()
        assert os.readlink(done / f"clients.csv.edited.{i}") == f"nowhere-{i}"


def test_a_folder_among_the_models_files_is_put_aside_where_a_run_goes_on(done, whole, again):
    (done / "DONE.json").unlink()
    shutil.rmtree(done / "checkpoints" / "round-000002")
    (done / MODEL).unlink()
    folder(done / MODEL)
    assert f"{done}/{MODEL} was not this run's; it is now adapter_model.safetensors.edited.1\n" in again()
    assert (done / MODEL).read_bytes() == (whole / MODEL).read_bytes() and (done / f"{MODEL}.edited.1" / "x").is_file()


def test_two_that_mend_put_no_good_file_aside(done, whole, again, monkeypatch):
    """The other is done before this one has the folder."""
    (done / "metrics.csv").write_bytes(b"mine")
    own = mending.FolderLock

    def late(path):
        shutil.copy(whole / "metrics.csv", done / "metrics.csv")
        return own(path)

    monkeypatch.setattr(mending, "FolderLock", late)
    assert "edited" not in again() and not list(done.glob("*.edited.*"))


def test_a_run_that_can_neither_go_on_nor_be_shown_begins_anew_and_says_so(done, whole, tmp_path, capsys):
    """Also where its tables are emptied: its model is not written over."""
    shutil.rmtree(done / "checkpoints")
    (done / "summary.json").write_bytes(b"")
    for name in TABLES:
        (done / name).write_bytes(b"")
    assert run_sim.main([*SHORT, f"output_dir={tmp_path}"]) == 0
    aside = done.with_name(f"{done.name}.1")
    told = f"the run that was in {done} cannot go on, for want of a checkpoint, nor be shown; it is now {aside.name}"
    assert told in capsys.readouterr().out
    assert (aside / MODEL).read_bytes() == (whole / MODEL).read_bytes() == (done / MODEL).read_bytes()


# -- the model ---------------------------------------------------------------------------------------------------------

HEAD, MODEL, OFFSET = (f"adapter/{n}.safetensors" for n in ("head", "adapter_model", "base_offset"))


def flip(file: Path) -> bytes:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return bytes(content)


def test_a_file_of_the_model_that_is_gone_is_written_from_the_last_checkpoint(done, whole, again):
    (done / HEAD).unlink()
    told = again()
    assert f"{done}/{HEAD} was not there; it is written anew\n" in told and SHOWN not in told
    placed = {name: files(done)[name] for name in ("ledger.jsonl", "config.yaml", "summary.json")}
    assert files(done) == files(whole) | placed
    first, now = (json.loads((folder / "summary.json").read_text()) for folder in (whole, done))
    assert now == first | {"folder": str(done)}
    assert fedinit.load(done).model() and HEAD not in (told := again()) and SHOWN in told


def test_a_flipped_bit_of_the_model_is_put_aside_and_written_anew(done, whole, again):
    damaged = flip(done / MODEL)
    assert f"{done}/{MODEL} was not this run's; it is written anew, and the other one is adapter_model" in again()
    assert (done / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    assert (done / f"{MODEL}.edited.1").read_bytes() == damaged and fedinit.load(done).model()


def test_a_file_that_the_run_did_not_write_does_not_become_its_own(done, whole, again):
    shutil.copy(done / HEAD, done / OFFSET)
    assert f"{done}/{OFFSET} was not this run's; it is now base_offset.safetensors.edited.1\n" in again()
    assert (done / "DONE.json").read_bytes() == (whole / "DONE.json").read_bytes() and fedinit.load(done).model()


def test_a_model_that_is_one_clients_own_is_written_anew(tmp_path, capsys):
    words = [*SHORT, "strategy=fedsa_lora", "evaluation=clients", f"output_dir={tmp_path}"]
    folder = fedinit.run(*words).folder
    before, own = files(folder), folder / "adapter/client-1/adapter_model.safetensors"
    flip(own)
    assert run_sim.main(words) == 0
    assert f"{own} was not this run's; it is written anew" in capsys.readouterr().out
    now = files(folder)
    assert [name for name in before if now[name] != before[name]] == ["ledger.jsonl"]


@pytest.mark.parametrize("lost", ["all", "last"])
def test_a_model_that_cannot_be_written_anew_is_a_line_and_the_table_is_shown(lost, done, again):
    shutil.rmtree(done / "checkpoints" / ("" if lost == "all" else "round-000002"))
    damaged = flip(done / MODEL)
    told = again()
    why = "is not what the run wrote, by its sha256; put that back"
    assert f"warning: {done}/{MODEL}: {why}" in told and SHOWN in told and "test accuracy" in told
    assert ("resume=never with the run's own words runs it again" in told) == (lost == "all")
    assert (done / MODEL).read_bytes() == damaged and fedinit.load(done).done


def test_a_models_images_that_are_others_now_are_told_by_the_table_alone(done, again, monkeypatch):
    """Nor is anything written where its images or its backbone are not the run's any more."""
    (done / HEAD).unlink()
    monkeypatch.setattr("fedinit.runs.made_of.MadeOf.changes", lambda *_: "the backbone's file is another")
    told = again()
    assert (
        SHOWN in told and f"warning: {done}/{HEAD}: is not there, and the run wrote it; put it back, or remove" in told
    )
    assert not (done / HEAD).exists()
